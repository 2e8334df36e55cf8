// Package load is the load generator of `tallystick emit`, of the smoke test
// and of the end-to-end benchmark: it replays a usage trace or makes up a
// realistic one, disturbs it on purpose, sends it to the public ingest API, and
// says what the ledger must come to (internal/oracle).
//
// It promises:
//   - Determinism. A seed, a source and a time base give the same events, byte
//     for byte, whatever the number of connections, the speed, or the chunks the
//     load is cut into. Decisions are drawn from (seed, position), never from a
//     shared stream of random numbers.
//   - Honest books. An event counts in the expectation when the server has
//     acknowledged it, and only then. What was sent without an answer at the end
//     is reported as in doubt, not guessed.
//   - The same bytes again. A request that got no answer is sent again as it was,
//     for as long as it takes; nothing is skipped.
//   - Order per event id. An id's conflicting twin is sent only after the first
//     body has been acknowledged.
//
// It never imports a stage, the price book or the ledger: it is a client, and
// its oracle must not share their mistakes.
package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/oracle"
)

// Run sends a load and returns what was sent and what must come of it.
//
// When stop (Options.Stop) is closed it ends early but in order: nothing new is
// started, what is under way is finished. When ctx ends it returns at once with
// the result so far, whose InDoubt says how much got no answer, and an error
// that wraps ctx.Err(). Other errors: ErrOptions, ErrTrace, ErrAuth, ErrRefused.
func Run(ctx context.Context, o Options) (*Result, error) {
	src, plan, err := open(&o)
	if err != nil {
		return nil, err
	}
	defer src.close()
	s := newSender(&o, plan)
	defer s.client.CloseIdleConnections()
	if !o.SkipTenants {
		if err := s.createTenants(ctx); err != nil {
			return nil, err
		}
	}
	g := newGenerator(&o, plan, src, newPacer(&o))
	start := time.Now()
	runErr := s.run(ctx, g)
	return s.result(g, time.Since(start)), runErr
}

// Events runs the generator without sending: fn sees every event's encoding in
// order of sending, as if each were acknowledged at once, and the expectation
// is that of the whole load. It is how tests and benchmarks look at a load.
func Events(o Options, fn func(encoded []byte, out *oracle.Outcome) error) (*oracle.Expectation, error) {
	if o.URL == "" {
		o.URL = "http://unused.invalid"
	}
	src, plan, err := open(&o)
	if err != nil {
		return nil, err
	}
	defer src.close()
	g := newGenerator(&o, plan, src, nil)
	b := newBatch(&o)
	for {
		b.reset()
		err := g.fill(b)
		if err != nil && !errors.Is(err, errEnd) {
			return nil, err
		}
		for i := range b.items {
			if ferr := fn(b.event(i), &b.items[i].outcome); ferr != nil {
				return nil, fmt.Errorf("load: %w", ferr)
			}
			plan.tally.Add(&b.items[i].outcome)
		}
		g.acknowledged(b)
		if err != nil && !g.pending() {
			return plan.tally.Expectation(), nil
		}
	}
}

// open checks the options and prepares the source and all that is fixed.
func open(o *Options) (source, *plan, error) {
	if err := o.prepare(); err != nil {
		return nil, nil, err
	}
	src, err := openSource(o)
	if err != nil {
		return nil, nil, err
	}
	p := newPlan(o, src.models(), src.profiles())
	if before := o.before(); before != nil {
		if err := p.tally.Restore(before); err != nil {
			src.close()
			return nil, nil, fmt.Errorf("%w: %w", ErrOptions, err)
		}
	}
	return src, p, nil
}
