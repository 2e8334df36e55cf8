package ledger

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/ingest/event"
)

// loader reads the keys of tenants into the filter, in the background. Until a
// tenant's keys are loaded, each of its ids is looked up in the store; after
// that only those that the filter knows.
//
// Nothing is missed: keys committed before the read began are read, and the
// core puts every later one into the filter itself.
type loader struct {
	store Store
	asks  chan []string
	parts chan loaded // bounded: a reader of keys waits for the core to take them
	queue []string    // tenants waiting to be asked for; used by the core's goroutine
}

type loaded struct {
	tenant string
	keys   []event.Key
	done   []string // tenants whose keys are complete
}

// loaderTenants is how many tenants one read takes.
const loaderTenants = 200

// loaderParts bounds the memory of keys on their way to the filter.
const loaderParts = 8

func newLoader(store Store) *loader {
	return &loader{store: store, asks: make(chan []string, 1), parts: make(chan loaded, loaderParts)}
}

// want asks for the keys of tenants that have just become known. A tenant
// without a head has no keys: it is loaded as it stands.
func (l *loader) want(c *core, heads []Head) {
	for i := range heads {
		l.queue = append(l.queue, heads[i].Tenant)
	}
	l.ask()
}

func (l *loader) ask() {
	if len(l.queue) == 0 {
		return
	}
	n := min(len(l.queue), loaderTenants)
	select {
	case l.asks <- l.queue[:n:n]:
		l.queue = l.queue[n:]
	default: // one read is waiting already
	}
}

// absorb puts what has been read into the core's filter.
func (l *loader) absorb(c *core) {
	for {
		select {
		case part := <-l.parts:
			if t := c.tenants[part.tenant]; t != nil {
				for i := range part.keys {
					c.filter.add(t.number, &part.keys[i])
				}
			}
			for _, id := range part.done {
				c.tenants[id].loaded = true
			}
		default:
			l.ask()
			return
		}
	}
}

// run reads until ctx ends.
func (l *loader) run(ctx context.Context, fail context.CancelCauseFunc) {
	for {
		select {
		case tenants := <-l.asks:
			if err := l.read(ctx, tenants); err != nil && ctx.Err() == nil {
				fail(fmt.Errorf("read keys: %w", err))
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (l *loader) read(ctx context.Context, tenants []string) error {
	err := l.store.Keys(ctx, tenants, func(tenant string, keys []event.Key) {
		l.send(ctx, loaded{tenant: tenant, keys: append([]event.Key(nil), keys...)})
	})
	if err != nil {
		return err
	}
	l.send(ctx, loaded{done: tenants})
	return ctx.Err()
}

func (l *loader) send(ctx context.Context, part loaded) {
	select {
	case l.parts <- part:
	case <-ctx.Done():
	}
}
