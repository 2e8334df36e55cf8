package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Defaults of Options.
const (
	DefaultInterval   = 10 * time.Second
	DefaultMaxEntries = 1 << 18 // 8 MiB of tiles
)

const (
	// restFactor bounds what signing may take of a process when there is more to
	// sign than fits an interval: it rests this many times as long as it worked.
	restFactor = 4
	// finalTime bounds the last round, when the process is asked to stop.
	finalTime = 10 * time.Second
	// maxTrees bounds the right edges that are kept in memory, 8 to 24 KiB each.
	// One that was given up is read again.
	maxTrees = 512
	// tenantsPerRound is how many tenants' ends are read at a time.
	tenantsPerRound = 500
)

// Options of a Checkpointer.
type Options struct {
	// Installation begins every origin; default DefaultInstallation.
	Installation string
	// Interval is how often new records are looked for; default DefaultInterval.
	Interval time.Duration
	// MaxEntries bounds the new records of one checkpoint; default
	// DefaultMaxEntries. More make several checkpoints.
	MaxEntries int64
	// Tenants are those whose logs this process signs: those that it writes. It
	// leaves out partitions that are in recovery.
	Tenants func() []tenant.ID
	// Witnesses are asked for cosignatures.
	Witnesses []Witness
}

func (o Options) withDefaults() Options {
	if o.Installation == "" {
		o.Installation = DefaultInstallation
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	return o
}

// Checkpointer signs one log of many tenants. Several at once for the same
// tenant do no harm: each builds on what is published, and loses the race or
// signs the very same bytes.
type Checkpointer struct {
	source Source
	store  Store
	dir    *Dir
	keys   Keys
	opts   Options
	log    *slog.Logger
	posts  *poster

	trees  map[tenant.ID]*grown // used by the goroutine of Run or Round
	signed map[tenant.ID]int64  // sizes of the newest checkpoints, likewise

	mu     sync.Mutex // protects what follows
	faults map[tenant.ID]*Fault
	status Status
}

// Status is what a Checkpointer has done and cannot do.
type Status struct {
	Log string
	// Checkpoints and Entries count what was signed since the process started.
	Checkpoints, Entries int64
	// LastRound is when the last round ended, LastError what kept it from
	// reaching every tenant, "" when it did.
	LastRound time.Time
	LastError string
	// Faults are the tenants for which signing has stopped.
	Faults []Fault
	// Alarms are the witnesses that refuse, with the reason.
	Alarms []string
}

// New makes a Checkpointer.
func New(source Source, store Store, dir *Dir, keys Keys, opts Options, log *slog.Logger) *Checkpointer {
	c := &Checkpointer{
		source: source, store: store, dir: dir, keys: keys, opts: opts.withDefaults(), log: log.With(slog.String("log", source.Log())),
		trees: make(map[tenant.ID]*grown), signed: make(map[tenant.ID]int64), faults: make(map[tenant.ID]*Fault),
	}
	c.posts = newPoster(c)
	return c
}

// Status copies the status.
func (c *Checkpointer) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Log = c.source.Log()
	for _, id := range slices.Sorted(maps.Keys(c.faults)) {
		s.Faults = append(s.Faults, *c.faults[id])
	}
	s.Alarms = c.posts.alarms()
	return s
}

// Run signs at the interval until ctx ends, and once more then.
func (c *Checkpointer) Run(ctx context.Context) error {
	var posting sync.WaitGroup
	posting.Go(func() { c.posts.run(ctx) })
	defer posting.Wait()
	for {
		started := time.Now()
		if err := c.Round(ctx); err != nil && ctx.Err() == nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "checkpoints are late", slog.Any("err", err))
		}
		rest := time.NewTimer(max(c.opts.Interval, restFactor*time.Since(started)))
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			final, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalTime)
			defer cancel()
			if err := c.Round(final); err != nil {
				c.log.LogAttrs(final, slog.LevelWarn, "the last checkpoints are missing", slog.Any("err", err))
			}
			return nil
		}
	}
}

// Round signs what is new of every tenant, once. A tenant whose log does not fit
// what was published is left alone from then on, loudly; the error is of what
// may pass: the store or the directory is away.
func (c *Checkpointer) Round(ctx context.Context) error {
	var errs []error
	for chunk := range slices.Chunk(c.opts.Tenants(), tenantsPerRound) {
		if err := c.chunk(ctx, chunk); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	err := errors.Join(errs...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.LastRound, c.status.LastError = time.Now(), ""
	if err != nil {
		c.status.LastError = err.Error()
	}
	return err
}

// chunk signs what is new of some tenants.
func (c *Checkpointer) chunk(ctx context.Context, ids []tenant.ID) error {
	ends, err := c.source.Ends(ctx, ids)
	if err != nil {
		return err
	}
	var first error
	for _, id := range ids {
		end := ends[id]
		size, known := c.signed[id]
		if c.halted(id) || known && end.Seq == size {
			continue
		}
		err := c.advance(ctx, id, end)
		var fault *Fault
		switch {
		case errors.As(err, &fault):
			c.halt(ctx, fault)
		case err != nil:
			c.forget(id)
			if first == nil {
				first = fmt.Errorf("tenant %s: %w", id, err)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return first
}

func (c *Checkpointer) halted(id tenant.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.faults[id] != nil
}

func (c *Checkpointer) halt(ctx context.Context, f *Fault) {
	c.forget(f.Tenant)
	c.mu.Lock()
	c.faults[f.Tenant] = f
	c.mu.Unlock()
	c.log.LogAttrs(ctx, slog.LevelError, "checkpoints halted", slog.String("tenant", string(f.Tenant)), slog.Int64("seq", f.Seq),
		slog.String("reason", f.Reason), slog.String("err", f.Detail))
}

func (c *Checkpointer) forget(id tenant.ID) {
	delete(c.trees, id)
	delete(c.signed, id)
}

// keep remembers a tenant's right edge, in place of another when there are many.
func (c *Checkpointer) keep(id tenant.ID, g *grown) {
	if _, ok := c.trees[id]; !ok && len(c.trees) >= maxTrees {
		for other := range c.trees {
			delete(c.trees, other)
			break
		}
	}
	c.trees[id] = g
}
