package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/http1"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/spool"
	"github.com/tallystick/tallystick/internal/tenant"
)

// newBenchPartCommand is a process of the proxy's benchmark: the provider, the bare
// proxy, or ours. Each serves until its standard input ends, and says where first.
func newBenchPartCommand() *cobra.Command {
	var part, upstream, dir string
	var away bool
	cmd := &cobra.Command{
		Use: "bench-part", Hidden: true, Args: cobra.NoArgs,
		Short: "A process of the proxy's benchmark",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			go func() {
				defer cancel()
				_, _ = io.Copy(io.Discard, cmd.InOrStdin())
			}()
			return runBenchPart(ctx, cmd.OutOrStdout(), part, upstream, dir, away)
		},
	}
	cmd.Flags().StringVar(&part, "part", "", "provider, bare or metering")
	cmd.Flags().StringVar(&upstream, "upstream", "", "URL of the provider")
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the spool")
	cmd.Flags().BoolVar(&away, "away", false, "there is no broker: all stays in the spool")
	return cmd
}

func runBenchPart(ctx context.Context, out io.Writer, part, upstream, dir string, away bool) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	moreFiles()
	var srv interface {
		Serve(l net.Listener) error
		Close() error
	}
	switch part {
	case "provider":
		srv = &http1.Server{ // as little of a provider as can be, as it is on the same cores
			Handler: benchProvider(), HeaderTimeout: time.Minute, IdleTimeout: time.Minute, WriteTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		}
	case "bare":
		u, err := url.Parse(upstream)
		if err != nil {
			return err
		}
		p := &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(u) },
			Transport: &http.Transport{MaxIdleConnsPerHost: proxy.DefaultIdleConnsPerHost, DisableCompression: true},
		}
		srv = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	case "metering":
		m, err := newBenchMetering(ctx, upstream, dir, away)
		if err != nil {
			return err
		}
		defer m.close()
		srv = m.proxy.Server(nil)
		go func() { _ = easeCollector(ctx) }() // it returns nil
	default:
		return fmt.Errorf("no part %q", part)
	}
	if _, err := fmt.Fprintf(out, "http://%s\n", l.Addr()); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// moreFiles lets the process hold as many connections as the idle streams need, two
// for each, where its user may. It returns how many files it may open.
func moreFiles() int {
	want := syscall.Rlimit{Cur: 3 * proxyIdle, Max: 3 * proxyIdle}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want) == nil {
		return int(want.Cur)
	}
	var have syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &have) != nil {
		return 0
	}
	return int(have.Cur)
}

// Bodies of the benchmark, of an ordinary size.
const (
	benchChatRequest = `{"model":"gpt-4o","temperature":0.2,"max_tokens":256,"messages":[{"role":"system","content":"You are a helpful assistant of the search team. Answer in one short sentence, and say so when you do not know."},{"role":"user","content":"Which of the three warehouses had the fewest returns in the last quarter, and by how much did it differ from the one before it?"}]}`
	benchChatAnswer  = `{"id":"chatcmpl-9xYzAbCdEfGh","object":"chat.completion","created":1763800000,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"The warehouse in Lyon had the fewest returns in the last quarter, 214 of them, which is 38 fewer than the one in Ghent that came second.","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":71,"completion_tokens":34,"total_tokens":105,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},"service_tier":"default","system_fingerprint":"fp_07871e2ad8"}`
	benchChatChunk   = `data: {"id":"chatcmpl-9xYzAbCdEfGh","object":"chat.completion.chunk","created":1763800000,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"delta":{"content":"The warehouse"},"finish_reason":null}]}` + "\n\n"
	benchChatLast    = `data: {"id":"chatcmpl-9xYzAbCdEfGh","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":71,"completion_tokens":34,"total_tokens":105}}` + "\n\ndata: [DONE]\n\n"
)

// benchProvider answers at once, or with a stream of two events; with ?hold the
// stream stays open until its client goes.
func benchProvider() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.RawQuery == "" {
			w.Header()["Content-Type"] = []string{"application/json"}
			_, _ = io.WriteString(w, benchChatAnswer)
			return
		}
		w.Header()["Content-Type"] = []string{"text/event-stream"}
		_, _ = io.WriteString(w, benchChatChunk)
		_ = http.NewResponseController(w).Flush()
		if r.URL.RawQuery == "hold" {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, benchChatLast)
	})
}

// benchMetering is the proxy with all that costs time in it: the edge with its keys,
// the sealed spool on disk, its shipper. Only the broker is none.
type benchMetering struct {
	proxy  *proxy.Proxy
	keys   anyKeys
	spool  *spool.Spool
	cancel context.CancelFunc
	ended  chan struct{} // with the proxy's Run
}

// lingering is a broker that acknowledges after the linger of the real producer.
type lingering struct{ nowhere }

func (l lingering) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error {
	time.Sleep(kafka.DefaultLinger)
	return l.nowhere.ProduceBatch(ctx, recs, results)
}

// benchProviderKeys has one provider key.
type benchProviderKeys struct{}

func (benchProviderKeys) ProviderKey(context.Context, tenant.ID, string) (proxy.ProviderKey, error) {
	return proxy.ProviderKey{ID: "bench", Secret: "provider-key-of-no-worth"}, nil
}

func benchSpoolKey() *[spool.KeyBytes]byte { return &[spool.KeyBytes]byte{1} }

func newBenchMetering(ctx context.Context, upstream, dir string, away bool) (*benchMetering, error) {
	keys, err := newAnyKeys(dir)
	if err != nil {
		return nil, err
	}
	s, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{Key: benchSpoolKey(), SyncLate: true, Log: slog.Default()})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	log := spool.NewLog(s, lingering{}, spool.LogOptions{})
	if !away {
		go func() { _ = log.Run(ctx) }() // what it cannot ship shows as a full spool
	}
	auth := authn.NewStatic(benchToken, authn.Principal{Subject: "tok_bench", Tenants: []tenant.ID{benchTenant}, Scopes: authn.Ingest})
	edge, err := ingest.New(log, keys, auth, ingest.Options{Topic: "events", EdgeID: "bench", MaxInFlight: proxyInFlight})
	if err == nil {
		var providers []proxy.Provider
		if providers, err = proxy.ParseProvider("openai="+upstream, proxy.BuiltinProviders()); err == nil {
			var p *proxy.Proxy
			p, err = proxy.New(proxy.Parts{Auth: auth, Sink: edge, Keys: benchProviderKeys{}, Room: spoolRoom{s}},
				proxy.Options{ProducerID: "bench", Providers: providers})
			if err == nil {
				m := &benchMetering{p, keys, s, cancel, make(chan struct{})}
				go func() {
					defer close(m.ended)
					_ = p.Run(ctx) // it returns nil
				}()
				return m, nil
			}
		}
	}
	cancel()
	return nil, errors.Join(err, s.Close())
}

func (m *benchMetering) close() {
	m.cancel()
	<-m.ended
	_ = m.spool.Close()
	_ = m.keys.ring.Close()
}
