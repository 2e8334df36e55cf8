package processors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/processors/rollup"
)

func testLog() *slog.Logger {
	if os.Getenv("TALLYSTICK_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

func rollups() []Processor { return []Processor{&position{}, rollup.New()} }

// process is a Runner that runs partitions of the world.
type process struct {
	*life
	sink   *sink
	r      *Runner
	cancel context.CancelFunc
	done   sync.WaitGroup
	stop   func()
	mu     sync.Mutex
	halted map[int32]error
}

var quick = Options{RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond}

// start runs a process on the given partitions. change may arm its life.
func start(w *world, opts Options, change func(*life), partitions ...int32) *process {
	p := &process{life: newLife(w), halted: map[int32]error{}}
	if change != nil {
		change(p.life)
	}
	p.sink = &sink{life: p.life}
	var err error
	p.r, err = New(Parts{Ledger: p.life, Store: p.life, Snapshots: p.life, Sink: p.sink, Processors: rollups, Log: testLog()}, opts)
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.stop = p.r.Start(ctx)
	for _, id := range partitions {
		p.done.Go(func() {
			if err := p.r.RunPartition(ctx, id, source{p.life, id}); err != nil {
				p.mu.Lock()
				p.halted[id] = err
				p.mu.Unlock()
			}
		})
	}
	return p
}

// end stops the process, in order or, when it is dead, as a kill does.
func (p *process) end() {
	p.cancel()
	p.done.Wait()
	p.stop()
}

// settle waits, in the bubble's time, until everything has been stored.
func settle(w *world) error {
	var err error
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		if err = w.check(); err == nil {
			return nil
		}
	}
	return err
}

func mustSettle(t *testing.T, w *world) {
	t.Helper()
	if err := settle(w); err != nil {
		t.Fatal(err)
	}
}

func TestEveryEntryIsStoredOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2)
		p := start(w, quick, nil, 0, 1)
		defer p.end()
		for n := range 20 {
			for id := range int32(2) {
				number := w.commit(id, 4, n%5, 1)
				w.publish(id, number)
			}
			time.Sleep(50 * time.Millisecond)
		}
		mustSettle(t, w)
		s := p.r.Stats()
		if s.Entries == 0 || s.Plans == 0 || s.Plans > 10 || s.Partitions[0].StoredCommit != 20 || s.Partitions[0].PendingRows != 0 || s.PendingBytes != 0 {
			t.Errorf("stats = %+v", s)
		}
		time.Sleep(2 * time.Second)
		if lag := p.r.Stats().Partitions[1].Lag(); lag != 0 {
			t.Errorf("lag = %d", lag)
		}
	})
}

// A process is killed at each of its operations in turn, before and after it
// takes effect; the next one finds everything in order.
func TestKilledAtEveryStep(t *testing.T) {
	for _, after := range []bool{false, true} {
		for step := int64(1); step <= 12; step++ {
			t.Run(fmt.Sprint("step ", step, " after ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(3)
					p := start(w, quick, func(l *life) { l.kill, l.after = step, after }, 0, 1, 2)
					defer func() { p.end() }() // of the process that lives then
					// It gets work until it has made all of its operations.
					for n, died := 0, false; !died; n++ {
						if n == 300 {
							t.Fatalf("the process made only %d operations", p.ops.Load())
						}
						for id := range int32(3) {
							w.publish(id, w.commit(id, 2, n%3))
						}
						select {
						case <-p.died:
							died = true
						case <-time.After(200 * time.Millisecond):
						}
					}
					p.end()
					if w.check() == nil {
						t.Log("killed when all was stored")
					}
					p = start(w, quick, nil, 0, 1, 2)
					mustSettle(t, w)
				})
			})
		}
	}
}

func TestGapsAreFilledFromTheLedger(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world)
		seen int64 // frames that bring nothing new, when the ledger is not needed
	}{
		{"a frame in the middle of a commit is lost", func(w *world) {
			w.publish(0, w.commit(0, 9), 1)
			w.publish(0, w.commit(0, 2))
		}, 0},
		{"the last frame of the newest commit is lost", func(w *world) { w.publish(0, w.commit(0, 9), 2) }, 0},
		{"a whole commit is lost", func(w *world) {
			w.commit(0, 3)
			w.publish(0, w.commit(0, 3))
		}, 0},
		{"the newest commits are lost", func(w *world) {
			w.commit(0, 3)
			w.commit(0, 3, 3)
		}, 0},
		{"commits are empty", func(w *world) {
			w.commit(0)
			w.commit(0)
			w.publish(0, w.commit(0, 1))
			w.commit(0)
		}, 0},
		{"garbage between frames", func(w *world) {
			w.append(0, []byte("garbage"))
			w.append(0, nil)
			w.publish(0, w.commit(0, 5))
		}, 0},
		{"a frame of another partition", func(w *world) {
			f := w.commits[0][0][0]
			f.Partition = 7
			w.append(0, encode(&f))
			w.publish(0, w.commit(0, 5))
		}, 0},
		{"a forged frame in the place of the true one", func(w *world) {
			n := w.commit(0, 2)
			f := w.commits[0][n-1][0]
			f.FirstSeq += 5
			w.append(0, encode(&f))
			w.publish(0, w.commit(0, 1))
		}, 0},
		{"a forged frame of a commit that is far away", func(w *world) {
			f := w.commits[0][0][0]
			f.Batch = 1 << 62
			w.append(0, encode(&f))
			w.publish(0, w.commit(0, 5))
		}, 0},
		{"commits are published twice", func(w *world) {
			for range 3 {
				w.publish(0, w.commit(0, 7))
			}
			for n := range int64(4) {
				w.publish(0, n+1)
			}
		}, 11},
		{"two publishers overlap", func(w *world) {
			n := w.commit(0, 9)
			frames := cut(w.commits[0][n-1], 3)
			for _, i := range []int{0, 1, 0, 1, 2, 1, 2} {
				w.append(0, encode(&frames[i]))
			}
		}, 4},
		{"a commit is published again cut in another way", func(w *world) {
			n := w.commit(0, 9)
			a, b := cut(w.commits[0][n-1], 4), cut(w.commits[0][n-1], 3)
			w.append(0, encode(&a[0]))
			for i := range b {
				w.append(0, encode(&b[i]))
			}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(1)
				w.publish(0, w.commit(0, 3, 1))
				p := start(w, quick, nil, 0)
				defer p.end()
				c.do(w)
				mustSettle(t, w)
				if got := p.r.Stats().Partitions[0]; c.seen > 0 && (got.Seen != c.seen || got.Backfilled != 0) {
					t.Errorf("%+v, want %d frames that are known and nothing from the ledger", got, c.seen)
				}
				w.publish(0, w.commit(0, 2))
				mustSettle(t, w)
			})
		})
	}
}

func TestTheTopicIsNotTheTruth(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world)
	}{
		{"recreated and empty", func(w *world) { w.recreate(0, 2) }},
		{"recreated with the newest commit only", func(w *world) {
			w.recreate(0, 2)
			w.publish(0, 6)
		}},
		{"recreated with everything", func(w *world) {
			w.recreate(0, 2)
			for n := range int64(6) {
				w.publish(0, n+1)
			}
		}},
		{"retention passed the checkpoint", func(w *world) { w.truncate(0, 100) }},
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ", running ", running), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(1)
					for range 3 {
						w.publish(0, w.commit(0, 4, 4))
					}
					p := start(w, quick, nil, 0)
					mustSettle(t, w)
					if !running {
						p.end()
					}
					for range 3 {
						w.publish(0, w.commit(0, 4, 4))
					}
					c.do(w)
					if !running {
						p = start(w, quick, nil, 0)
					}
					mustSettle(t, w)
					w.publish(0, w.commit(0, 2))
					mustSettle(t, w)
					p.end()
					if got := w.cps[0].Resume.Topic; got != w.log[0].topic {
						t.Errorf("the checkpoint is of topic %x, the log is %x", got, w.log[0].topic)
					}
				})
			})
		}
	}
}

func TestHalts(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(w *world, p *process)
		want  error
	}{
		{"clickhouse is ahead", func(w *world, _ *process) { w.ch.largest[0] = 99 }, ErrAhead},
		{"clickhouse lost plans", func(w *world, _ *process) { w.ch.largest[0] = 1 }, ErrBehind},
		{"clickhouse refuses", func(w *world, p *process) {
			p.sink.refuse = errors.New("no such table")
			w.publish(0, w.commit(0, 1))
		}, ErrRefused},
		{"the ledger's entries do not follow each other", func(w *world, _ *process) {
			n := w.commit(0, 2)
			w.commits[0][n-1][0].FirstSeq++
			w.publish(0, n)
		}, ErrCorrupt},
		{"the ledger's entry does not decode", func(w *world, _ *process) {
			n := w.commit(0, 2)
			w.commits[0][n-1][0].Entries[1].Canonical = []byte{1, 1, 200}
			w.publish(0, n)
		}, ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(2)
				for range 3 {
					w.publish(0, w.commit(0, 4))
					w.publish(1, w.commit(1, 4))
				}
				p := start(w, quick, nil, 0, 1)
				mustSettle(t, w)
				p.end()
				p = start(w, quick, nil)
				c.spoil(w, p)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				p.done.Go(func() { _ = p.r.RunPartition(ctx, 1, source{p.life, 1}) })
				p.done.Go(func() { done <- p.r.RunPartition(ctx, 0, source{p.life, 0}) })
				select {
				case err := <-done:
					if !errors.Is(err, c.want) || p.r.Stats().Partitions[0].Halted == nil {
						t.Errorf("halted with %v, want %v", err, c.want)
					}
				case <-time.After(time.Hour):
					t.Error("did not halt")
				}
				if c.want != ErrRefused { // a sink that refuses concerns everybody
					n := w.commit(1, 3)
					w.publish(1, n)
					time.Sleep(5 * time.Second)
					if got := p.r.Stats().Partitions[1]; got.StoredCommit != n || got.Halted != nil {
						t.Errorf("the other partition stands at %+v, want commit %d", got, n)
					}
				}
				cancel()
				p.end()
			})
		})
	}
}

// What is away comes back, and nothing is lost or doubled meanwhile.
func TestTransientFailuresPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2)
		w.hidden[0] = 1 // the ledger itself is recovering
		p := start(w, quick, nil, 0, 1)
		defer p.end()
		w.commit(0, 3)
		for n := range 10 {
			w.publish(0, w.commit(0, 3))
			w.publish(1, w.commit(1, 3))
			p.away.Store(int64(n))
			time.Sleep(300 * time.Millisecond)
		}
		w.mu.Lock()
		w.hidden[0] = 0
		w.mu.Unlock()
		mustSettle(t, w)
	})
}

// While ClickHouse is away memory stays bounded, and a release does not wait
// for it for ever.
func TestBackpressureAndRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2)
		opts := quick
		opts.MaxPendingBytes = 20_000
		p := start(w, opts, func(l *life) { l.away.Store(1 << 60) }, 0, 1)
		for range 200 {
			w.publish(0, w.commit(0, 10))
			w.publish(1, w.commit(1, 10))
		}
		time.Sleep(time.Minute)
		if got := p.r.Stats().PendingBytes; got < opts.MaxPendingBytes/2 || got > opts.MaxPendingBytes+20_000 {
			t.Errorf("%d bytes are pending, the bound is %d", got, opts.MaxPendingBytes)
		}
		begin := time.Now()
		p.end()
		if took := time.Since(begin); took > 2*releaseTime {
			t.Errorf("the end took %v", took)
		}
		if got := p.r.budget.used.Load(); got != 0 {
			t.Errorf("%d bytes are left behind", got)
		}
		p = start(w, opts, nil, 0, 1)
		defer p.end()
		mustSettle(t, w)
	})
}

// Two processes believe to own the same partitions, and one plan is left by a
// third. Whoever settles it, everything is stored once.
func TestTwoProcessesSettleOnePlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3)
		publish := func(rounds int) {
			for range rounds {
				for id := range int32(3) {
					w.publish(id, w.commit(id, 2, 1))
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		killed := start(w, quick, func(l *life) { l.kill, l.after = 2, true }, 0, 1, 2) // stored, not confirmed
		publish(5)
		<-killed.died
		killed.end()
		if len(w.plans) != 1 {
			t.Fatalf("%d plans are open", len(w.plans))
		}
		a, b := start(w, quick, nil, 0, 1, 2), start(w, quick, nil, 0, 1, 2)
		// Who wins a round is the scheduler's choice: they go on until each has
		// won some.
		for rounds := 0; a.r.Stats().Entries == 0 || b.r.Stats().Entries == 0; rounds++ {
			if rounds == 100 {
				t.Fatal("one of the two stored nothing: nothing was contended")
			}
			publish(30)
		}
		a.end()
		publish(5)
		mustSettle(t, w)
		b.end()
		if a.r.Stats().Settled+b.r.Stats().Settled == 0 {
			t.Error("nobody settled the plan")
		}
	})
}

// A partition moves from one process to another in order.
func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2)
		for range 5 {
			w.publish(0, w.commit(0, 3))
			w.publish(1, w.commit(1, 3))
		}
		a := start(w, quick, nil, 0, 1)
		mustSettle(t, w)
		a.end()
		if len(w.snapshots) != 4 {
			t.Errorf("%d snapshots were kept at the end, want 4", len(w.snapshots))
		}
		for id := range int32(2) {
			if got, want := w.cps[id].Resume.Offset, int64(len(w.log[id].recs)); got != want {
				t.Errorf("partition %d resumes at offset %d, the log ends at %d", id, got, want)
			}
		}
		w.publish(0, w.commit(0, 3))
		w.publish(1, w.commit(1, 3))
		b, c := start(w, quick, nil, 0), start(w, quick, nil, 1)
		defer b.end()
		defer c.end()
		mustSettle(t, w)
		for id, s := range map[int32]Stats{0: b.r.Stats(), 1: c.r.Stats()} {
			if got := s.Partitions[id]; got.Backfilled != 0 || got.Seen != 0 || got.Entries != 3 {
				t.Errorf("partition %d after a hand-over in order: %+v", id, got)
			}
		}
	})
}

// A process that was stopped for long between recording and storing does not
// send a plan that another one has settled meanwhile: ClickHouse may have
// forgotten its token.
func TestAnOldPlanIsNotSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		a := start(w, quick, nil, 0)
		defer a.end()
		time.Sleep(time.Second)
		w.mu.Lock()
		a.sink.away = errAway // it cannot reach ClickHouse
		w.mu.Unlock()
		w.publish(0, w.commit(0, 3))
		time.Sleep(2 * time.Second)
		w.mu.Lock()
		open := len(w.plans)
		w.mu.Unlock()
		if open != 1 {
			t.Fatalf("%d plans are open", open)
		}
		b := start(w, quick, nil, 0)
		defer b.end()
		mustSettle(t, w)
		time.Sleep(openPlanCheck)
		w.mu.Lock()
		w.ch.tokens = map[string]string{} // a thousand inserts later
		a.sink.away = nil
		w.mu.Unlock()
		w.publish(0, w.commit(0, 3))
		mustSettle(t, w)
	})
}

// The state after snapshot and replay is, to the bit, the state of a process
// that never stopped.
func TestSnapshotAndReplayGiveTheSameState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		opts := quick
		opts.SnapshotInterval = 3 * time.Second
		p := start(w, opts, nil, 0)
		states := map[string]bool{}
		for range 60 {
			w.publish(0, w.commit(0, 4, 2))
			time.Sleep(200 * time.Millisecond)
		}
		mustSettle(t, w)
		if p.r.Stats().Snapshots < 2 {
			t.Fatal("no snapshots were kept")
		}
		p.end()
		kept := w.snapshots["0rollup"]
		for name, from := range map[string]func(){
			"snapshot":         func() {},
			"replay":           func() { delete(w.snapshots, "0rollup") },
			"damaged snapshot": func() { bad := kept; bad.State = []byte{1, 2, 3, 4, 5, 6}; w.snapshots["0rollup"] = bad },
			"other version":    func() { old := kept; old.Version = 0; w.snapshots["0rollup"] = old },
			"later snapshot":   func() { late := kept; late.Commit += 5; w.snapshots["0rollup"] = late },
		} {
			w.snapshots["0rollup"] = kept
			from()
			q := start(w, opts, nil)
			s, err := q.r.storer.restore(context.Background(), 0, int64(len(w.commits[0])))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			states[string(s.procs[0].Snapshot(nil))+string(s.procs[1].Snapshot(nil))] = true
			q.end()
		}
		if len(states) != 1 {
			t.Errorf("%d different states", len(states))
		}
	})
}

// Any mixture of publication, loss, duplication, kills and failures ends with
// the sums of the ledger.
func TestAnyScheduleGivesTheLedger(t *testing.T) {
	type step struct {
		Kind, Partition, A, B int
	}
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.IntRange(0, 11).Draw(rt, "kind"), rapid.IntRange(0, 2).Draw(rt, "partition"),
				rapid.IntRange(0, 8).Draw(rt, "a"), rapid.IntRange(0, 8).Draw(rt, "b")}
		}), 1, 60).Draw(rt, "steps")
		var err error
		synctest.Test(t, func(*testing.T) {
			w := newWorld(3)
			opts := quick
			opts.MaxPlanRows, opts.FlushInterval, opts.SnapshotInterval, opts.MaxPendingBytes = 15, 100*time.Millisecond, time.Second, 8000
			p := start(w, opts, nil, 0, 1, 2)
			topic := byte(2)
			for _, s := range steps {
				id := int32(s.Partition)
				switch s.Kind {
				case 0, 1, 2, 3:
					w.publish(id, w.commit(id, s.A, s.B))
				case 4:
					w.commit(id, s.A) // never published
				case 5:
					w.publish(id, w.commit(id, s.A+3, s.B), s.A%3)
				case 6:
					if n := len(w.commits[id]); n > 0 {
						w.publish(id, int64(s.A%n)+1)
					}
				case 7:
					time.Sleep(time.Duration(s.A) * 60 * time.Millisecond)
				case 8:
					p.away.Store(int64(s.A))
				case 9: // killed at one of its next operations, and started again
					p.die()
					p.end()
					p = start(w, opts, func(l *life) { l.kill, l.after = int64(s.A), s.B%2 == 0 }, 0, 1, 2)
				case 10:
					w.recreate(id, topic)
					topic++
				case 11:
					w.truncate(id, s.A)
				}
			}
			p.die()
			p.end()
			p = start(w, opts, nil, 0, 1, 2)
			err = settle(w)
			if err != nil {
				err = fmt.Errorf("%w; halted %v", err, p.halted)
			}
			p.end()
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}
