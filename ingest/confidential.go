package ingest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// confidentialRefresh is how often the edge asks whether a setting changed.
	confidentialRefresh = 5 * time.Second
	// ConfidentialMaxAge is how old the answer may be that an event is sealed by:
	// so long after a setting was made it counts at every edge, or the edge
	// refuses what it might have to seal.
	ConfidentialMaxAge = time.Minute
	// confidentialWait is how long a request may wait for the answer, and
	// confidentialPause how long after a failure none waits again.
	confidentialWait  = 2 * time.Second
	confidentialPause = time.Second
)

// tagSetting are the confidential tags of a tenant as of a version.
type tagSetting struct {
	version int64
	keys    []string
}

// sighting is a version and when it was asked for, in unix nanoseconds.
type sighting struct {
	version int64
	at      int64
}

// confidential keeps the tenants' settings: one version for all of them, asked
// for often, and each tenant's keys with the version they are of, in its
// tenantState, which bounds them. It fails closed.
type confidential struct {
	src Confidential // nil: no tenant has confidential tags
	now func() time.Time

	last atomic.Pointer[sighting]

	mu     sync.Mutex // one question at a time; protects failed
	failed time.Time  // when the source last gave an error
}

// keysOf are the tenant's confidential keys at a time in unix nanoseconds. When
// they are known it costs two loads; otherwise it waits for the source. Error:
// errUnknownSetting.
func (c *confidential) keysOf(t *tenantState, now int64) ([]string, error) {
	if c.src == nil {
		return nil, nil
	}
	if keys, ok := c.known(t, now); ok {
		return keys, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if keys, ok := c.known(t, now); ok { // somebody else has asked
		return keys, nil
	}
	if c.now().Sub(c.failed) < confidentialPause {
		return nil, errUnknownSetting
	}
	ctx, cancel := context.WithTimeout(context.Background(), confidentialWait)
	defer cancel()
	if !c.last.Load().fresh(now) {
		if err := c.ask(ctx); err != nil {
			return nil, err
		}
	}
	version := c.last.Load().version
	keys, err := c.src.TagKeys(ctx, t.id)
	if err != nil {
		return nil, c.fail(err)
	}
	t.tags.Store(&tagSetting{version, keys})
	return keys, nil
}

// known are the tenant's keys when they are of the version that holds.
func (c *confidential) known(t *tenantState, now int64) ([]string, bool) {
	last, s := c.last.Load(), t.tags.Load()
	if s == nil || !last.fresh(now) || s.version != last.version {
		return nil, false
	}
	return s.keys, true
}

// fresh reports whether an event of that time may be sealed by the sighting.
func (s *sighting) fresh(now int64) bool {
	return s != nil && now-s.at < int64(ConfidentialMaxAge)
}

// ask reads the version. It counts from before the question. The caller holds mu.
func (c *confidential) ask(ctx context.Context) error {
	at := c.now().UnixNano()
	version, err := c.src.Version(ctx)
	if err != nil {
		return c.fail(err)
	}
	c.last.Store(&sighting{version, at})
	return nil
}

// fail notes the time, so that not each event of a request waits in vain.
func (c *confidential) fail(err error) error {
	c.failed = c.now()
	return fmt.Errorf("%w: %w", errUnknownSetting, err)
}

// askConfidential renews the version while requests go on with the one before.
func (e *Edge) askConfidential(ctx context.Context) {
	if e.conf.src == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, confidentialWait)
	defer cancel()
	e.conf.mu.Lock()
	err := e.conf.ask(limited)
	e.conf.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		e.quiet.Do(func() { e.logger.WarnContext(ctx, "ingest: cannot ask for confidential tags", "err", err) })
	}
}
