package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/load"
)

// The demo load.
const (
	demoHistory     = 14 * 24 * time.Hour
	demoEvents      = 150_000
	demoChunk       = 10_000 // calls between two notes of the place
	demoRate        = 50     // live, per second
	demoSeed        = 1
	demoConnections = 2
	// demoStopTime is how long requests under way may take at the end.
	demoStopTime = 5 * time.Second
)

// demo feeds a server with made-up usage: at the first start of a data directory
// two weeks of history, then calls as they happen.
//
// It sends nothing twice: its place in the history is noted in the data
// directory, and a history that was cut off is continued. After a kill the calls
// since the last note are sent again as they were, which the ledger counts as
// duplicates.
type demo struct {
	dir  string
	load load.Options
	log  *slog.Logger

	stopping chan struct{}
	done     chan struct{}
	cancel   context.CancelFunc
	once     sync.Once

	mu    sync.Mutex // protects all below
	phase string     // history, live or failed
	sent  int64      // acknowledged, of the phase
	err   error
}

// demoStart is written before the first event: it is what makes the events of a
// history that begins again the same.
type demoStart struct {
	Base time.Time `json:"base"`
}

// newDemo is a demo that sends to the server at url once it is started. dir is
// where it keeps its place.
func newDemo(dir, url, token string, log *slog.Logger) *demo {
	d := &demo{dir: dir, log: log, phase: "history", stopping: make(chan struct{}), done: make(chan struct{})}
	d.load = load.Options{
		URL: url, Token: token, Connections: demoConnections, Stop: d.stopping, Log: log,
		Faults: load.Faults{Duplicates: 0.005, Late: 0.01, Unpriced: 0.003},
	}
	return d
}

// start sends until stop is called.
func (d *demo) start() {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() {
		defer close(d.done)
		d.end(d.run(ctx))
	}()
}

// stop ends the load in order: what is under way is finished and noted.
func (d *demo) stop() {
	d.once.Do(func() { close(d.stopping) })
	select {
	case <-d.done:
	case <-time.After(demoStopTime):
		d.cancel()
		<-d.done
	}
	d.cancel()
}

func (d *demo) end(err error) {
	if err == nil || errors.Is(err, load.ErrStopped) || errors.Is(err, context.Canceled) {
		return
	}
	d.log.Error("the demo load ended", "err", err)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.phase, d.err = "failed", err
}

func (d *demo) run(ctx context.Context) error {
	if err := d.history(ctx); err != nil {
		return err
	}
	if stopped(d.stopping) {
		return nil
	}
	live := d.load
	live.Live, live.Rate = true, demoRate
	live.Seed = uint64(time.Now().UnixNano()) // every start has events of its own
	d.enter("live", 0)
	live.OnProgress = func(_, acked int64) { d.progress(acked) }
	_, err := load.Run(ctx, live)
	return err
}

// history sends what of the history is left, in chunks.
func (d *demo) history(ctx context.Context) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	base, err := d.base()
	if err != nil {
		return err
	}
	o := d.load
	o.Events, o.History, o.Base, o.Seed, o.Limit = demoEvents, demoHistory, base, demoSeed, demoChunk
	place := filepath.Join(d.dir, "history.json")
	if o.Resume, err = load.ReadState(place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("the demo's place is lost; sending its history again, which the ledger sees", "err", err)
	}
	for !stopped(d.stopping) {
		sent := int64(0)
		if o.Resume != nil {
			sent = o.Resume.Next
		}
		if sent >= demoEvents {
			return nil
		}
		d.enter("history", sent)
		o.OnProgress = func(_, acked int64) { d.progress(min(sent+acked, demoEvents)) }
		res, err := load.Run(ctx, o)
		if err != nil {
			return err
		}
		if err := res.WriteFile(place); err != nil {
			return err
		}
		o.Resume, o.SkipTenants = &res.State, true
	}
	return nil
}

// base is when the history ends: the time of the first start.
func (d *demo) base() (time.Time, error) {
	path := filepath.Join(d.dir, "start.json")
	text, err := os.ReadFile(path)
	var start demoStart
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &start); err != nil || start.Base.IsZero() {
			return time.Time{}, fmt.Errorf("demo: %s does not say when the demo began; remove it to begin again", path)
		}
		return start.Base, nil
	case !errors.Is(err, fs.ErrNotExist):
		return time.Time{}, fmt.Errorf("demo: %w", err)
	}
	start.Base = time.Now().UTC().Truncate(time.Millisecond)
	if text, err = json.Marshal(start); err != nil {
		return time.Time{}, fmt.Errorf("demo: %w", err)
	}
	return start.Base, writeWhole(path, text)
}

// writeWhole writes a file whole or not at all.
func writeWhole(path string, text []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

func (d *demo) enter(phase string, sent int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.phase, d.sent = phase, sent
}

// progress takes a running total; an older one may come after a newer.
func (d *demo) progress(acked int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent = max(d.sent, acked)
}

// lines say on a terminal what the demo does.
func (d *demo) lines(c palette) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := ""
	switch d.phase {
	case "history":
		text = fmt.Sprintf("loading two weeks of synthetic history: %d %% of %s events", 100*d.sent/demoEvents, group(demoEvents))
	case "live":
		text = fmt.Sprintf("%d synthetic events/s as they happen: %s so far", demoRate, group(d.sent))
	case "failed":
		return []string{c.paint(c.bad, "  demo         "+d.err.Error())}
	}
	return []string{c.paint(c.dim, "  demo         ") + text, c.paint(c.dim, "               Ctrl-C stops; the data stays, and the next run goes on with it")}
}

// pair says the same as key=value.
func (d *demo) pair() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return fmt.Sprintf(" demo=failed demo_error=%q", d.err)
	}
	return fmt.Sprintf(" demo=%s demo_sent=%d", d.phase, d.sent)
}
