package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ledger/chain"
)

// errSim is a transient failure of the simulated world.
var errSim = errors.New("sim: failure")

// simDB is one database: what is durable. It checks every batch as Postgres
// would, and more: a batch that breaks an invariant fails the test.
type simDB struct {
	fatal   func(format string, args ...any)
	rowLock chan struct{} // the partition's row: held by a transaction in flight

	mu          sync.Mutex // protects what follows; never held over time
	topic       Topic
	state       State
	controls    []ControlRow
	quarantined []int64
	heads       map[string]Head
	entries     map[string][]Row
	keys        map[KeyRef]KnownKey
	corrected   map[string]map[int64]int64 // the newest correction by tenant and original
	batches     []*Batch
	counts      map[[2]string]CounterRow
	subjects    []SubjectRow // as they came, later ones of one person too
	commits     int
	fenced      int
	failed      int // commits that did not answer well
}

func newSimDB(fatal func(string, ...any), topic Topic) *simDB {
	return &simDB{
		fatal: fatal, rowLock: make(chan struct{}, 1), topic: topic, heads: map[string]Head{}, entries: map[string][]Row{},
		keys: map[KeyRef]KnownKey{}, corrected: map[string]map[int64]int64{}, counts: map[[2]string]CounterRow{},
	}
}

// simStore is one process's connection to the database.
type simStore struct {
	db *simDB
	p  *simProcess
}

func (s simStore) Assign(ctx context.Context, topic Topic, partition int32) (State, error) {
	if err := s.p.read.call(ctx); err != nil {
		return State{}, err
	}
	s.db.rowLock <- struct{}{}
	defer func() { <-s.db.rowLock }()
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if topic != s.db.topic {
		return State{}, ErrTopicChanged
	}
	s.db.state.Epoch++
	st := s.db.state
	newest := map[string]ControlRow{}
	for _, c := range s.db.controls {
		newest[c.Kind] = c
	}
	for _, c := range newest {
		st.Controls = append(st.Controls, c)
	}
	for _, o := range s.db.quarantined {
		if o >= st.NextOffset {
			st.Quarantined = append(st.Quarantined, o)
		}
	}
	return st, s.p.read.after()
}

func (s simStore) Heads(ctx context.Context, tenants []string) ([]Head, error) {
	if err := s.p.read.call(ctx); err != nil {
		return nil, err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	var out []Head
	for _, id := range tenants {
		if h, ok := s.db.heads[id]; ok {
			out = append(out, h)
		}
	}
	return out, s.p.read.after()
}

func (s simStore) Known(ctx context.Context, refs []KeyRef) ([]KnownKey, error) {
	if err := s.p.read.call(ctx); err != nil {
		return nil, err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	var out []KnownKey
	for _, ref := range refs {
		if k, ok := s.db.keys[ref]; ok {
			out = append(out, k)
		}
	}
	slices.Reverse(out) // any order is allowed
	return out, s.p.read.after()
}

func (s simStore) Originals(ctx context.Context, refs []KeyRef) ([]Original, error) {
	if err := s.p.read.call(ctx); err != nil {
		return nil, err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	var out []Original
	for _, ref := range refs {
		k, ok := s.db.keys[ref]
		if !ok || s.db.entries[ref.Tenant][k.Seq-1].Kind != chain.Usage {
			continue
		}
		seq := max(k.Seq, s.db.corrected[ref.Tenant][k.Seq])
		out = append(out, Original{ref, s.db.entries[ref.Tenant][seq-1].Canonical})
	}
	slices.Reverse(out) // any order is allowed
	return out, s.p.read.after()
}

func (s simStore) Keys(ctx context.Context, tenants []string, fn func(string, []event.Key)) error {
	if err := s.p.load.call(ctx); err != nil {
		return err
	}
	// A snapshot first: what is committed while the keys travel is not in it.
	byTenant := s.db.snapshotKeys()
	for _, id := range tenants {
		keys := byTenant[id]
		for len(keys) > 0 {
			n := min(len(keys), 1+s.p.load.rng.IntN(5))
			part := append([]event.Key(nil), keys[:n]...)
			fn(id, part)
			clear(part) // the slice is the store's own
			keys = keys[n:]
			if err := s.p.load.call(ctx); err != nil {
				return err
			}
		}
	}
	return s.p.load.after()
}

func (db *simDB) snapshotKeys() map[string][]event.Key {
	db.mu.Lock()
	defer db.mu.Unlock()
	byTenant := map[string][]event.Key{}
	for ref := range db.keys {
		byTenant[ref.Tenant] = append(byTenant[ref.Tenant], ref.Key)
	}
	return byTenant
}

func (s simStore) Batch(ctx context.Context, partition int32, number int64) (*Batch, error) {
	if err := s.p.read.call(ctx); err != nil {
		return nil, err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if number < 1 || number > int64(len(s.db.batches)) {
		s.db.fatal("batch %d of %d was asked for", number, len(s.db.batches))
		return nil, ErrRefused
	}
	return s.db.batches[number-1], s.p.read.after()
}

// next is the offset after what is committed.
func (db *simDB) next() int64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.state.NextOffset
}

func (s simStore) Published(ctx context.Context, partition int32, epoch, batch int64) error {
	if err := s.p.read.call(ctx); err != nil {
		return err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if epoch != s.db.state.Epoch || batch > s.db.state.LastBatch {
		return ErrFenced
	}
	s.db.state.PublishedBatch = max(s.db.state.PublishedBatch, batch)
	return s.p.read.after()
}

// Commit may fail before anything is durable, apply the batch and answer with
// a failure, answer with a failure and apply the batch later, or be stopped for
// long in the middle, as a process under SIGSTOP is.
func (s simStore) Commit(ctx context.Context, b *Batch) (err error) {
	defer func() {
		if err != nil {
			s.db.mu.Lock()
			s.db.failed++
			s.db.mu.Unlock()
		}
	}()
	if err := s.p.commit.call(ctx); err != nil {
		return err
	}
	copied := copyBatch(b)
	fate := s.p.commit.rng.Float64()
	s.db.rowLock <- struct{}{}
	switch chaos := s.p.chaos; {
	case fate < 0.02*chaos: // stopped, then it goes on
		<-s.db.rowLock
		time.Sleep(s.p.commit.stopTime())
		s.db.rowLock <- struct{}{}
	case fate < 0.05*chaos: // the connection is cut, the server commits all the same
		late := s.p.commit.latency() * 20
		go func() {
			time.Sleep(late)
			_ = s.db.apply(copied)
			<-s.db.rowLock
		}()
		return errSim
	}
	defer func() { <-s.db.rowLock }()
	time.Sleep(s.p.commit.latency())
	if err := s.db.apply(copied); err != nil {
		return err
	}
	if s.p.commit.rng.Float64() < 0.03*s.p.chaos {
		return errSim
	}
	return s.p.commit.after()
}

// apply is the transaction of a commit. The caller holds the row lock.
func (db *simDB) apply(b *Batch) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if b.Epoch != db.state.Epoch || b.FirstOffset != db.state.NextOffset || b.Number != db.state.LastBatch+1 {
		db.fenced++
		return ErrFenced
	}
	if b.NextOffset <= b.FirstOffset || b.Topic != db.topic {
		db.fatal("batch %d covers offsets [%d, %d) of topic %x", b.Number, b.FirstOffset, b.NextOffset, b.Topic.ID)
	}
	for i := range b.Groups {
		g := &b.Groups[i]
		h, ok := db.heads[g.After.Tenant]
		if ok == g.New || ok && (h.Seq != g.Before.Seq || h.Chain != g.Before.Chain) {
			db.fatal("head of %s is %+v (there: %v), batch %d expects %+v (new: %v)", g.After.Tenant, h, ok, b.Number, g.Before, g.New)
		}
		if i > 0 && b.Groups[i-1].After.Tenant >= g.After.Tenant {
			db.fatal("groups are not sorted by tenant: lock order")
		}
		for j := range b.Rows[g.First : g.First+g.Count] {
			db.insert(g.After.Tenant, &b.Rows[g.First+j])
		}
		if g.Count > 0 || g.New {
			db.heads[g.After.Tenant] = g.After
		}
		if int64(len(db.entries[g.After.Tenant])) != g.After.Seq {
			db.fatal("%s has %d entries, its head says %d", g.After.Tenant, len(db.entries[g.After.Tenant]), g.After.Seq)
		}
	}
	db.controls = append(db.controls, b.Controls...)
	db.subjects = append(db.subjects, b.Subjects...)
	for _, c := range b.Counts {
		k := [2]string{c.Tenant, c.ProducerID}
		sum := db.counts[k]
		sum.Duplicates, sum.Conflicts, sum.Rejected = sum.Duplicates+c.Duplicates, sum.Conflicts+c.Conflicts, sum.Rejected+c.Rejected
		db.counts[k] = sum
	}
	db.batches = append(db.batches, b)
	db.state.NextOffset, db.state.LastBatch = b.NextOffset, b.Number
	if b.Published > b.Number {
		db.fatal("batch %d says that %d is published", b.Number, b.Published)
	}
	db.state.PublishedBatch = max(db.state.PublishedBatch, b.Published)
	db.commits++
	return nil
}

func (db *simDB) insert(tenant string, r *Row) {
	if r.Seq != int64(len(db.entries[tenant])+1) {
		db.fatal("%s: entry %d after %d entries", tenant, r.Seq, len(db.entries[tenant]))
	}
	db.entries[tenant] = append(db.entries[tenant], *r)
	if r.Kind != chain.Usage && r.Kind != chain.Correction {
		return
	}
	if r.Kind == chain.Correction {
		if db.corrected[tenant] == nil {
			db.corrected[tenant] = map[int64]int64{}
		}
		db.corrected[tenant][r.Corrects] = r.Seq
	}
	ref := KeyRef{tenant, r.Key}
	if k, ok := db.keys[ref]; ok {
		db.fatal("%s/%d: key %v is ledgered already as %d", tenant, r.Seq, r.Key, k.Seq)
	}
	db.keys[ref] = KnownKey{ref, r.Content, r.Seq}
}

// copyBatch takes what a server would receive: the writer reuses its memory.
func copyBatch(b *Batch) *Batch {
	c := *b
	c.Groups = append([]Group(nil), b.Groups...)
	c.Rows = append([]Row(nil), b.Rows...)
	for i := range c.Rows {
		c.Rows[i].Canonical = bytes.Clone(c.Rows[i].Canonical)
	}
	c.Controls = append([]ControlRow(nil), b.Controls...)
	c.Counts = append([]CounterRow(nil), b.Counts...)
	c.Subjects = append([]SubjectRow(nil), b.Subjects...)
	for i := range c.Subjects {
		c.Subjects[i].Identity = bytes.Clone(c.Subjects[i].Identity)
	}
	return &c
}

// simProcess is one process: it can be killed, and its calls take time. Each of
// its goroutines has a line of its own, so that its fate follows from the seed
// however goroutines are scheduled.
type simProcess struct {
	name                        string
	chaos                       float64 // 0: nothing fails
	dead                        atomic.Bool
	read, load, commit, publish simLine
}

func newSimProcess(name string, seed uint64, chaos float64) *simProcess {
	p := &simProcess{name: name, chaos: chaos}
	for what, line := range map[string]*simLine{"read": &p.read, "load": &p.load, "commit": &p.commit, "publish": &p.publish} {
		h := fnv.New64a()
		h.Write([]byte(name + "/" + what))
		*line = simLine{p, rand.New(rand.NewPCG(seed, h.Sum64()))}
	}
	return p
}

// simLine is the way of one goroutine to the servers.
type simLine struct {
	p   *simProcess
	rng *rand.Rand
}

// latency is odd to the nanosecond, so that two events rarely meet.
func (l *simLine) latency() time.Duration {
	return time.Duration(1 + l.rng.Int64N(int64(2*time.Millisecond)))
}

func (l *simLine) stopTime() time.Duration {
	return time.Duration(l.rng.Int64N(int64(30 * time.Second)))
}

// call is the way to a server: it takes time and may fail.
func (l *simLine) call(ctx context.Context) error {
	if l.rng.Float64() < 0.004*l.p.chaos {
		time.Sleep(l.stopTime())
	}
	time.Sleep(l.latency())
	if l.p.dead.Load() || l.rng.Float64() < 0.02*l.p.chaos {
		return fmt.Errorf("%s: %w", l.p.name, errSim)
	}
	return ctx.Err()
}

// after is the way back: what was done is done, but the answer may be lost.
func (l *simLine) after() error {
	if l.p.dead.Load() || l.rng.Float64() < 0.01*l.p.chaos {
		return fmt.Errorf("%s, answer lost: %w", l.p.name, errSim)
	}
	return nil
}
