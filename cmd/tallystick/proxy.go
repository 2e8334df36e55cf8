package main

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/otlp"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/egress"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/provider"
	"github.com/tallystick/tallystick/internal/spool"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/internal/transport"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

const proxyLong = `Run the metering proxy: the base URL that clients of OpenAI, Anthropic, Gemini,
Bedrock and OpenAI-compatible providers are pointed at. Clients send a Tallystick
token with the scope ingest as their API key; the providers' keys are the tenant's
(tallystick providers).

It needs the keys, Postgres and Kafka of the installation, and goes on without
Postgres and Kafka for a while: what it meters is in its spool first. "tallystick up"
serves it too, on proxy.listen.`

// newProxyCommand is `tallystick up --target proxy`.
func newProxyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "proxy", Short: "Run the metering proxy", Long: proxyLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Flags().Set("target", string(config.TargetProxy)); err != nil {
				return err
			}
			cfg, err := config.Load(config.Sources{Flags: cmd.Flags(), Environ: os.Environ()})
			if err != nil {
				return err
			}
			u := &upRun{cfg: cfg, began: time.Now(), stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
			return u.run(cmd.Context())
		},
	}
	config.BindFlags(cmd.Flags())
	return cmd
}

// metering is the proxy and what it keeps usage in.
type metering struct {
	proxy *proxy.Proxy
	log   *spool.Log
	addr  string
	calls *otlp.Metered // for the OTLP of this process
}

// proxyInFlight is how many calls may submit their events at once: they share the
// spool's writes, so more of them are not slower.
const proxyInFlight = 4096

// startProxy serves the proxy where the target has it.
func (a *app) startProxy(ctx context.Context, tlsConfig *tls.Config) error {
	if !a.cfg.Target.Runs(config.TargetProxy) || a.cfg.Proxy.Listen == "" {
		return nil
	}
	providers := proxy.BuiltinProviders()
	for _, text := range a.cfg.Proxy.Upstreams {
		var err error
		if providers, err = proxy.ParseProvider(text, providers); err != nil {
			return fmt.Errorf("%w: proxy.upstreams: %w", config.ErrInvalid, err)
		}
	}
	queue, err := a.openProxySpool()
	if err != nil {
		return err
	}
	a.metering.log = spool.NewLog(queue, a.edgeSink(), spool.LogOptions{Log: a.log})
	a.start("proxy spool", a.metering.log.Run)
	edge, err := ingest.New(a.metering.log, edgeKeys{a}, a.access.auth, ingest.Options{
		Topic: a.kafkaCfg.Topics().Events, Partitions: a.topic.Partitions, EdgeID: a.proxyID(), Logger: a.log,
		Confidential: api.NewPostgresSubjects(a.appDB, a.ring), Mapping: a.mappingRules(), Denied: a.deniedAtEdge, MaxInFlight: proxyInFlight,
	})
	if err != nil {
		return err
	}
	a.start("proxy edge", edge.Run)
	parts, err := a.proxyParts(ctx, edge, queue)
	if err != nil {
		return err
	}
	if a.cfg.Target.Runs(config.TargetIngest) { // else nobody here asks
		a.metering.calls = otlp.NewMetered(time.Now)
		parts.Metered = a.metering.calls
	}
	p, err := proxy.New(parts, proxy.Options{
		ProducerID: a.proxyID(), Providers: providers, FailOpen: a.cfg.Proxy.FailOpen,
		MaxBodyBytes: a.cfg.Proxy.MaxBodyBytes, MaxCalls: a.cfg.Proxy.MaxCalls, Logger: a.log,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	a.metering.proxy = p
	a.start("proxy gaps", p.Run)
	if a.cfg.Target == config.TargetProxy {
		a.start("collector", easeCollector)
	}
	server := p.Server(tlsConfig)
	server.Handler = transport.HSTS(withHealth(p, a.cfg.Target == config.TargetProxy))
	a.metering.addr, err = a.listen(ctx, "proxy", a.cfg.Proxy.Listen, tlsConfig != nil, func(ctx context.Context, l net.Listener) error {
		return serveUntil(ctx, server, func() error { return server.Serve(l) })
	})
	return err
}

func (a *app) proxyID() string { return event.ProxyProducer + a.edgeID() }

// openProxySpool opens the queue on disk, sealed under a key of this installation.
func (a *app) openProxySpool() (*spool.Spool, error) {
	secret := a.ring.ContextSecret()
	key, err := hkdf.Key(sha256.New, secret[:], nil, "tallystick/proxy-spool", spool.KeyBytes)
	if err != nil {
		return nil, err
	}
	queue, err := spool.Open(a.cfg.ProxySpool(), spool.Options{
		MaxBytes: a.cfg.Proxy.SpoolBytes, Key: (*[spool.KeyBytes]byte)(key), SyncLate: !a.cfg.Proxy.PowerSafe, Log: a.log,
	})
	if err != nil {
		return nil, fmt.Errorf("proxy.spool_dir: %w", err)
	}
	a.onClose(queue.Close)
	return queue, nil
}

// proxyParts wires what decides about calls and what keeps them.
func (a *app) proxyParts(ctx context.Context, edge *ingest.Edge, queue *spool.Spool) (proxy.Parts, error) {
	pricer := &bookPricer{app: a}
	if err := pricer.read(ctx); err != nil {
		return proxy.Parts{}, err
	}
	a.start("proxy prices", pricer.run)
	gate := proxyGate{a.access.gate}
	foreign := proxy.NewUpstream(proxy.Options{}, &net.Dialer{ControlContext: egress.Control(a.cfg.Providers.PrivateNetworks)})
	parts := proxy.Parts{
		Auth: a.access.auth, Sink: edge, Room: spoolRoom{queue}, Keys: gate, Rules: edge, Switch: gate, Limits: gate, Budgets: gate,
		Pricer: pricer, Foreign: foreign,
	}
	if a.cfg.Proxy.Digests {
		parts.Capture, parts.Digester = tenantsCapture{a.access.gate}, ringDigester{a.ring}
	}
	return parts, nil
}

// spoolRoom says whether a spool has room for the calls that begin now.
type spoolRoom struct{ *spool.Spool }

// Full implements proxy.Room: the last sixteenth is kept for calls under way.
func (r spoolRoom) Full() bool {
	st := r.Stats()
	return st.Bytes > st.MaxBytes-st.MaxBytes/16
}

// bookPricer prices what a client asks the cost of, and what budgets reserve, by the
// book that was in force a minute ago at most. The ledger prices each call again.
type bookPricer struct {
	app  *app
	seen [sha256.Size]byte // of the approved book's bytes
	book atomic.Pointer[pricing.Book]
}

// bookInterval is how often the book in force is asked for.
const bookInterval = time.Minute

// read takes the approved book, or the configured one while none is.
func (b *bookPricer) read(ctx context.Context) error {
	content, err := pgstore.NewBooks(b.app.store, b.app.ring).Approved(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	if b.book.Load() != nil && sum == b.seen {
		return nil
	}
	var book *pricing.Book
	if content == nil {
		book, err = b.app.priceBook()
	} else {
		book, err = pricing.ParseBook(content)
	}
	if err == nil {
		b.book.Store(book)
		b.seen = sum
	}
	return err
}

func (b *bookPricer) run(ctx context.Context) error {
	tick := time.NewTicker(bookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := b.read(ctx); err != nil && ctx.Err() == nil {
			b.app.log.Warn("proxy: the price book cannot be read; the one before is used", "err", err)
		}
	}
}

// Price implements proxy.Pricer.
func (b *bookPricer) Price(provider, model, region, tier string, at time.Time, used *tokens.Vector) (money.Pico, bool) {
	r := b.book.Load().Price(&pricing.Usage{Provider: provider, Model: model, Region: region, ServiceTier: tier, Tokens: *used, At: at.UnixNano()})
	return r.Cost, r.Priced
}

// tenantsCapture digests the prompts of the tenants that want it.
type tenantsCapture struct{ gate *provider.Gate }

// Digests implements proxy.Capture.
func (c tenantsCapture) Digests(id tenant.ID) bool { return c.gate.Digests(context.Background(), id) }

// ringDigester makes digests under the tenants' digest keys.
type ringDigester struct{ ring *keyring.Ring }

// Digest implements proxy.Digester.
func (d ringDigester) Digest(id tenant.ID, text []byte) (sum [sha256.Size]byte, err error) {
	key, err := d.ring.Derive(id, keyring.Digest, 0)
	if err != nil {
		return sum, err
	}
	h := hmac.New(sha256.New, key[:])
	h.Write(text)
	h.Sum(sum[:0])
	return sum, nil
}

// withHealth answers /healthz before the proxy where no other listener does.
func withHealth(p http.Handler, alone bool) http.Handler {
	if !alone {
		return p
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			p.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, "ok") // whoever asks may have gone
	})
}

// clientEnvironment is what points the SDKs at the proxy.
func (a *app) clientEnvironment() string {
	url := baseURL(a.cfg, a.metering.addr)
	return fmt.Sprintf("export OPENAI_BASE_URL=%[1]s/openai/v1 ANTHROPIC_BASE_URL=%[1]s/anthropic GOOGLE_GEMINI_BASE_URL=%[1]s/gemini", url)
}
