package main

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors"
	"github.com/tallystick/tallystick/processors/finding"
	"github.com/tallystick/tallystick/processors/rollup"
)

// gokaNanos is goka's CPU per event with state in memory, as the design measured
// it on such a machine (quality.md, "stateful processing").
const gokaNanos = 7600

// benchProcessors measures hop 5 without its stores: the CPU of one state
// update, with its share of what a plan emits, and of the whole hop from the
// broker on, which decodes and checks every entry.
func (r *benchRun) benchProcessors(ctx context.Context, k *kafkaBench, events, rounds int) error {
	entries, err := benchEntries(ctx, 5)
	if err != nil {
		return err
	}
	r.printf("processors (rollups of %d entries a plan, nothing stored)", len(entries))
	var updates, hops []sample
	for i := range rounds + 1 {
		u, err := measure(0, len(entries), func() error { return updateState(entries) })
		if err != nil {
			return err
		}
		h, err := measure(0, events, func() error { return k.process(ctx, int64(events)) })
		if err != nil {
			return err
		}
		if i > 0 {
			updates, hops = append(updates, u), append(hops, h)
		}
	}
	update, _ := cpuPerRow(updates)
	hop, _ := cpuPerRow(hops)
	r.printf("  %-28s %6.0f ns/entry of CPU; goka's in memory is %d", "state update", 1000*update, gokaNanos)
	r.printf("  %-28s %6.0f ns/entry of CPU, broker included", "whole hop 5", 1000*hop)
	r.set("state_update_ns", "%.0f", 1000*update)
	r.set("hop5_ns", "%.0f", 1000*hop)
	return nil
}

// updateState is one plan of a fresh processor.
func updateState(entries []chain.Entry) error {
	p := rollup.New()
	for i := range entries {
		if err := p.Apply(&entries[i]); err != nil {
			return err
		}
	}
	return p.Flush(func(*finding.Rollup) error { return nil })
}

// benchEntries are usage entries as the ledger makes them, of some batches.
func benchEntries(ctx context.Context, batches int) ([]chain.Entry, error) {
	var canonical [][]byte
	store := &capture{commit: func(b *ledger.Batch) {
		for i := range b.Rows {
			if b.Rows[i].Kind == chain.Usage {
				canonical = append(canonical, append([]byte(nil), b.Rows[i].Canonical...))
			}
		}
	}}
	if err := store.write(ctx, benchTenants(0, 1, 20), batches); err != nil {
		return nil, err
	}
	entries := make([]chain.Entry, len(canonical))
	for i := range entries {
		if err := entries[i].Decode(canonical[i]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// process runs hop 5 over the whole topic.
func (k *kafkaBench) process(ctx context.Context, events int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	runner, err := processors.New(processors.Parts{
		Ledger: void{}, Store: void{}, Snapshots: void{}, Sink: void{}, Log: warnings(),
		Processors: func() []processors.Processor { return []processors.Processor{rollup.New()} },
	}, processors.Options{FlushInterval: 20 * time.Millisecond})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx, k.cfg, true) }()
	for runner.Stats().Entries < events {
		select {
		case err := <-done:
			return fmt.Errorf("the processors ended early: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	return <-done
}

// void is the stores and the sink of processors whose results nobody wants.
type void struct{}

func (void) Reset()                                                            {}
func (void) Append(*chain.Entry, int64) error                                  { return nil }
func (void) AppendRollup(*finding.Rollup) error                                { return nil }
func (void) Transient(error) bool                                              { return false }
func (void) Largest(context.Context) (map[int32]int64, error)                  { return nil, nil }
func (void) Record(context.Context, *processors.Plan) error                    { return nil }
func (void) LastCommits(context.Context) (map[int32]int64, error)              { return nil, nil }
func (void) Open(context.Context, string) (*processors.Plan, error)            { return nil, nil }
func (void) Save(context.Context, int32, *processors.Snapshot) error           { return nil }
func (void) Load(context.Context, int32, string) (*processors.Snapshot, error) { return nil, nil }
func (void) Store(context.Context, *processors.Plan) error                     { return nil }

func (void) Checkpoint(context.Context, int32) (processors.Checkpoint, error) {
	return processors.Checkpoint{}, nil
}

func (void) Confirm(context.Context, *processors.Plan, []processors.Covered) error { return nil }

func (void) Covered(context.Context, []string) ([]processors.Covered, error) { return nil, nil }

// Frames is never asked for: the topic holds everything.
func (void) Frames(context.Context, int32, int64, int64, func(*chain.Frame) error) error {
	return processors.ErrMissing
}
