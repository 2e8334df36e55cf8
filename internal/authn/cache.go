package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// CacheLife is how long what was found out of a token is believed: a token
	// that was revoked is refused everywhere after it.
	CacheLife = 5 * time.Second
	// StaleLife is how long a token that was in force is still believed while
	// Postgres cannot be asked, so that events are taken in meanwhile. Nothing
	// can be revoked in that time either.
	StaleLife = 5 * time.Minute
	// cacheSize bounds the tokens in force, and those refused, that are
	// remembered; a flood of unknown ones displaces only unknown ones.
	cacheSize = 16_384
	// maxLookups bounds the questions to Postgres at once: a flood of unknown
	// tokens waits in line, while cached ones are not held up.
	maxLookups  = 4
	lookupWait  = 2 * time.Second
	lookupLimit = 5 * time.Second
)

// lookup is what a Cache asks; *Tokens does.
type lookup interface {
	lookup(ctx context.Context, id tenant.ID, digest [sha256.Size]byte) (known, error)
}

// Cache is an Authenticator over Tokens without a round trip for each request.
// It keeps digests, never tokens. Its methods may be called from many goroutines.
type Cache struct {
	tokens lookup
	now    func() time.Time
	places chan struct{} // one element per question to Postgres
	flight singleflight.Group

	mu      sync.RWMutex // protects what follows
	good    map[[sha256.Size]byte]cached
	refused map[[sha256.Size]byte]time.Time // until when
	forgets int                             // how often all was forgotten
}

type cached struct {
	known
	fresh time.Time // until when it is believed
	stale time.Time // until when, if nobody can be asked
}

// NewCache makes an empty cache.
func NewCache(tokens *Tokens) *Cache { return newCache(tokens, time.Now) }

func newCache(tokens lookup, now func() time.Time) *Cache {
	return &Cache{
		tokens: tokens, now: now, places: make(chan struct{}, maxLookups),
		good: map[[sha256.Size]byte]cached{}, refused: map[[sha256.Size]byte]time.Time{},
	}
}

// Authenticate implements Authenticator. Errors: ErrUnauthenticated,
// ErrUnavailable.
func (c *Cache) Authenticate(ctx context.Context, token string) (Principal, error) {
	if len(token) > maxTokenBytes {
		token = token[:maxTokenBytes+1] // still too long to be one
	}
	digest := sha256.Sum256([]byte(token))
	now := c.now()
	c.mu.RLock()
	entry, ok := c.good[digest]
	refused, no := c.refused[digest]
	c.mu.RUnlock()
	switch {
	case ok && now.Before(entry.expiresAt) && now.Before(entry.fresh):
		return entry.principal, nil
	case no && now.Before(refused):
		return Principal{}, ErrUnauthenticated
	}
	k, err := c.ask(ctx, tenantOf(token), digest)
	if errors.Is(err, ErrUnavailable) && ok && now.Before(entry.expiresAt) && now.Before(entry.stale) {
		return entry.principal, nil
	}
	return k.principal, err
}

// ask asks Postgres once for all that wait for the same token.
func (c *Cache) ask(ctx context.Context, id tenant.ID, digest [sha256.Size]byte) (known, error) {
	answer := c.flight.DoChan(string(digest[:]), func() (any, error) {
		// Others wait for the answer too: one caller that goes away ends nothing.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupLimit)
		defer cancel()
		if err := c.enter(ctx); err != nil {
			return known{}, err
		}
		defer func() { <-c.places }()
		asked, forgets := c.now(), c.forgotten()
		k, err := c.tokens.lookup(ctx, id, digest)
		c.keep(digest, k, err, asked, forgets)
		return k, err
	})
	select {
	case r := <-answer:
		k, _ := r.Val.(known)
		return k, r.Err
	case <-ctx.Done():
		return known{}, errors.Join(ErrUnavailable, context.Cause(ctx))
	}
}

// enter takes a place among those that ask, or gives up after a while.
func (c *Cache) enter(ctx context.Context) error {
	select {
	case c.places <- struct{}{}:
		return nil
	default:
	}
	limit := time.NewTimer(lookupWait)
	defer limit.Stop()
	select {
	case c.places <- struct{}{}:
		return nil
	case <-limit.C:
	case <-ctx.Done():
	}
	return ErrUnavailable
}

func (c *Cache) forgotten() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.forgets
}

// keep remembers an answer from when it was asked for; that there was none is
// no answer. One that was under way while all was forgotten may be from before.
func (c *Cache) keep(digest [sha256.Size]byte, k known, err error, asked time.Time, forgets int) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if forgets != c.forgets {
		return
	}
	switch {
	case err == nil:
		delete(c.refused, digest)
		makeRoom(c.good, func(e cached) bool { return !now.Before(e.stale) })
		c.good[digest] = cached{k, asked.Add(CacheLife), asked.Add(StaleLife)}
	case errors.Is(err, ErrUnauthenticated):
		delete(c.good, digest)
		makeRoom(c.refused, func(until time.Time) bool { return !now.Before(until) })
		c.refused[digest] = asked.Add(CacheLife)
	}
}

// makeRoom drops what is over, and if that is nothing, any one.
func makeRoom[V any](m map[[sha256.Size]byte]V, over func(V) bool) {
	if len(m) < cacheSize {
		return
	}
	for digest, v := range m {
		if over(v) {
			delete(m, digest)
		}
	}
	for digest := range m {
		if len(m) < cacheSize {
			return
		}
		delete(m, digest)
	}
}

// Forget drops all that is remembered: what was revoked in this process is
// refused at once.
func (c *Cache) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.good)
	clear(c.refused)
	c.forgets++
}
