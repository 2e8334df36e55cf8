// Package storetest is the conformance suite of ledger.Store: what the writer
// relies on, checked through the interface alone, so that every store is held
// to the same promises.
//
// It builds batches that are right in form (numbers, heads, groups sorted by
// tenant) with arbitrary bytes for chains and MACs: a store decides nothing
// about content. It never looks behind the interface.
package storetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Topic is the topic that the suite's batches are of.
var Topic = ledger.Topic{ID: [16]byte{1, 2, 3}, Partitions: 4}

// Run holds a store against the contract. open gives an empty store each time.
func Run(t *testing.T, open func(t *testing.T) ledger.Store) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, ledger.Store)
	}{
		{"AssignStartsAtZeroAndRaisesTheEpoch", assignRaisesEpoch},
		{"AssignFencesEarlierOwners", assignFences},
		{"CommitComparesThePartition", comparesPartition},
		{"CommitComparesEveryHead", comparesHeads},
		{"KeysAreUnique", keysAreUnique},
		{"CommitIsWholeOrNothing", wholeOrNothing},
		{"AnUnknownOutcomeIsToldByAssign", unknownOutcome},
		{"PublishedNeverMovesBack", publishedForward},
		{"BatchReadsBackExactly", batchReadsBack},
		{"KnownAndKeysAreTheTenants", knownAndKeys},
		{"HeadsReadBackExactly", headsReadBack},
		{"ControlsAreTheNewestOfEachKind", newestControls},
		{"CountersAdd", countersAdd},
		{"SubjectsAreKeptOnce", subjectsOnce},
		{"OriginalsAreTheNewestState", originalsAreNewest},
		{"ManyTenantsInACommit", manyTenants},
		{"AnEmptyBatchMovesTheOffset", emptyBatch},
		{"PartitionsAreApart", partitionsApart},
		{"OneOfTwoRacingOwnersWins", racingOwners},
		{"AnotherTopicHalts", anotherTopic},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

// Maker makes batches that follow each other, as a writer would.
type Maker struct {
	State ledger.State
	part  int32
	heads map[string]ledger.Head
	n     int
}

// NewMaker assigns the partition and makes batches from where it stands.
func NewMaker(t testing.TB, s ledger.Store, partition int32) *Maker {
	t.Helper()
	st, err := s.Assign(t.Context(), Topic, partition)
	if err != nil {
		t.Fatalf("assign: %v", err)
	}
	return &Maker{State: st, part: partition, heads: map[string]ledger.Head{}}
}

// Batch makes the next batch: so many usage entries for each tenant.
func (m *Maker) Batch(perTenant int, tenants ...string) *ledger.Batch {
	slices.Sort(tenants)
	b := &ledger.Batch{
		Topic: Topic, Partition: m.part, Epoch: m.State.Epoch, Number: m.State.LastBatch + 1,
		FirstOffset: m.State.NextOffset, NextOffset: m.State.NextOffset + int64(max(1, perTenant*len(tenants))),
	}
	for _, id := range tenants {
		before, known := m.heads[id]
		if !known {
			before = ledger.Head{Tenant: id, Chain: chain.Genesis(id), KeyEpoch: 1}
		}
		g := ledger.Group{Before: before, After: before, New: !known, First: len(b.Rows), Count: perTenant}
		for range perTenant {
			m.n++
			g.After.Seq++
			g.After.Chain = sha256.Sum256(fmt.Appendf(nil, "chain/%s/%d", id, g.After.Seq))
			g.After.ReceivedAt = 1_760_000_000_000_000_000 + int64(m.n)*1000
			row := ledger.Row{
				Seq: g.After.Seq, Kind: chain.Usage, OccurredAt: g.After.ReceivedAt, Priced: m.n%3 != 0, Cost: money.Pico(m.n) * 1_000_003,
				Key: Key(id, g.After.Seq), Content: ledger.Content{byte(m.n), 9},
				Sealed: chain.Sealed{
					Canonical: fmt.Appendf(nil, "entry %s %d", id, g.After.Seq), Chain: g.After.Chain,
					MAC: sha256.Sum256(fmt.Appendf(nil, "mac/%d", m.n)), Epoch: 1,
				},
			}
			if !row.Priced {
				row.Cost = 0
			}
			b.Rows = append(b.Rows, row)
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// Key is the key of the suite's n-th entry of a tenant.
func Key(tenant string, n int64) event.Key { return event.KeyOf(fmt.Sprintf("%s/%d", tenant, n)) }

// Done takes over what a committed batch did.
func (m *Maker) Done(b *ledger.Batch) {
	m.State.LastBatch, m.State.NextOffset = b.Number, b.NextOffset
	for i := range b.Groups {
		m.heads[b.Groups[i].After.Tenant] = b.Groups[i].After
	}
}

func (m *Maker) commit(t testing.TB, s ledger.Store, b *ledger.Batch) {
	t.Helper()
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatalf("commit batch %d: %v", b.Number, err)
	}
	m.Done(b)
}

func wantFenced(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, ledger.ErrFenced) || ledger.Halts(err) {
		t.Errorf("%s: got %v, want ErrFenced, which does not halt", what, err)
	}
}

func assignRaisesEpoch(t *testing.T, s ledger.Store) {
	a, b := NewMaker(t, s, 0).State, NewMaker(t, s, 0).State
	if a.NextOffset != 0 || a.LastBatch != 0 || a.PublishedBatch != 0 || len(a.Controls) != 0 || len(a.Quarantined) != 0 {
		t.Errorf("an empty store says %+v", a)
	}
	if b.Epoch <= a.Epoch {
		t.Errorf("epoch %d after %d", b.Epoch, a.Epoch)
	}
}

func assignFences(t *testing.T, s ledger.Store) {
	old := NewMaker(t, s, 0)
	old.commit(t, s, old.Batch(2, "acme"))
	next := NewMaker(t, s, 0)
	if next.State.NextOffset != old.State.NextOffset || next.State.LastBatch != 1 {
		t.Errorf("the next owner finds %+v, want %+v", next.State, old.State)
	}
	wantFenced(t, "commit of an earlier owner", s.Commit(t.Context(), old.Batch(1, "acme")))
	wantFenced(t, "publication note of an earlier owner", s.Published(t.Context(), 0, old.State.Epoch, 1))
	next.heads = old.heads
	next.commit(t, s, next.Batch(1, "acme"))
}

func comparesPartition(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	m.commit(t, s, m.Batch(2, "acme"))
	for what, change := range map[string]func(*ledger.Batch){
		"offset":       func(b *ledger.Batch) { b.FirstOffset++ },
		"offset back":  func(b *ledger.Batch) { b.FirstOffset-- },
		"number":       func(b *ledger.Batch) { b.Number++ },
		"number again": func(b *ledger.Batch) { b.Number-- },
		"epoch":        func(b *ledger.Batch) { b.Epoch++ },
	} {
		b := m.Batch(1, "acme")
		change(b)
		wantFenced(t, what, s.Commit(t.Context(), b))
	}
	m.commit(t, s, m.Batch(1, "acme"))
}

func comparesHeads(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	m.commit(t, s, m.Batch(2, "acme", "bravo", "delta"))
	for what, change := range map[string]func(*ledger.Group){
		"seq":         func(g *ledger.Group) { g.Before.Seq-- },
		"chain":       func(g *ledger.Group) { g.Before.Chain[5] ^= 1 },
		"a new head":  func(g *ledger.Group) { g.New = true },
		"no such one": func(g *ledger.Group) { g.Before.Tenant, g.After.Tenant = "nobody", "nobody" },
	} {
		b := m.Batch(1, "acme", "bravo", "delta")
		change(&b.Groups[1])
		wantFenced(t, what, s.Commit(t.Context(), b))
	}
	m.commit(t, s, m.Batch(1, "acme", "bravo", "delta"))
}

func keysAreUnique(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	m.commit(t, s, m.Batch(2, "acme"))
	b := m.Batch(2, "acme", "bravo")
	b.Rows[0].Key = Key("acme", 1)
	wantFenced(t, "a key that is ledgered", s.Commit(t.Context(), b))
	b.Rows[0].Key = b.Rows[1].Key
	wantFenced(t, "a key twice in a batch", s.Commit(t.Context(), b))
	b = m.Batch(2, "acme", "bravo")
	b.Rows[3].Key = Key("acme", 1) // another tenant's id is nobody's business
	m.commit(t, s, b)
	b = m.Batch(1, "acme")
	b.Rows[0].Kind, b.Rows[0].Key = chain.Rejected, Key("acme", 1)
	m.commit(t, s, b) // a rejection always has room
}

func wholeOrNothing(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	m.commit(t, s, m.Batch(1, "acme"))
	b := m.Batch(3, "acme", "bravo")
	b.Rows[5].Key = b.Rows[4].Key
	b.Counts = []ledger.CounterRow{{Tenant: "acme", ProducerID: "p", Duplicates: 1}}
	b.Controls = []ledger.ControlRow{{Offset: 1, Kind: "price_book", Version: "1", Hash: chain.Hash{1}, Content: []byte("x"), IssuedAt: 1}}
	if s.Commit(t.Context(), b) == nil {
		t.Fatal("a batch with a key twice was committed")
	}
	st := NewMaker(t, s, 0).State
	heads := readHeads(t, s, "acme", "bravo")
	if st.NextOffset != m.State.NextOffset || st.LastBatch != 1 || len(st.Controls) != 0 || len(heads) != 1 || heads["acme"].Seq != 1 {
		t.Errorf("of a failed commit there is left: %+v, heads %+v", st, heads)
	}
	if k, err := s.Known(t.Context(), []ledger.KeyRef{{Tenant: "acme", Key: Key("acme", 2)}}); err != nil || len(k) != 0 {
		t.Errorf("of a failed commit a key is left: %v, %v", k, err)
	}
}

// The writer never learns what became of its commit; another assignment tells.
func unknownOutcome(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	b := m.Batch(2, "acme")
	m.commit(t, s, b) // its answer is lost
	again := NewMaker(t, s, 0)
	if again.State.LastBatch != b.Number || again.State.NextOffset != b.NextOffset {
		t.Errorf("assign says %+v after batch %d", again.State, b.Number)
	}
	b.Epoch = again.State.Epoch
	wantFenced(t, "the same batch, sent blindly once more", s.Commit(t.Context(), b))
}

func publishedForward(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	for range 4 {
		m.commit(t, s, m.Batch(1, "acme"))
	}
	note := func(n int64) error { return s.Published(t.Context(), 0, m.State.Epoch, n) }
	if err := errors.Join(note(3), note(1)); err != nil {
		t.Fatal(err)
	}
	wantFenced(t, "a batch that is not there", note(9))
	if got := NewMaker(t, s, 0).State.PublishedBatch; got != 3 {
		t.Errorf("published %d, want 3", got)
	}
	m.State.Epoch++
	b := m.Batch(1, "acme")
	b.Published = 2 // older news that rides in a commit
	m.commit(t, s, b)
	b = m.Batch(1, "acme")
	b.Published = 4
	m.commit(t, s, b)
	if got := NewMaker(t, s, 0).State.PublishedBatch; got != 4 {
		t.Errorf("published %d, want 4", got)
	}
}

func batchReadsBack(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 2)
	m.commit(t, s, m.Batch(1, "acme"))
	want := m.Batch(3, "acme", "bravo")
	want.Groups[0].Count = 2 // and one tenant that only counted
	want.Rows = append(want.Rows[:2:2], want.Rows[3:]...)
	want.Groups[0].After.Seq--
	want.Groups[0].After.Chain = want.Rows[1].Chain
	want.Groups[1].First = 2
	m.commit(t, s, want)
	m.commit(t, s, m.Batch(2, "acme", "bravo"))
	got, err := s.Batch(t.Context(), 2, want.Number)
	if err != nil {
		t.Fatal(err)
	}
	if got.Partition != 2 || got.Number != want.Number || got.FirstOffset != want.FirstOffset || got.NextOffset != want.NextOffset ||
		len(got.Groups) != len(want.Groups) || len(got.Rows) != len(want.Rows) {
		t.Fatalf("batch reads back as %+v", got)
	}
	for i := range want.Groups {
		w, g := &want.Groups[i], &got.Groups[i]
		if g.After.Tenant != w.After.Tenant || g.First != w.First || g.Count != w.Count {
			t.Errorf("group %d is %+v, want %+v", i, g, w)
		}
	}
	for i := range want.Rows {
		w, g := &want.Rows[i], &got.Rows[i]
		if g.Seq != w.Seq || g.Kind != w.Kind || g.Epoch != w.Epoch || !bytes.Equal(g.Canonical, w.Canonical) || g.Chain != w.Chain || g.MAC != w.MAC {
			t.Errorf("row %d is %+v, want %+v", i, g, w)
		}
	}
	if _, err := s.Batch(t.Context(), 2, 99); err == nil {
		t.Error("a batch that is not there reads back")
	}
}

func knownAndKeys(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	b := m.Batch(40, "acme", "bravo")
	b.Rows[7].Kind = chain.Rejected // what is not deduplicated has no key
	m.commit(t, s, b)
	refs := []ledger.KeyRef{
		{Tenant: "acme", Key: Key("acme", 3)}, {Tenant: "acme", Key: Key("bravo", 3)}, {Tenant: "acme", Key: b.Rows[7].Key},
		{Tenant: "bravo", Key: Key("bravo", 1)}, {Tenant: "nobody", Key: Key("acme", 1)},
	}
	known, err := s.Known(t.Context(), refs)
	if err != nil || len(known) != 2 {
		t.Fatalf("known = %+v, %v; want acme 3 and bravo 1", known, err)
	}
	for _, k := range known {
		if row := find(b, k.Tenant, k.Seq); row == nil || row.Key != k.Key || row.Content != k.Content {
			t.Errorf("known key %+v is not that of row %+v", k, row)
		}
	}
	got := map[string][]event.Key{}
	if err := s.Keys(t.Context(), []string{"acme", "nobody"}, func(id string, keys []event.Key) {
		got[id] = append(got[id], keys...)
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || len(got["acme"]) != 39 || !slices.Contains(got["acme"], Key("acme", 40)) {
		t.Errorf("keys of acme: %d, of others: %d", len(got["acme"]), len(got)-1)
	}
}

func find(b *ledger.Batch, tenant string, seq int64) *ledger.Row {
	for _, g := range b.Groups {
		for i := range b.Rows[g.First : g.First+g.Count] {
			if r := &b.Rows[g.First+i]; g.After.Tenant == tenant && r.Seq == seq {
				return r
			}
		}
	}
	return nil
}

func readHeads(t *testing.T, s ledger.Store, tenants ...string) map[string]ledger.Head {
	t.Helper()
	heads, err := s.Heads(t.Context(), tenants)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]ledger.Head{}
	for _, h := range heads {
		out[h.Tenant] = h
	}
	return out
}

func headsReadBack(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	m.commit(t, s, m.Batch(1, "acme", "bravo"))
	b := m.Batch(2, "acme")
	b.Groups[0].After.PriceBook, b.Groups[0].After.KeyEpoch = chain.Hash{3, 4}, 2
	m.commit(t, s, b)
	got := readHeads(t, s, "acme", "bravo", "nobody")
	if len(got) != 2 || got["acme"] != b.Groups[0].After || got["bravo"] != m.heads["bravo"] {
		t.Errorf("heads are %+v, want %+v", got, m.heads)
	}
}

func newestControls(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	row := func(offset int64, kind, version string) ledger.ControlRow {
		return ledger.ControlRow{Offset: offset, Kind: kind, Version: version, Hash: chain.Hash{byte(offset)}, Content: []byte{0, 255, byte(offset)}, IssuedAt: 77 + offset}
	}
	b := m.Batch(0)
	b.Controls = []ledger.ControlRow{row(0, "price_book", "a"), row(1, "rule_version", "1"), row(2, "price_book", "b")}
	m.commit(t, s, b)
	b = m.Batch(0)
	b.Controls = []ledger.ControlRow{row(7, "price_book", "c")}
	m.commit(t, s, b)
	got := map[string]ledger.ControlRow{}
	for _, c := range NewMaker(t, s, 0).State.Controls {
		got[c.Kind] = c
	}
	if fmt.Sprint(got) != fmt.Sprint(map[string]ledger.ControlRow{"price_book": row(7, "price_book", "c"), "rule_version": row(1, "rule_version", "1")}) {
		t.Errorf("controls are %+v", got)
	}
	if other := NewMaker(t, s, 1).State; len(other.Controls) != 0 {
		t.Errorf("another partition has controls %+v", other.Controls)
	}
}

func countersAdd(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	for range 3 {
		b := m.Batch(1, "acme", "bravo")
		b.Counts = []ledger.CounterRow{
			{Tenant: "acme", ProducerID: "", Rejected: 1},
			{Tenant: "acme", ProducerID: "p", Duplicates: 2, Conflicts: 3},
			{Tenant: "bravo", ProducerID: "p", Duplicates: 5},
		}
		m.commit(t, s, b)
	}
	c, ok := s.(interface {
		Counters(t *testing.T, tenant string) []ledger.CounterRow
	})
	if !ok {
		t.Fatal("the store under test must have Counters(t, tenant), for this suite alone")
	}
	want := []ledger.CounterRow{{Tenant: "acme", Rejected: 3}, {Tenant: "acme", ProducerID: "p", Duplicates: 6, Conflicts: 9}}
	if got := c.Counters(t, "acme"); !slices.Equal(got, want) {
		t.Errorf("counters are %+v, want %+v", got, want)
	}
}

// Subject is what a store keeps of a person, for this suite alone.
type Subject struct {
	Identity    []byte
	First, Last int32 // days since 1970-01-01
	Erased      bool
}

// A person's first identity stays, the days move apart, an erased person gets no
// identity back, and a batch may name a person twice.
func subjectsOnce(t *testing.T, s ledger.Store) {
	look, ok := s.(interface {
		Subject(t *testing.T, tenant, pseudonym string) (Subject, bool)
		Erase(t *testing.T, tenant, pseudonym string)
	})
	if !ok {
		t.Fatal("the store under test must have Subject and Erase, for this suite alone")
	}
	m := NewMaker(t, s, 0)
	const jane, john = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	commit := func(rows ...ledger.SubjectRow) {
		t.Helper()
		b := m.Batch(1, "acme", "bravo")
		b.Subjects = rows
		m.commit(t, s, b)
	}
	want := func(tenant, pseudonym string, want Subject) {
		t.Helper()
		if got, ok := look.Subject(t, tenant, pseudonym); !ok || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s of %s is %+v, %t, want %+v", pseudonym, tenant, got, ok, want)
		}
	}
	row := func(tenant, pseudonym, identity string, day int32) ledger.SubjectRow {
		return ledger.SubjectRow{Tenant: tenant, Pseudonym: pseudonym, Identity: []byte(identity), Day: day}
	}
	commit(row("acme", jane, "one", 20_000), row("bravo", jane, "other", 20_001))
	want("acme", jane, Subject{Identity: []byte("one"), First: 20_000, Last: 20_000})
	want("bravo", jane, Subject{Identity: []byte("other"), First: 20_001, Last: 20_001})
	commit(row("acme", jane, "two", 20_005), row("acme", john, "a", 20_004), row("acme", john, "b", 20_006), row("acme", jane, "two", 20_003))
	want("acme", jane, Subject{Identity: []byte("one"), First: 20_000, Last: 20_005})
	want("acme", john, Subject{Identity: []byte("a"), First: 20_004, Last: 20_006})
	commit(row("acme", jane, "three", 20_001)) // an older day moves nothing
	want("acme", jane, Subject{Identity: []byte("one"), First: 20_000, Last: 20_005})
	look.Erase(t, "acme", jane)
	commit(row("acme", jane, "four", 20_009))
	want("acme", jane, Subject{First: 20_000, Last: 20_005, Erased: true})
	want("bravo", jane, Subject{Identity: []byte("other"), First: 20_001, Last: 20_001})
	if _, ok := look.Subject(t, "bravo", john); ok {
		t.Error("a person is in another tenant, too")
	}
}

func manyTenants(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	var ids []string
	for n := range 2000 {
		ids = append(ids, fmt.Sprintf("tenant-%04d-%s", n, strings.Repeat("x", n%40)))
	}
	for range 2 {
		m.commit(t, s, m.Batch(2, ids...))
	}
	if got := readHeads(t, s, ids...); len(got) != len(ids) || got[ids[1999]] != m.heads[ids[1999]] {
		t.Errorf("%d heads", len(got))
	}
	b, err := s.Batch(t.Context(), 0, 2)
	if err != nil || len(b.Rows) != 4000 || len(b.Groups) != 2000 {
		t.Fatalf("batch of many tenants reads back wrong: %v", err)
	}
}

func emptyBatch(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	b := m.Batch(0)
	b.NextOffset = 500 // all of it was duplicates of nobody's, or controls
	m.commit(t, s, b)
	if st := NewMaker(t, s, 0).State; st.NextOffset != 500 || st.LastBatch != 1 {
		t.Errorf("state is %+v", st)
	}
	if got, err := s.Batch(t.Context(), 0, 1); err != nil || len(got.Rows) != 0 || len(got.Groups) != 0 {
		t.Errorf("an empty batch reads back as %+v, %v", got, err)
	}
}

func partitionsApart(t *testing.T, s ledger.Store) {
	a, b := NewMaker(t, s, 0), NewMaker(t, s, 3)
	a.commit(t, s, a.Batch(2, "acme"))
	b.commit(t, s, b.Batch(2, "bravo"))
	a.commit(t, s, a.Batch(2, "acme"))
	if st := NewMaker(t, s, 3).State; st.LastBatch != 1 || st.NextOffset != 2 {
		t.Errorf("partition 3 stands at %+v", st)
	}
}

// Two owners of the same epoch, as a stopped process and its copy would be,
// commit different batches at the same place: one is durable, one is fenced.
func racingOwners(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	for range 10 {
		x, y := m.Batch(1, "acme"), m.Batch(2, "acme", "bravo")
		var errX, errY error
		var both sync.WaitGroup
		both.Go(func() { errX = s.Commit(t.Context(), x) })
		both.Go(func() { errY = s.Commit(t.Context(), y) })
		both.Wait()
		switch {
		case errX == nil && errors.Is(errY, ledger.ErrFenced):
			m.Done(x)
		case errY == nil && errors.Is(errX, ledger.ErrFenced):
			m.Done(y)
		default:
			t.Fatalf("racing commits: %v and %v, want one nil and one ErrFenced", errX, errY)
		}
	}
}

func anotherTopic(t *testing.T, s ledger.Store) {
	before := NewMaker(t, s, 0).State
	other, grown := Topic, Topic
	other.ID[0]++
	grown.Partitions++
	for what, topic := range map[string]ledger.Topic{"another topic": other, "more partitions": grown} {
		if _, err := s.Assign(t.Context(), topic, 0); !errors.Is(err, ledger.ErrTopicChanged) || !ledger.Halts(err) {
			t.Errorf("%s: %v, want ErrTopicChanged, which halts", what, err)
		}
	}
	if after := NewMaker(t, s, 0).State; after.Epoch != before.Epoch+1 {
		t.Errorf("a refused assignment moved the epoch from %d to %d", before.Epoch, after.Epoch-1)
	}
}
