package ledger

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// simSeeds is how many worlds `go test` runs; TALLYSTICK_SIM_SEEDS asks for
// more (nightly: 20,000), TALLYSTICK_SIM_SEED for the one that failed.
const simSeeds = 300

// TestSimulation runs the writer in worlds where everything fails: see
// runSimulation. The seed of a world that went wrong is in the test's name.
func TestSimulation(t *testing.T) {
	first, n := 1, simSeeds
	if s := os.Getenv("TALLYSTICK_SIM_SEED"); s != "" {
		first, n = atoi(t, s), 1
	} else if s := os.Getenv("TALLYSTICK_SIM_SEEDS"); s != "" {
		n = atoi(t, s)
	}
	var total simOutcome
	for seed := first; seed < first+n; seed++ {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { total.add(runSimulation(t, uint64(seed))) })
		})
		if !ok {
			t.Fatalf("TALLYSTICK_SIM_SEED=%d repeats it", seed)
		}
	}
	t.Logf("%d seeds: %+v", n, total)
	if n >= 100 && (total.fenced == 0 || total.kills == 0 || total.failedCommits == 0 || total.duplicates == 0 || total.corrections == 0) {
		t.Errorf("the worlds were too kind: %+v", total)
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// simOutcome counts what happened, to show that the faults did.
type simOutcome struct {
	records, entries, commits, fenced, kills, failedCommits, duplicates, republished, corrections int
}

func (o *simOutcome) add(p simOutcome) {
	o.records += p.records
	o.entries += p.entries
	o.commits += p.commits
	o.fenced += p.fenced
	o.kills += p.kills
	o.failedCommits += p.failedCommits
	o.duplicates += p.duplicates
	o.republished += p.republished
	o.corrections += p.corrections
}

// runSimulation writes one log with processes that are killed, stopped, cut off
// and run beside each other, lets a healthy one finish, and holds what came of
// it against the model and against a replay.
func runSimulation(t *testing.T, seed uint64) (out simOutcome) {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := newSimModel(rng)
	m.fill(30 + rng.IntN(250))
	start, span := time.Now(), time.Duration(1+rng.IntN(20_000))*time.Millisecond
	all := int64(len(m.log.recs))
	m.log.arrived = func() int64 { return min(all, int64(float64(all)*float64(time.Since(start))/float64(span))) }
	db := newSimDB(t.Errorf, simTopic)
	db.quarantined = m.quarantined
	topics := &simTopics{}

	chaos := rng.Float64() * 3
	var running []func()
	var gone []chan struct{}
	for n := range 2 + rng.IntN(8) {
		stop, done := startSim(t, newSimProcess(fmt.Sprint("p", n), seed, chaos), m, db, topics, simOptions(rng))
		running, gone = append(running, stop), append(gone, done)
		time.Sleep(time.Duration(rng.Int64N(int64(4 * time.Second))))
		for len(running) > 2 || len(running) > 0 && rng.IntN(2) == 0 {
			k := rng.IntN(len(running))
			running[k]()
			running = append(running[:k], running[k+1:]...)
			out.kills++
		}
	}
	for _, stop := range running {
		stop()
	}
	stop, _ := startSim(t, newSimProcess("healthy", seed, 0), m, db, topics, simOptions(rng))
	for end := time.Now().Add(30 * time.Minute); ; time.Sleep(time.Second) {
		db.mu.Lock()
		st := db.state
		db.mu.Unlock()
		if st.NextOffset == all && st.PublishedBatch == st.LastBatch {
			break
		}
		if time.Now().After(end) {
			t.Errorf("not drained: %+v of %d records", st, all)
			break
		}
	}
	stop()
	for _, done := range gone {
		<-done // a stopped process wakes up and believes to be the writer
	}
	time.Sleep(time.Minute) // and so may a commit that a server still holds
	checkSimLedger(t, m, db)
	checkPublished(t.Errorf, topics, db)
	checkReplay(t, m, db, rng, 0)
	checkReplay(t, m, db, rng, rng.IntN(len(db.batches)+1))
	out.records, out.commits, out.fenced = len(m.log.recs), db.commits, db.fenced
	for _, rows := range db.entries {
		out.entries += len(rows)
		for i := range rows {
			if rows[i].Kind == chain.Correction {
				out.corrections++
			}
		}
	}
	for _, c := range m.counts {
		out.duplicates += int(c.Duplicates)
	}
	out.failedCommits, out.republished = db.failed, len(topics.entries)
	return out
}

func simOptions(rng *rand.Rand) Options {
	return Options{
		MaxBatchRecords: 1 + rng.IntN(64), MaxTenants: 1 + rng.IntN(4), Commits: 1 + rng.IntN(3),
		Linger: time.Duration(1+rng.IntN(20)) * time.Millisecond, RetryMin: 5 * time.Millisecond, RetryMax: 500 * time.Millisecond,
	}
}

// startSim starts a process and returns what kills it.
func startSim(t *testing.T, p *simProcess, m *simModel, db *simDB, topics *simTopics, opts Options) (kill func(), done chan struct{}) {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("TALLYSTICK_SIM_SEED") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", p.name)
	}
	w := NewWriter(simStore{db, p}, simKeys{}, simPublisher{topics, p}, kafka.Topics{Entries: "entries", DeadLetter: "deadletter"}, opts, log)
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan struct{})
	go func() {
		defer close(done)
		if err := w.RunPartition(ctx, simTopic, simPartition, simSource{m.log, p}); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}()
	return func() {
		if p.chaos > 0 {
			p.dead.Store(true) // no call of its own has an effect from here on
		}
		cancel()
		if p.chaos == 0 {
			<-done
		}
	}, done
}

// checkSimLedger holds the ledger against the model.
func checkSimLedger(t *testing.T, m *simModel, db *simDB) {
	h := chain.NewHasher()
	for _, id := range append([]string{m.system}, m.names...) {
		rows, want := db.entries[id], m.want[id]
		prev := chain.Genesis(id)
		for i := range rows {
			var e chain.Entry
			if err := e.Decode(rows[i].Canonical); err != nil {
				t.Fatalf("%s/%d does not decode: %v", id, i+1, err)
			}
			leaf := h.Leaf(rows[i].Canonical)
			prev = h.Next(&prev, &leaf)
			key, _ := simKeys{}.MACKey(tenant.ID(id), rows[i].Epoch)
			mac := chain.NewMACKey(key, rows[i].Epoch).MAC(int64(i+1), &prev)
			if e.Seq != int64(i+1) || rows[i].Chain != prev || rows[i].MAC != mac || e.Event.Tenant != id {
				t.Fatalf("%s/%d: chain, MAC, number or tenant is wrong", id, i+1)
			}
			if i >= len(want) || told(&e) != want[i] {
				t.Fatalf("%s/%d is %q, want %q", id, i+1, told(&e), append(want, "nothing")[min(i, len(want))])
			}
		}
		if len(rows) != len(want) {
			t.Fatalf("%s: %d entries, want %d (next: %q)", id, len(rows), len(want), want[len(rows)])
		}
	}
	for k, want := range m.counts {
		if got := db.counts[k]; got.Duplicates != want.Duplicates || got.Conflicts != want.Conflicts || got.Rejected != want.Rejected {
			t.Errorf("counters of %v: %+v, want %+v", k, got, want)
		}
	}
	checkSimPersons(t, m, db)
	if len(db.counts) != len(m.counts) {
		t.Errorf("%d counter rows, want %d", len(db.counts), len(m.counts))
	}
}

// checkSimPersons: the store was told of every person in a ledgered event, with
// what was sealed for them, and of nobody else.
func checkSimPersons(t *testing.T, m *simModel, db *simDB) {
	told := map[[2]string]bool{}
	for _, s := range db.subjects {
		told[[2]string{s.Tenant, s.Pseudonym}] = true
		if want := "sealed " + s.Tenant + " " + s.Pseudonym; string(s.Identity) != want {
			t.Errorf("the identity of %s is %q, want %q", s.Pseudonym, s.Identity, want)
		}
	}
	if !maps.Equal(told, m.persons) {
		t.Errorf("the store was told of %d persons, want %d", len(told), len(m.persons))
	}
}

// checkReplay restores the first batches into an empty database and writes the
// rest of the same log in batches that fall elsewhere: every byte must be the same.
func checkReplay(t *testing.T, m *simModel, db *simDB, rng *rand.Rand, restored int) {
	again := newSimDB(t.Errorf, simTopic)
	again.quarantined = db.quarantined
	for _, b := range db.batches[:restored] {
		again.state.Epoch = b.Epoch
		if err := again.apply(b); err != nil {
			t.Fatalf("restore batch %d: %v", b.Number, err)
		}
	}
	p := newSimProcess("replay", rng.Uint64(), 0)
	stop, _ := startSim(t, p, m, again, &simTopics{}, simOptions(rng))
	for again.next() < int64(len(m.log.recs)) {
		time.Sleep(time.Second)
	}
	stop()
	for id, rows := range db.entries {
		if len(rows) != len(again.entries[id]) {
			t.Fatalf("%s: %d entries after a replay, %d before", id, len(again.entries[id]), len(rows))
		}
		for i := range rows {
			r := &again.entries[id][i]
			if !bytes.Equal(rows[i].Canonical, r.Canonical) || rows[i].Chain != r.Chain || rows[i].MAC != r.MAC || rows[i].Epoch != r.Epoch {
				t.Fatalf("%s/%d differs after a replay", id, i+1)
			}
		}
	}
	for k, c := range db.counts {
		if again.counts[k] != c {
			t.Errorf("counters of %v differ after a replay: %+v, %+v", k, again.counts[k], c)
		}
	}
}
