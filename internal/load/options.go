package load

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Defaults of Options.
const (
	DefaultBatch       = 500
	DefaultConnections = 4
	DefaultTenants     = 8
	DefaultSynthetic   = 100_000
	DefaultHistory     = 14 * 24 * time.Hour
	DefaultLateMax     = 48 * time.Hour
	DefaultWindow      = 1000
	DefaultTimeout     = 30 * time.Second

	// MaxBatch is the API's limit of events in one request.
	MaxBatch = 1000
	// MaxTenants bounds the tables by tenant.
	MaxTenants = 100_000
	// flushInterval is how long a paced load keeps a batch open at most.
	flushInterval = 100 * time.Millisecond
)

// Format is how events travel.
type Format string

// The formats.
const (
	Protobuf Format = "protobuf"
	JSON     Format = "json"
	NDJSON   Format = "ndjson"
)

// Options say what to send where. The zero value of a field means its default.
type Options struct {
	// Trace is the path of a trace file (.csv or .csv.zst); "" makes a synthetic load.
	Trace string
	// Events is how many calls the source has; injected faults come on top.
	// 0: the whole trace, or DefaultSynthetic made-up calls.
	Events int64
	// Limit is how many of them this run sends, from the beginning or from where
	// Resume left off. 0: all.
	Limit int64
	// Live makes the synthetic load happen as it is sent, at Rate per second,
	// after the history; with Events = 0 for ever (until Stop or the end of ctx).
	Live bool
	// History is the span that a synthetic load is spread over, up to Base.
	History time.Duration
	// Base is when the source ends (for Live: begins). Zero is now. Two runs with
	// the same Seed, source and Base send the same events.
	Base time.Time
	// FromStart makes Base the time at which a trace begins. Allowed only when
	// Speed keeps its events from lying in the future.
	FromStart bool
	// Seed decides everything that is drawn.
	Seed uint64

	// Tenants is how many tenants there are; TenantPrefix makes their ids
	// "prefix-0001" instead of names from a table.
	Tenants      int
	TenantPrefix string
	// Zipf, when positive, spreads the events over the tenants by Zipf's law with
	// this exponent (a synthetic load: DefaultZipf). Else a trace's client belongs
	// to one tenant by its hash.
	Zipf float64
	// HotShare, when positive, gives this share of all events to the first tenant.
	HotShare float64

	Faults Faults

	// URL of the server, such as "http://127.0.0.1:8321"; Token is sent as bearer.
	URL   string
	Token string
	// Format of the requests; Compress is "", "gzip" or "zstd".
	Format      Format
	Compress    string
	Batch       int
	Connections int
	// SkipTenants leaves out creating the tenants.
	SkipTenants bool
	// Speed replays the source's own times that many times faster; Rate sends
	// that many events per second. Both are open loops: a late answer does not
	// slow the schedule. At most one of them; neither is as fast as it goes.
	Speed float64
	Rate  float64
	// Timeout is how long one request may take before it is sent again.
	Timeout time.Duration
	// Deadline bounds how long an absent server is waited for; 0 is for ever.
	Deadline time.Duration

	// Resume continues a load that ended in order, with the same options.
	Resume *State
	// Before is an expectation of the same tenants that this load adds to.
	Before *oracle.Expectation
	// Stop, when closed, ends the load in order.
	Stop <-chan struct{}
	// Hold, when set, is called before a batch is filled and returns when it may be
	// sent, or when the load ends. One call at a time.
	Hold func(ctx context.Context)
	// OnProgress, if set, is called with running totals after every
	// acknowledgement, from several goroutines.
	OnProgress func(sent, acked int64)
	// Log defaults to discarding.
	Log *slog.Logger
	// Transport defaults to one of its own with Connections connections.
	Transport http.RoundTripper
}

// Faults are shares of the source's calls, each 0 to 1.
type Faults struct {
	// Duplicates are sent again later with the same body.
	Duplicates float64
	// Late calls happened up to LateMax before their time in the source.
	Late float64
	// Reorder takes calls out of their order by up to Window events.
	Reorder float64
	// Poison adds events that the edge must refuse, of every class in turn.
	Poison float64
	// Conflicts adds events with the id of an acknowledged one and another body.
	Conflicts float64
	// Unpriced calls name a model that no price list knows.
	Unpriced float64

	LateMax time.Duration
	Window  int
}

// Validate reports the first contradiction, wrapped in ErrOptions.
func (o Options) Validate() error { return o.prepare() }

// prepare checks the options and fills defaults.
func (o *Options) prepare() error {
	o.fillDefaults()
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrOptions}, args...)...)
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return bad("the server's URL must look like http://127.0.0.1:8321")
	case o.Events < 0 || o.Limit < 0:
		return bad("the number of events is negative")
	case o.Live && o.Trace != "":
		return bad("a live load is synthetic: it cannot replay a trace")
	case o.Live && o.Rate <= 0:
		return bad("a live load needs a rate")
	case o.Live && (o.Speed > 0 || o.FromStart):
		return bad("a live load has no speed and no other start than now")
	case o.Speed < 0 || o.Rate < 0:
		return bad("speed and rate are positive")
	case o.Speed > 0 && o.Rate > 0:
		return bad("give a speed or a rate, not both")
	case o.FromStart && (o.Speed <= 0 || o.Speed > 1):
		return bad("a trace that starts now needs a speed of at most 1, or its events would lie in the future")
	case o.Batch < 1 || o.Batch > MaxBatch:
		return bad("a batch holds 1 to %d events", MaxBatch)
	case o.Connections < 1 || o.Connections > 1024:
		return bad("1 to 1024 connections")
	case o.Tenants < 1 || o.Tenants > MaxTenants:
		return bad("1 to %d tenants", MaxTenants)
	case o.Zipf < 0 || o.Zipf > 10:
		return bad("the Zipf exponent lies between 0 and 10")
	case o.HotShare < 0 || o.HotShare > 1:
		return bad("the hot share lies between 0 and 1")
	case o.Format != Protobuf && o.Format != JSON && o.Format != NDJSON:
		return bad("the format is protobuf, json or ndjson")
	case o.Compress != "" && o.Compress != "gzip" && o.Compress != "zstd":
		return bad("compression is gzip or zstd")
	case !tenant.ValidID(tenantID(o.TenantPrefix, o.Tenants-1)):
		return bad("the tenant prefix: %w", tenant.ErrInvalidID)
	case strings.ContainsAny(o.Token, "\r\n"):
		return bad("the token contains a line break")
	}
	if err := o.Faults.validate(); err != nil {
		return err
	}
	return o.checkResume()
}

func (o *Options) fillDefaults() {
	setDefault(&o.Batch, DefaultBatch)
	setDefault(&o.Connections, DefaultConnections)
	setDefault(&o.Tenants, DefaultTenants)
	setDefault(&o.History, DefaultHistory)
	setDefault(&o.Timeout, DefaultTimeout)
	setDefault(&o.Format, Protobuf)
	setDefault(&o.Faults.LateMax, DefaultLateMax)
	setDefault(&o.Faults.Window, DefaultWindow)
	if o.Trace == "" && o.Events == 0 && !o.Live {
		o.Events = DefaultSynthetic
	}
	if o.Trace == "" {
		setDefault(&o.Zipf, DefaultZipf)
	}
	if o.Base.IsZero() {
		o.Base = time.Now()
		if o.Resume != nil {
			o.Base = o.Resume.Base
		}
	}
	o.Base = o.Base.Truncate(time.Millisecond)
	o.URL = strings.TrimRight(o.URL, "/")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (f *Faults) validate() error {
	for _, s := range []struct {
		name  string
		share float64
	}{
		{"duplicates", f.Duplicates}, {"late", f.Late}, {"reorder", f.Reorder},
		{"poison", f.Poison}, {"conflicts", f.Conflicts}, {"unpriced", f.Unpriced},
	} {
		if !(s.share >= 0 && s.share <= 1) {
			return fmt.Errorf("%w: the share of %s lies between 0 and 1", ErrOptions, s.name)
		}
	}
	if f.LateMax < time.Hour || f.Window < 1 || f.Window > 1_000_000 {
		return fmt.Errorf("%w: late events are at least 1 h late; the window is 1 to 1,000,000", ErrOptions)
	}
	return nil
}

// checkResume refuses to continue what cannot be continued exactly.
func (o *Options) checkResume() error {
	r := o.Resume
	switch {
	case r == nil:
		return nil
	case o.Live || o.Before != nil:
		return fmt.Errorf("%w: a live load and one that adds to another cannot be resumed", ErrOptions)
	case !r.Complete:
		return fmt.Errorf("%w: the load to resume did not end in order (%d events in doubt)", ErrOptions, r.InDoubt)
	case r.Plan != o.fingerprint():
		return fmt.Errorf("%w: the load to resume had other options", ErrOptions)
	}
	return nil
}

// fingerprint names everything that decides the content of the events.
func (o *Options) fingerprint() string {
	f := o.Faults
	return fmt.Sprintf("v1 trace=%s events=%d history=%s base=%d start=%t seed=%d tenants=%d prefix=%s zipf=%g hot=%g dup=%g late=%g/%s reorder=%g/%d poison=%g conflicts=%g unpriced=%g format=%s",
		baseName(o.Trace), o.Events, o.History, o.Base.UnixMilli(), o.FromStart, o.Seed, o.Tenants, o.TenantPrefix, o.Zipf, o.HotShare,
		f.Duplicates, f.Late, f.LateMax, f.Reorder, f.Window, f.Poison, f.Conflicts, f.Unpriced, o.Format)
}

// before is the expectation that the load adds to; nil without.
func (o *Options) before() *oracle.Expectation {
	if o.Resume != nil {
		return &o.Resume.Expectation
	}
	return o.Before
}
