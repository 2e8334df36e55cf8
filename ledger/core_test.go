package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/big"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// bench is a core with a store behind it, for tests that go batch by batch.
type bench struct {
	t    *testing.T
	core *core
	db   *simDB
	m    *simModel // makes records; its model is checked by check
	from int
}

func newBench(t *testing.T) *bench {
	m := newSimModel(rand.New(rand.NewPCG(1, 1)))
	b := &bench{t: t, m: m, db: newSimDB(t.Fatalf, simTopic)}
	b.restart()
	return b
}

// restart gives the partition to a writer that knows only the store.
func (b *bench) restart() {
	st, err := simStore{b.db, newSimProcess("bench", 1, 0)}.Assign(b.t.Context(), simTopic, simPartition)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.core, err = newCore(simTopic, simPartition, simKeys{}, st); err != nil {
		b.t.Fatal(err)
	}
}

// batch builds and commits what the model has written since the last batch.
func (b *bench) batch() BatchStats {
	b.t.Helper()
	stats, err := b.try()
	if err != nil {
		b.t.Fatal(err)
	}
	return stats
}

func (b *bench) try() (BatchStats, error) {
	c, s := b.core, simStore{b.db, newSimProcess("bench", 1, 0)}
	var recs []record
	for _, r := range b.m.log.recs[b.from:] {
		recs = append(recs, record{r.Offset, r.Key, r.Value})
	}
	out := &builder{}
	out.reset()
	c.begin()
	heads, refs := c.needs(recs)
	gotHeads, _ := s.Heads(b.t.Context(), heads)
	gotKeys, _ := s.Known(b.t.Context(), refs)
	c.learn(gotHeads, gotKeys)
	wanted, _ := c.originals()
	gotOriginals, _ := s.Originals(b.t.Context(), wanted)
	c.learnOriginals(gotOriginals)
	for i := range recs {
		if err := c.build(out, &recs[i]); err != nil {
			return c.stats, err
		}
	}
	c.finish(out)
	c.remember()
	batch := &out.batch
	batch.Topic, batch.Partition, batch.Epoch, batch.Number = simTopic, simPartition, b.db.state.Epoch, c.number
	batch.FirstOffset, batch.NextOffset = int64(b.from), int64(len(b.m.log.recs))
	b.from = len(b.m.log.recs)
	return c.stats, b.db.apply(copyBatch(batch))
}

// check holds the ledger against the model.
func (b *bench) check() {
	b.t.Helper()
	checkSimLedger(b.t, b.m, b.db)
}

func (b *bench) entries(id string) []chain.Entry {
	out := make([]chain.Entry, len(b.db.entries[id]))
	for i := range out {
		if err := out[i].Decode(b.db.entries[id][i].Canonical); err != nil {
			b.t.Fatal(err)
		}
	}
	return out
}

// makeTenants gives the model's tenants their first key epoch.
func (m *simModel) makeTenants(ids ...string) {
	for _, id := range ids {
		m.epoch[id] = 1
		m.entry(id, "control key_epoch 1 @%d", m.control(id, &event.Control{Kind: event.ControlKeyEpoch, Tenant: id, Version: "1"}))
	}
}

// Rule 1: what builds entries reads no clock. publish.go stamps Kafka's own
// timestamps, registrar.go makes new records, and the pipeline waits: nothing
// of that is stored in an entry.
func TestRule01CoreReadsNoClock(t *testing.T) {
	for _, name := range []string{"core.go", "correction.go", "builder.go", "filter.go", "loader.go", "chain/chain.go", "chain/codec.go", "chain/entry.go", "chain/frame.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			switch path, _ := strconv.Unquote(imp.Path.Value); path {
			case "time", "math/rand", "math/rand/v2", "crypto/rand", "os":
				t.Errorf("%s imports %s", name, path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if r, ok := n.(*ast.RangeStmt); ok && name == "core.go" && isMapField(r.X) {
				t.Errorf("%s ranges over a map while it builds: the order would be chance", name)
			}
			return true
		})
	}
}

func isMapField(x ast.Expr) bool {
	s, ok := x.(*ast.SelectorExpr)
	return ok && (s.Sel.Name == "tenants" || s.Sel.Name == "known" || s.Sel.Name == "cur" || s.Sel.Name == "prev")
}

// Rule 2: ids are decided before numbers are given, whether the filter is not
// loaded, knows the key, or is wrong about a new one.
func TestRule02DedupeComesBeforeNumbering(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme := m.names[0]
	m.makeTenants(acme)
	b.batch()
	for n := range 50 {
		m.put(acme, fmt.Sprint("e", n), 1, "p0")
	}
	if s := b.batch(); s.Lookups != 0 {
		t.Errorf("%d look-ups for a tenant that this writer has seen made", s.Lookups)
	}
	m.put(acme, "e7", 1, "p0") // in the batch that may still be committing
	m.put(acme, "new", 1, "p0")
	m.put(acme, "new", 1, "p0") // in this very batch
	if s := b.batch(); s.Lookups != 0 || s.Duplicates != 2 {
		t.Errorf("stats %+v, want 2 duplicates without a look-up", s)
	}

	b.restart() // nothing is loaded: every id is looked up
	m.put(acme, "e8", 1, "p0")
	m.put(acme, "fresh", 1, "p0")
	m.put(acme, "e9", 2, "p0") // another body
	if s := b.batch(); s.Lookups != 3 || s.Duplicates != 1 || s.Conflicts != 1 {
		t.Errorf("before the keys are loaded: %+v, want 3 look-ups, 1 duplicate, 1 conflict", s)
	}

	// A filter that takes everything for known costs look-ups and decides nothing.
	b.core.tenants[acme].loaded = true
	b.core.filter.grow()
	for i := range b.core.filter.layers[0].blocks {
		for j := range b.core.filter.layers[0].blocks[i] {
			b.core.filter.layers[0].blocks[i][j] = ^uint64(0)
		}
	}
	m.put(acme, "another", 1, "p0")
	m.put(acme, "e10", 1, "p0")
	if s := b.batch(); s.Lookups != 2 || s.Usage != 1 || s.Duplicates != 1 {
		t.Errorf("with a filter full of false positives: %+v, want 2 look-ups, 1 new, 1 duplicate", s)
	}
	b.check()
}

// Rule 3: the same body is a duplicate, another one a conflict, and a rejection
// has room whatever ids somebody chose.
func TestRule03ConflictsAlwaysHaveRoom(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme := m.names[0]
	m.makeTenants(acme)
	m.put(acme, "a", 1, "p0")
	b.batch()
	for n := range int64(5) {
		m.put(acme, "a", 2, "p0")
		m.put(acme, "a", 3+n, "p1")
	}
	pos := chain.Position{TopicID: simTopic.ID, Partition: simPartition, Offset: int64(len(m.log.recs)) + 1}
	k := chain.RejectionKey(&pos)
	id := fmt.Sprintf("%x-%x-%x-%x-%x", k[:4], k[4:6], k[6:8], k[8:10], k[10:])
	if event.KeyOf(id) != k {
		t.Fatal("the chosen id does not have the rejection's key: nothing is tested")
	}
	m.put(acme, id, 1, "p0")
	m.put(acme, "a", 9, "p0") // the conflict whose key was taken
	b.batch()
	m.put(acme, id, 1, "p0")
	if s := b.batch(); s.Duplicates != 1 {
		t.Errorf("the chosen id is no duplicate of itself: %+v", s)
	}
	b.check()
	es := b.entries(acme)
	last := es[len(es)-1]
	if last.RejectReason != chain.RejectConflict || last.Event.ID != "a" || last.Key != k || last.RejectField == "" {
		t.Errorf("the last conflict is %+v", last)
	}
}

// Rule 4: a UUID is its own key; any other id, an upper-case UUID too, is a digest.
func TestRule04Keys(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme, bravo := m.names[0], m.names[1]
	m.makeTenants(acme, bravo)
	const uuid = "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
	for _, id := range []string{uuid, strings.ToUpper(uuid), "0193a1b2c3d47e5f8a9b0c1d2e3f4a5b", "x", strings.Repeat("y", event.MaxIDBytes)} {
		m.put(acme, id, 1, "p0")
		m.put(bravo, id, 1, "p0") // ids are per tenant
		m.put(acme, id, 1, "p0")
	}
	b.batch()
	b.restart()
	m.put(acme, strings.ToUpper(uuid), 1, "p0")
	b.batch()
	b.check()
	if k := b.entries(acme)[1].Key; k.String() != strings.ReplaceAll(uuid, "-", "") {
		t.Errorf("the key of a UUID is %s", k)
	}
}

// Rule 5: a book counts from its position, and is named in a tenant's chain
// just before the first entry that uses it.
func TestRule05BookChangesMidStream(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme, bravo := m.names[0], m.names[1]
	m.makeTenants(acme, bravo)
	book := func(n int) {
		m.book = fmt.Sprintf("b%d", n)
		m.bookAt = m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: m.book, Content: simBook(n).Marshal()})
	}
	m.put(acme, "before", 10, "p0")
	book(2)
	m.put(acme, "two", 10, "p0")
	m.put(acme, "two again", 10, "p0")
	book(3)
	m.put(acme, "three", 10, "p0")
	b.batch()
	b.restart() // the book in force comes out of the store
	m.put(bravo, "three", 10, "p0")
	book(2) // and back again
	m.put(bravo, "two", 10, "p0")
	b.batch()
	b.check()
	for _, e := range b.entries(bravo) {
		if e.Kind == chain.Usage && (e.PriceBook == chain.Hash{} || e.PriceRow == "") {
			t.Errorf("entry %d does not name its book and row", e.Seq)
		}
	}
}

// Rule 5: a malformed control is rejected and changes nothing, whether or not
// the tenant it names has been seen by this writer.
func TestRule05MalformedControlHasNoEffect(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme, bravo := m.names[0], m.names[1]
	m.makeTenants(acme, bravo)
	m.put(acme, "a", 1, "p0")
	b.batch()
	b.restart()
	m.rejected(m.system, "invalid", m.control(bravo, &event.Control{Kind: event.ControlKeyEpoch, Tenant: acme, Version: "2"}))
	m.rejected(m.system, "invalid", m.control(acme, &event.Control{Kind: event.ControlPriceBook, Tenant: acme, Version: "1", Content: simBook(1).Marshal()}))
	m.rejected(m.system, "invalid", m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: "b\x00", Content: simBook(1).Marshal()}))
	m.rejected(m.system, "invalid", m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: "b1", Content: []byte("nonsense")}))
	b.batch()
	m.put(acme, "b", 1, "p0") // still known, still unpriced
	b.batch()
	b.check()
}

// Rule 6: rules that this binary does not know halt, and are never guessed.
func TestRule06UnknownRuleVersionHalts(t *testing.T) {
	b := newBench(t)
	b.m.control(b.m.system, &event.Control{Kind: event.ControlRuleVersion, Version: strconv.Itoa(pricing.RuleVersion)})
	b.batch()
	b.m.control(b.m.system, &event.Control{Kind: event.ControlRuleVersion, Version: strconv.Itoa(pricing.RuleVersion + 1)})
	if _, err := b.try(); !errors.Is(err, ErrRuleVersion) || !Halts(err) {
		t.Errorf("got %v, want ErrRuleVersion, which halts", err)
	}
}

// Rule 8: each version of a tenant's mapping rules is an entry of its chain, and one
// of a tenant that is none, or with another number than one, is rejected.
func TestRule08MappingRules(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme := m.names[0]
	m.makeTenants(acme)
	say := func(id, version string) int64 {
		return m.control(id, &event.Control{Kind: event.ControlMappingRules, Tenant: id, Version: version, Content: []byte(`{"rules":[]}`)})
	}
	m.entry(acme, "control mapping_rules 1 @%d", say(acme, "1"))
	m.put(acme, "one", 1, "p0")
	m.entry(acme, "control mapping_rules 2 @%d", say(acme, "2"))
	m.rejected(m.system, "invalid", say(acme, "0"))
	m.rejected(m.system, "invalid", say(acme, "two"))
	m.rejected(m.system, "invalid", say(m.names[1], "1"))
	m.put(acme, "two", 1, "p0")
	b.batch()
	b.restart()
	m.put(acme, "three", 1, "p0")
	b.batch()
	b.check()
}

// Rule 7: the position of a key epoch decides which key signs; a repeated one
// changes nothing, a skipped one is rejected.
func TestRule07KeyEpochs(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme := m.names[0]
	m.makeTenants(acme)
	say := func(version string) int64 {
		return m.control(acme, &event.Control{Kind: event.ControlKeyEpoch, Tenant: acme, Version: version})
	}
	m.put(acme, "one", 1, "p0")
	m.entry(acme, "control key_epoch 2 @%d", say("2"))
	m.put(acme, "two", 1, "p0")
	say("2")
	say("1")
	m.rejected(m.system, "invalid", say("4"))
	m.rejected(m.system, "invalid", say("0"))
	m.rejected(m.system, "invalid", say("-1"))
	m.put(acme, "two again", 1, "p0")
	b.batch()
	b.restart()
	m.put(acme, "still two", 1, "p0")
	b.batch()
	b.check()
	var epochs []uint32
	for _, row := range b.db.entries[acme] {
		epochs = append(epochs, row.Epoch)
	}
	if fmt.Sprint(epochs) != "[1 1 2 2 2 2]" {
		t.Errorf("key epochs of the entries: %v", epochs)
	}
	if bytes.Equal(b.db.entries[acme][1].MAC[:], b.db.entries[acme][2].MAC[:]) {
		t.Error("the MAC did not change with the key")
	}
}

// Rule 9: whose chain.
func TestRule09WhoseChain(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme, bravo := m.names[0], m.names[1]
	m.makeTenants(acme)
	other, _ := m.usage(bravo, "x", 1, "p0")
	away, _ := m.usage(m.away, "x", 1, "p0")
	m.rejected(m.system, "invalid", m.add(bravo, other))      // not made yet
	m.rejected(m.system, "invalid", m.add(m.away, away))      // hashes elsewhere
	m.rejected(acme, "wrong_tenant", m.add(acme, other))      // a payload that names another
	m.rejected(m.system, "undecodable", m.add("", nil))       // no key at all
	m.rejected(m.system, "invalid", m.add("system/0", other)) // another partition's chain
	m.rejected(m.system, "invalid", m.add(m.system, other))
	m.makeTenants(bravo)
	m.put(bravo, "x", 1, "p0") // what was rejected left no id behind
	b.batch()
	b.check()
	if tenant.ID(m.away).Partition(simTopic.Partitions) == simPartition {
		t.Error("the away tenant is at home: nothing was tested")
	}
}

// Rule 14: the cost in the entry is the exact product, rounded half-even once,
// by arithmetic that shares nothing with package pricing.
func TestRule14MoneyIsExact(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme := m.names[0]
	m.makeTenants(acme)
	// 1e-18 USD a token: n tokens are n·1e-6 of the ledger's unit.
	rates := pricing.NoRates()
	rates[tokens.Input], rates[tokens.Output] = 500_000, 3
	long := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	book, err := pricing.NewBook(pricing.Header{Version: "exact"}, []pricing.Row{{
		Provider: "openai", Model: "m", ValidFrom: long, KnownFrom: long, Sheets: []pricing.Sheet{{Rates: rates}},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: "exact", Content: book.Marshal()})
	counts := []int64{0, 1, 2, 3, 4, 5, 7, 999_999, 1_000_001, 166_667, 500_000, 499_999, 1_500_000, event.MaxTokens}
	var want []int64
	for i, n := range counts {
		for j, out := range counts {
			e := event.Event{
				ID: fmt.Sprintf("%d-%d", i, j), Tenant: acme, OccurredAt: 1_760_000_000_000_000_000, ReceivedAt: 1_760_000_001_000_000_000,
				ProducerID: "p", Provider: "openai", Model: "m", Status: "ok", ServiceTier: "standard", HasContentMAC: true,
			}
			e.Tokens[tokens.Input], e.Tokens[tokens.Output] = n, out
			m.add(acme, event.AppendUsageRecord(nil, &e))
			want = append(want, new(big.Int).Add(picos(n, 500_000), picos(out, 3)).Int64())
		}
	}
	b.batch()
	var got []int64
	for _, e := range b.entries(acme) {
		if e.Kind == chain.Usage {
			got = append(got, int64(e.Cost))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d usage entries, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d input and %d output tokens cost %d, want %d", counts[i/len(counts)], counts[i%len(counts)], got[i], want[i])
		}
	}
}

// picos is n tokens at a rate of 1e-18 USD, in 1e-12 USD, half to even.
func picos(n, rate int64) *big.Int {
	q, r := new(big.Int).QuoRem(new(big.Int).Mul(big.NewInt(n), big.NewInt(rate)), big.NewInt(1_000_000), new(big.Int))
	if c := r.Cmp(big.NewInt(500_000)); c > 0 || c == 0 && q.Bit(0) == 1 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

// Rule 16: counters stand with the offset, so that a replay counts alike.
func TestRule16CountersReplay(t *testing.T) {
	b := newBench(t)
	b.m.fill(500)
	b.db.quarantined = b.m.quarantined
	b.restart()
	b.batch()
	b.check()
	again := newBench(t)
	again.m, again.db.quarantined = b.m, b.m.quarantined
	again.restart()
	for again.from < len(b.m.log.recs) {
		whole := b.m.log.recs
		b.m.log.recs = whole[:min(len(whole), again.from+7)]
		again.batch()
		again.restart()
		b.m.log.recs = whole
	}
	for k, c := range b.db.counts {
		if again.db.counts[k] != c {
			t.Errorf("counters of %v after a replay: %+v, want %+v", k, again.db.counts[k], c)
		}
	}
}

// Invariant 7: a quarantined record becomes one rejection, whatever it holds,
// and what it would have claimed stays free.
func TestQuarantinedRecordIsRejected(t *testing.T) {
	b := newBench(t)
	m := b.m
	acme := m.names[0]
	m.makeTenants(acme)
	value, _ := m.usage(acme, "x", 1, "p0")
	offset := m.add(acme, value)
	m.rejected(acme, "quarantined", offset)
	rule := m.control(m.system, &event.Control{Kind: event.ControlRuleVersion, Version: "77"})
	m.rejected(m.system, "quarantined", rule)
	m.put(acme, "x", 1, "p0")
	b.db.quarantined = []int64{offset, rule}
	b.restart()
	b.batch()
	b.check()
}
