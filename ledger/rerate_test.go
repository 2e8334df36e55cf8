package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// rerateWorld is a ledger whose writer is a bench, and the store and log of a
// Rerater that dies now and then.
type rerateWorld struct {
	*bench
	rng    *rand.Rand
	chaos  float64
	job    RerateJob // as stored
	state  string
	owner  string
	writes int

	candidate []byte // a book
}

var errKilled = errors.New("killed")

func (w *rerateWorld) dies() bool { return w.rng.Float64() < w.chaos }

func (w *rerateWorld) ClaimRerate(_ context.Context, tenants []string, owner string, _ time.Duration) (RerateJob, bool, error) {
	if w.state != "running" || !slices.Contains(tenants, w.job.Tenant) {
		return RerateJob{}, false, nil
	}
	w.owner = owner
	if w.job.Last == 0 {
		w.job.Last = int64(len(w.db.entries[w.job.Tenant]))
	}
	return w.job, true, nil
}

func (w *rerateWorld) SaveRerate(_ context.Context, job *RerateJob, owner string, _ time.Duration) error {
	if owner != w.owner || w.state != "running" {
		return ErrLease
	}
	if w.dies() {
		return errKilled
	}
	w.job = *job
	if w.dies() { // and nobody was told
		return errKilled
	}
	return nil
}

func (w *rerateWorld) EndRerate(_ context.Context, job *RerateJob, owner, failure string) error {
	if owner != w.owner || w.state != "running" {
		return ErrLease
	}
	if w.dies() {
		return errKilled
	}
	w.job = *job
	if w.state = "done"; failure != "" {
		w.state = failure
	}
	return nil
}

func (w *rerateWorld) RerateStates(_ context.Context, job *RerateJob, after, upTo int64) (out []RerateState, err error) {
	newest := map[int64]RerateState{}
	for i, e := range w.entries(job.Tenant) {
		if n, ok := e.Net(); ok {
			newest[n.Seq] = RerateState{e.Seq, w.db.entries[job.Tenant][i].Canonical}
		}
	}
	for seq := after + 1; seq <= upTo; seq++ {
		if s, ok := newest[seq]; ok {
			out = append(out, s)
		}
	}
	return out, nil
}

func (w *rerateWorld) NewestBook(context.Context, int32, chain.Hash) (chain.Hash, []byte, error) {
	for _, c := range slices.Backward(w.db.controls) {
		if c.Kind == event.ControlPriceBook {
			return c.Hash, c.Content, nil
		}
	}
	return chain.Hash{}, nil, nil
}

func (w *rerateWorld) CandidateBook(context.Context, string) ([]byte, error) { return w.candidate, nil }

// NextOffset lets hop 3 go on, sometimes.
func (w *rerateWorld) NextOffset(context.Context, int32) (int64, error) {
	if w.rng.IntN(2) == 0 {
		w.catchUp()
	}
	return w.db.state.NextOffset, nil
}

// ProduceBatch writes all records or, dying, a beginning of them.
func (w *rerateWorld) ProduceBatch(_ context.Context, recs []kafka.Record, results []kafka.Result) error {
	n, err := len(recs), error(nil)
	if w.dies() {
		n, err = w.rng.IntN(len(recs)+1), errKilled
	}
	for i := range recs[:n] {
		results[i].Offset = w.m.log.add(string(recs[i].Key), recs[i].Value)
	}
	w.writes += n
	return err
}

// catchUp lets hop 3 take what is in the log.
func (w *rerateWorld) catchUp() {
	if w.from < len(w.m.log.recs) {
		w.batch()
	}
}

// rerate runs a job to its end with Reraters that die, and returns it.
func (w *rerateWorld) rerate(t *testing.T, id string) RerateJob {
	t.Helper()
	w.job, w.state = RerateJob{Tenant: id, ID: "job", To: 1 << 62, AskedAt: 1_760_000_009_000_000_000}, "running"
	for n := 0; w.state == "running"; n++ {
		if n > 1000 {
			t.Fatalf("the job does not end: %+v", w.job)
		}
		r := NewRerater(w, w, kafka.Topics{}, simTopic, fmt.Sprint("owner-", n), func() []tenant.ID { return []tenant.ID{"other", tenant.ID(id)} },
			slog.New(slog.DiscardHandler))
		r.size = 150
		if worked, err := r.next(t.Context()); !worked || err != nil && !errors.Is(err, errKilled) {
			t.Fatalf("worked %v, %v", worked, err)
		}
		if w.rng.IntN(2) == 0 {
			w.catchUp() // before the next one looks
		}
	}
	w.catchUp()
	return w.job
}

func (w *rerateWorld) publish(rate int) {
	w.m.control(w.m.system, &event.Control{Kind: event.ControlPriceBook, Version: fmt.Sprintf("b%d", rate), Content: simBook(rate).Marshal()})
	w.batch()
}

// nets are what the tenant's usage entries come to, by their number, and how
// many corrections there are.
func (w *rerateWorld) nets(id string) (nets map[int64]chain.Net, corrections int, difference money.Sum) {
	nets = map[int64]chain.Net{}
	for _, e := range w.entries(id) {
		if n, ok := e.Net(); ok {
			nets[n.Seq] = n
		}
		if e.Kind == chain.Correction {
			corrections++
			if err := difference.AddPico(e.Cost); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	return nets, corrections, difference
}

// A job corrects each entry whose price differs once, however often it dies; to
// go back to an earlier book corrects them again, and a dry run none.
func TestRerate(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testRerate(t, rand.New(rand.NewPCG(seed, 3))) })
		})
	}
}

func testRerate(t *testing.T, rng *rand.Rand) {
	w := &rerateWorld{bench: newBench(t), rng: rng}
	acme := w.m.names[0]
	w.m.makeTenants(acme, w.m.names[1])
	const unpriced, priced = 200, 500
	usage := func(from, n int) {
		for i := range n {
			value, _ := w.m.usage(acme, fmt.Sprint("e-", from+i), int64(1+i%5), "p")
			w.m.add(acme, value)
		}
		w.batch()
	}
	usage(0, unpriced)
	if w.rerate(t, acme); w.state != errNoBook.Error() {
		t.Fatalf("without a price book the job is %q", w.state)
	}
	w.publish(2)
	usage(unpriced, priced)

	check := func(what string, rate, changed, corrections int) {
		t.Helper()
		before, already, difference := w.nets(acme)
		job := w.rerate(t, acme)
		if w.state != "done" || job.Changed != int64(changed) || job.LookedAt != unpriced+priced {
			t.Errorf("%s: %q %+v, want %d changed", what, w.state, job, changed)
		}
		nets, n, sum := w.nets(acme)
		if n-already != corrections {
			t.Errorf("%s: %d corrections, want %d", what, n-already, corrections)
		}
		for seq, net := range nets {
			want := before[seq]
			if corrections > 0 {
				want.Priced, want.Cost = true, money.Pico(net.Tokens[0])*money.Pico(rate)
			}
			if net != want {
				t.Fatalf("%s: entry %d comes to %+v, want %+v", what, seq, net, want)
			}
		}
		if corrections > 0 {
			if err := difference.Add(job.Difference); err != nil || difference != sum {
				t.Errorf("%s: the job says %v, the corrections add up to %v", what, job.Difference, sum)
			}
		}
	}
	check("a price at last", 2, unpriced, unpriced)
	check("again", 2, 0, 0)
	w.publish(3)
	w.chaos = 0.4
	check("another price, killed", 3, unpriced+priced, unpriced+priced)
	w.publish(2)
	check("back, killed", 2, unpriced+priced, unpriced+priced)
	w.chaos = 0
	w.publish(0) // the model left the book: what was paid was paid
	check("no price", 2, 0, 0)
	w.publish(1)
	writes := w.writes
	if job := w.dry(t, acme); job.Changed != unpriced+priced || w.writes != writes {
		t.Errorf("a dry run: %+v, %d writes", job, w.writes-writes)
	}
	if duplicates := w.db.counts[[2]string{acme, ""}]; duplicates.Conflicts+duplicates.Rejected > 0 {
		t.Errorf("counters %+v", duplicates)
	}
}

// dry runs a job that corrects nothing.
func (w *rerateWorld) dry(t *testing.T, id string) RerateJob {
	t.Helper()
	w.job, w.state = RerateJob{Tenant: id, To: 1 << 62, AskedAt: 1_760_000_009_000_000_000, DryRun: true}, "running"
	r := NewRerater(w, w, kafka.Topics{}, simTopic, "dry", func() []tenant.ID { return []tenant.ID{tenant.ID(id)} }, slog.New(slog.DiscardHandler))
	if _, err := r.next(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w.job
}

// Whoever lost the lease changes nothing.
func TestRerateLosesItsLease(t *testing.T) {
	w := &rerateWorld{bench: newBench(t), rng: rand.New(rand.NewPCG(1, 1))}
	acme := w.m.names[0]
	w.m.makeTenants(acme)
	w.publish(1)
	w.job, w.state = RerateJob{Tenant: acme, To: 1 << 62}, "running"
	job, _, _ := w.ClaimRerate(t.Context(), []string{acme}, "first", 0)
	w.owner = "second"
	r := NewRerater(w, w, kafka.Topics{}, simTopic, "first", nil, slog.New(slog.DiscardHandler))
	if err := r.work(t.Context(), &job); !errors.Is(err, ErrLease) || w.state != "running" {
		t.Errorf("%v, the job is %s", err, w.state)
	}
}

// The ids of corrections depend on what they correct and on nothing else.
func TestRerateIDs(t *testing.T) {
	a := rerateID("acme", 3, 3, [32]byte{1})
	if a != rerateID("acme", 3, 3, [32]byte{1}) || len(a) != 36 || a[14] != '8' {
		t.Errorf("the id is %s", a)
	}
	for _, other := range []string{
		rerateID("acmf", 3, 3, [32]byte{1}), rerateID("acme", 4, 3, [32]byte{1}), rerateID("acme", 3, 4, [32]byte{1}), rerateID("acme", 3, 3, [32]byte{2}),
	} {
		if other == a {
			t.Errorf("two corrections have the id %s", a)
		}
	}
	if k := event.KeyOf(a); k == event.KeyOf(a+"x") {
		t.Error("the id is not its own key")
	}
}
