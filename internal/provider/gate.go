package provider

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// CacheLife is how long what a tenant has set is believed: what was revoked,
	// thrown or set is in force everywhere after it.
	CacheLife = 4 * time.Second
	// RefreshAfter is when it is read again beside the calls, so that no call of a
	// tenant that makes some every now and then waits for Postgres.
	RefreshAfter = 2 * time.Second
	// StaleLife is how long it is still believed while Postgres cannot be asked.
	// Nothing can be changed in that time either.
	StaleLife = 5 * time.Minute

	// maxTenants bounds the tenants that are remembered.
	maxTenants = 16_384
	// maxLookups bounds the questions to Postgres at once.
	maxLookups  = 4
	lookupLimit = 5 * time.Second
	lookupWait  = 2 * time.Second
	// patience is how long a call waits for an answer where an older one would do.
	patience = 250 * time.Millisecond
	// failedLife is how long nobody asks again after nobody answered.
	failedLife = time.Second
	// idleLife is when what is remembered of a tenant without calls is forgotten.
	idleLife = 10 * time.Minute
)

// Call is what is known of a call before it goes to its provider.
type Call struct {
	Tenant tenant.ID
	// Credential is the Subject of the caller's token.
	Credential            string
	Provider, Model, Team string
	// PromptTokens is an estimate, 0 where there is none.
	PromptTokens int64
}

// Recorder keeps that a provider key was used; *audit.Recorder does.
type Recorder interface{ Allowed(ev audit.Event) }

// Gate decides, call by call, by what tenants have set. Its methods may be called
// from many goroutines; Run must be running.
type Gate struct {
	db     *postgres.DB
	keys   secrets.Keys
	rec    Recorder
	now    func() time.Time
	log    *slog.Logger
	writer string // this process's name in access.spend
	places chan struct{}
	read   func(ctx context.Context, id tenant.ID, now time.Time) (*policy, error)

	mu      sync.RWMutex // protects tenants
	tenants map[tenant.ID]*held
}

// NewGate makes a gate over a login of postgres.RoleApp. A nil logger discards.
func NewGate(db *postgres.DB, keys secrets.Keys, rec Recorder, log *slog.Logger) *Gate {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &Gate{
		db: db, keys: keys, rec: rec, now: time.Now, log: log, writer: "prx_" + strings.ToLower(rand.Text()),
		places: make(chan struct{}, maxLookups), tenants: map[tenant.ID]*held{},
	}
	g.read = func(ctx context.Context, id tenant.ID, now time.Time) (*policy, error) {
		return readPolicy(ctx, g.db, id, g.writer, now)
	}
	return g
}

// held is what is remembered of a tenant.
type held struct {
	id     tenant.ID
	policy atomic.Pointer[policy]
	used   atomic.Int64 // unix nanoseconds of the last call

	asking   sync.Mutex // protects what follows
	flight   *flight    // the question under way
	failedAt time.Time

	mu       sync.Mutex // protects what follows
	buckets  map[bucketKey]*bucket
	accounts map[accountKey]*account
}

// bucketKey is a limited key, and whether its tokens or its requests are counted.
type bucketKey struct {
	key    string
	tokens bool
}

// flight is a question under way.
type flight struct {
	done      chan struct{}
	since     time.Time
	forgotten atomic.Bool // its answer may be from before a change
}

// of finds or makes what is remembered of a tenant. It is marked as used while the
// lock is held, so that drop never forgets it between here and the call.
func (g *Gate) of(id tenant.ID, now time.Time) (*held, error) {
	g.mu.RLock()
	h := g.tenants[id]
	if h != nil {
		h.used.Store(now.UnixNano())
	}
	g.mu.RUnlock()
	if h != nil {
		return h, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if h = g.tenants[id]; h == nil {
		if len(g.tenants) >= maxTenants {
			return nil, ErrUnavailable // Run makes room
		}
		h = &held{id: id, buckets: map[bucketKey]*bucket{}, accounts: map[accountKey]*account{}}
		g.tenants[id] = h
	}
	h.used.Store(now.UnixNano())
	return h, nil
}

// policy is what the tenant has set. Errors: ErrUnavailable.
func (g *Gate) policy(ctx context.Context, id tenant.ID) (*held, *policy, error) {
	now := g.now()
	h, err := g.of(id, now)
	if err != nil {
		return nil, nil, err
	}
	p := h.policy.Load()
	if p != nil {
		switch age := now.Sub(p.asked); {
		case age < RefreshAfter:
			return h, p, nil
		case age < CacheLife:
			g.ask(h, now)
			return h, p, nil
		case age >= StaleLife:
			p = nil
		}
	}
	if err := g.await(ctx, h, p != nil); err != nil {
		return nil, nil, err
	}
	if fresh := h.policy.Load(); fresh != nil && g.now().Sub(fresh.asked) < CacheLife {
		p = fresh
	}
	if p == nil {
		return nil, nil, ErrUnavailable
	}
	return h, p, nil
}

// await asks and waits for the answer: only a little where an older one would do.
// An answer that was forgotten while it was under way is none, so it asks again.
func (g *Gate) await(ctx context.Context, h *held, older bool) error {
	for range 3 {
		f := g.ask(h, g.now())
		if f == nil {
			return nil
		}
		wait := lookupWait
		if older {
			wait = patience - g.now().Sub(f.since)
		}
		if err := f.wait(ctx, wait); err != nil {
			return errors.Join(ErrUnavailable, err)
		}
		if !f.forgotten.Load() {
			return nil
		}
	}
	return nil
}

// wait returns when the question is over or the time is; an error is the caller's.
func (f *flight) wait(ctx context.Context, limit time.Duration) error {
	if limit <= 0 {
		return nil
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-f.done:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// ask has the tenant's policy read, once for all that want it; nil where nobody
// answered just now.
func (g *Gate) ask(h *held, now time.Time) *flight {
	h.asking.Lock()
	defer h.asking.Unlock()
	if h.flight == nil && now.Sub(h.failedAt) >= failedLife {
		h.flight = &flight{done: make(chan struct{}), since: now}
		go g.answer(h, h.flight)
	}
	return h.flight
}

// answer reads the policy.
func (g *Gate) answer(h *held, f *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	defer cancel()
	var p *policy
	err := ErrUnavailable
	select {
	case g.places <- struct{}{}:
		p, err = g.read(ctx, h.id, g.now())
		<-g.places
	case <-ctx.Done():
	}
	h.asking.Lock()
	defer h.asking.Unlock()
	if h.flight == f {
		h.flight = nil
	}
	switch {
	case err != nil:
		h.failedAt = g.now()
		g.log.Warn("what a tenant's proxy calls may do cannot be read; what is known is believed meanwhile", "tenant", h.id, "err", err)
	case !f.forgotten.Load():
		h.policy.Store(p)
		h.failedAt = time.Time{}
	}
	close(f.done)
}

// Forget has what a tenant has set read anew: what was changed in this process is
// in force at once.
func (g *Gate) Forget(id tenant.ID) {
	g.mu.RLock()
	h := g.tenants[id]
	g.mu.RUnlock()
	if h == nil {
		return
	}
	h.asking.Lock()
	defer h.asking.Unlock()
	h.policy.Store(nil)
	if h.flight != nil {
		h.flight.forgotten.Store(true)
		h.flight = nil
	}
	h.failedAt = time.Time{}
}

// Stopped finds the switch that stops a call. Errors: ErrUnavailable.
func (g *Gate) Stopped(ctx context.Context, c *Call) (w Switch, stopped bool, err error) {
	_, p, err := g.policy(ctx, c.Tenant)
	if err != nil {
		return Switch{}, false, err
	}
	w, stopped = p.stopped(c)
	return w, stopped, nil
}

// OpenKey is a provider key, opened. Keep it no longer than its call needs it.
type OpenKey struct {
	ID     string
	Base   string // "" is where the proxy knows the provider to be
	Secret string
}

// Key opens the tenant's key for a provider: the newest value of the one that has
// the provider's name, else of the first by name. Errors: ErrNoKey, also when it
// cannot be opened any more; ErrUnavailable.
func (g *Gate) Key(ctx context.Context, id tenant.ID, provider string) (OpenKey, error) {
	_, p, err := g.policy(ctx, id)
	if err != nil {
		return OpenKey{}, err
	}
	k := p.keys[provider]
	if k == nil {
		return OpenKey{}, ErrNoKey
	}
	secret, err := secrets.Open(g.keys, id, &k.values[0])
	switch {
	case errors.Is(err, keyring.ErrDestroyed), errors.Is(err, keyring.ErrSealed), errors.Is(err, keyring.ErrNoKey):
		return OpenKey{}, errors.Join(ErrNoKey, err)
	case err != nil:
		return OpenKey{}, errors.Join(ErrUnavailable, err)
	}
	g.rec.Allowed(audit.Event{Tenant: id, Actor: "proxy", Action: "secret.use", Resource: "secret/" + k.id()})
	return OpenKey{ID: k.id(), Base: k.base, Secret: secret}, nil
}

// Take counts a call against the limits of its credential and of its provider
// key. A positive wait refuses it: the caller comes again after it. rule says
// which limit, such as "requests per minute of tok_x". Errors: ErrUnavailable.
func (g *Gate) Take(ctx context.Context, c *Call) (wait time.Duration, rule string, err error) {
	h, p, err := g.policy(ctx, c.Tenant)
	if err != nil || len(p.limits) == 0 {
		return 0, "", err
	}
	now := g.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	keys := [...]string{c.Credential, p.keyID(c)}
	// First all are asked, then all are taken from: a call that one refuses costs
	// the other nothing.
	for _, key := range keys {
		l := p.limits[key]
		if l.RequestsPerMinute > 0 {
			b := *h.bucket(key, false)
			if wait = b.take(1, l.RequestsPerMinute, now); wait > 0 {
				return wait, "requests per minute of " + key, nil
			}
		}
		if l.TokensPerMinute > 0 {
			b := *h.bucket(key, true)
			if wait = b.take(max(1, c.PromptTokens), l.TokensPerMinute, now); wait > 0 {
				return wait, "tokens per minute of " + key, nil
			}
		}
	}
	for _, key := range keys {
		l := p.limits[key]
		if l.RequestsPerMinute > 0 {
			h.bucket(key, false).take(1, l.RequestsPerMinute, now)
		}
		if l.TokensPerMinute > 0 {
			h.bucket(key, true).take(max(1, c.PromptTokens), l.TokensPerMinute, now)
		}
	}
	return 0, "", nil
}

// bucket finds or makes a bucket. h.mu is held.
func (h *held) bucket(key string, tokens bool) *bucket {
	k := bucketKey{key, tokens}
	b := h.buckets[k]
	if b == nil {
		b = &bucket{}
		h.buckets[k] = b
	}
	return b
}
