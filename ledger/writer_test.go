package ledger_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// testKeys derives MAC keys from names, so that replays can be compared.
type testKeys struct{}

func (testKeys) MACKey(id tenant.ID, epoch uint32) ([32]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "mac/%s/%d", id, epoch)), nil
}

// world is a broker, a database and the means to write events.
type world struct {
	t        *testing.T
	cfg      kafka.Config
	topic    ledger.Topic
	producer *kafka.Producer
	db       *testenv.Ledger
}

const testPartitions = 2

func newWorld(t *testing.T) *world {
	t.Helper()
	b := testenv.Kafka(t)
	return newWorldOn(t, kafka.Config{
		Brokers: b.Seeds, TopicPrefix: b.TopicPrefix, AllowPlaintext: b.External,
		SASL: kafka.SASL{Mechanism: b.SASLMechanism, Username: b.SASLUser, Password: b.SASLPassword},
	})
}

// newWorldOn is newWorld on a broker of the test's own.
func newWorldOn(t *testing.T, cfg kafka.Config) *world {
	t.Helper()
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	infos, err := admin.EnsureTopics(t.Context(), kafka.TopicSpec{Partitions: testPartitions})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cfg: cfg, db: testenv.MigratedPostgres(t)}
	w.topic = ledger.Topic{ID: infos[cfg.Topics().Events].ID, Partitions: testPartitions}
	if w.producer, err = kafka.NewProducer(cfg, kafka.ProducerOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.producer.Close(context.Background()) })
	return w
}

// put produces values under a tenant's key into its partition.
func (w *world) put(id string, values ...[]byte) {
	w.t.Helper()
	p := tenant.ID(id).Partition(testPartitions)
	for len(values) > 0 {
		n := min(len(values), 5000)
		recs := make([]kafka.Record, n)
		for i, v := range values[:n] {
			recs[i] = kafka.Record{Topic: w.cfg.Topics().Events, Partition: p, Key: []byte(id), Value: v, TimestampMs: time.Now().UnixMilli()}
		}
		if err := w.producer.ProduceBatch(w.t.Context(), recs, nil); err != nil {
			w.t.Fatal(err)
		}
		values = values[n:]
	}
}

// control writes a global control record to every partition.
func (w *world) control(kind, version string, content []byte) {
	w.t.Helper()
	v := event.AppendControlRecord(nil, &event.Control{Kind: kind, Version: version, Content: content, IssuedAt: 1_760_000_000_000_000_000})
	for p := range int32(testPartitions) {
		w.put(string(tenant.System(p)), v)
	}
}

func (w *world) newTenant(ids ...string) {
	for _, id := range ids {
		w.put(id, event.AppendControlRecord(nil, &event.Control{Kind: event.ControlKeyEpoch, Tenant: id, Version: "1", IssuedAt: 1_760_000_000_000_000_001}))
	}
}

// usage makes the record of an event; n decides its id and its tokens.
func usage(tenantID string, n int, change func(*event.Event)) []byte {
	e := event.Event{
		ID: fmt.Sprintf("event-%d", n), Tenant: tenantID, OccurredAt: 1_760_000_000_000_000_000 + int64(n)*1e6,
		ReceivedAt: 1_760_000_001_000_000_000 + int64(n)*1e6, ProducerID: "p1", ProducerEpoch: 1, ProducerSeq: int64(n),
		Provider: "openai", Model: "gpt-4o", Status: "ok", ServiceTier: "standard", Team: "search", HasContentMAC: true,
	}
	e.Tokens[tokens.Input], e.Tokens[tokens.Output] = int64(100+n%1000), int64(n%300)
	if change != nil {
		change(&e)
	}
	e.ContentMAC = sha256.Sum256(e.AppendProducer(nil))
	return event.AppendUsageRecord(nil, &e)
}

// writer runs a ledger writer until the returned function is called.
func (w *world) writer(opts ledger.Options) (*ledger.Writer, func()) {
	w.t.Helper()
	db, err := postgres.Open(w.t.Context(), w.db.DSNs[postgres.RoleLedger], w.db.Signer, postgres.Options{MaxConns: 12})
	if err != nil {
		w.t.Fatal(err)
	}
	level := slog.LevelError
	if os.Getenv("TALLYSTICK_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	lw := ledger.NewWriter(pgstore.New(db), testKeys{}, w.producer, w.cfg.Topics(), opts, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- lw.Run(ctx, w.cfg, w.topic, true) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("writer: %v", err)
			}
			db.Close()
		})
	}
	w.t.Cleanup(stop)
	return lw, stop
}

// drain waits until every partition has consumed its log.
func (w *world) drain(lw *ledger.Writer) {
	w.t.Helper()
	admin, err := kafka.NewAdmin(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	defer admin.Close()
	deadline := time.Now().Add(time.Minute)
	for {
		ends, err := admin.EndOffsets(w.t.Context(), w.cfg.Topics().Events)
		if err != nil {
			w.t.Fatal(err)
		}
		behind := false
		places := lw.Stats().Places()
		for p, end := range ends {
			place := places[int32(p)]
			if place.Halted != nil {
				w.t.Fatalf("partition %d: %v", p, place.Halted)
			}
			behind = behind || place.NextOffset < end || place.PublishedBatch < place.Batch
		}
		if !behind {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("not drained: %+v, log ends %v", places, ends)
		}
		time.Sleep(10 * time.Millisecond) // polling a broker, not waiting for a goroutine
	}
}

// entries reads a tenant's ledger and checks every link of it.
func (w *world) entries(id string) []*chain.Entry {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.db.AdminDSN)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(w.t.Context(), `select seq, kind, key_epoch, occurred_at, cost_usd::text, canonical, chain, mac
		from ledger.entry where tenant_id = $1 order by seq`, id)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var out []*chain.Entry
	prev, h := chain.Genesis(id), chain.NewHasher()
	for rows.Next() {
		var seq int64
		var kind int16
		var epoch uint32
		var occurred *time.Time
		var cost *string
		var canonical, c, m []byte
		if err := rows.Scan(&seq, &kind, &epoch, &occurred, &cost, &canonical, &c, &m); err != nil {
			w.t.Fatal(err)
		}
		var e chain.Entry
		if err := e.Decode(canonical); err != nil {
			w.t.Fatalf("%s/%d: %v", id, seq, err)
		}
		leaf := h.Leaf(canonical)
		prev = h.Next(&prev, &leaf)
		key, _ := testKeys{}.MACKey(tenant.ID(id), epoch)
		mac := chain.NewMACKey(key, epoch).MAC(seq, &prev)
		switch {
		case seq != int64(len(out)+1) || e.Seq != seq || e.Event.Tenant != id || int16(e.Kind) != kind:
			w.t.Fatalf("%s: entry %d after %d entries: %+v", id, seq, len(out), e)
		case prev != chain.Hash(c) || mac != chain.Hash(m):
			w.t.Fatalf("%s/%d: chain or MAC is wrong", id, seq)
		case e.Priced != (cost != nil) || e.Priced && e.Cost.String() != *cost:
			w.t.Fatalf("%s/%d: cost column %v, entry %v %v", id, seq, cost, e.Priced, e.Cost)
		case (e.Event.OccurredAt != 0) != (occurred != nil) || occurred != nil && occurred.UnixMicro() != e.Event.OccurredAt/1000:
			w.t.Fatalf("%s/%d: time column %v, entry %v", id, seq, occurred, e.Event.OccurredAt)
		}
		out = append(out, &e)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	var headSeq int64
	var headChain []byte
	if err := conn.QueryRow(w.t.Context(), "select seq, chain from ledger.head where tenant_id = $1", id).Scan(&headSeq, &headChain); err != nil {
		w.t.Fatal(err)
	}
	if headSeq != int64(len(out)) || chain.Hash(headChain) != prev {
		w.t.Fatalf("%s: head %d does not stand at the last of %d entries", id, headSeq, len(out))
	}
	return out
}

// kinds counts entries by kind and, for rejections, reason.
func kinds(es []*chain.Entry) map[string]int {
	n := map[string]int{}
	for _, e := range es {
		name := e.Kind.String()
		if e.Kind == chain.Rejected {
			name += "/" + e.RejectReason
		}
		n[name]++
	}
	return n
}

func wantKinds(t *testing.T, what string, got map[string]int, want string) {
	t.Helper()
	w := map[string]int{}
	for _, f := range strings.Fields(want) {
		name, n, _ := strings.Cut(f, "=")
		w[name], _ = strconv.Atoi(n)
	}
	if fmt.Sprint(got) != fmt.Sprint(w) {
		t.Errorf("%s: entries by kind = %v, want %v", what, got, w)
	}
}

func TestWriterLedgersEveryRecordOnce(t *testing.T) {
	w := newWorld(t)
	book := pricing.Builtin()
	w.control(event.ControlPriceBook, book.Version(), book.Marshal())
	w.newTenant("acme", "bravo")
	for n := range 300 {
		w.put("acme", usage("acme", n, nil))
	}
	w.put("bravo", usage("bravo", 1, nil), usage("bravo", 2, func(e *event.Event) { e.Model = "no-such-model" }))
	w.put("acme", usage("acme", 7, nil), usage("acme", 7, nil))                             // duplicates
	w.put("acme", usage("acme", 8, func(e *event.Event) { e.Tokens[tokens.Output] = 999 })) // conflict
	w.put("acme", []byte("garbage"), nil)                                                   // undecodable
	w.put("acme", usage("bravo", 5, nil))                                                   // a payload that names another tenant
	w.put("acme", usage("acme", 900, func(e *event.Event) { e.Provider = "" }))             // invalid
	w.put("nobody", usage("nobody", 1, nil))                                                // unknown tenant
	lw, stop := w.writer(ledger.Options{})
	w.drain(lw)

	acme := w.entries("acme")
	wantKinds(t, "acme", kinds(acme), "control=2 usage=300 rejected/conflict=1 rejected/undecodable=2 rejected/wrong_tenant=1 rejected/invalid=1")
	bravo := w.entries("bravo")
	wantKinds(t, "bravo", kinds(bravo), "control=2 usage=2")
	system := string(tenant.System(tenant.ID("nobody").Partition(testPartitions)))
	wantKinds(t, system, kinds(w.entries(system)), "rejected/invalid=1")

	first := acme[2] // after key epoch and price book
	if want := money.Pico(100 * 2_500_000); !first.Priced || first.Cost != want || first.PriceRow == "" {
		t.Errorf("event 0 costs %v (%v, row %q), want %v", first.Cost, first.Priced, first.PriceRow, want)
	}
	if e := bravo[3]; e.Priced || e.UnpricedReason != "unknown_model" {
		t.Errorf("unknown model: priced %v, reason %q", e.Priced, e.UnpricedReason)
	}
	c := lw.Stats().Counts()
	if c.Duplicates != 2 || c.Conflicts != 1 || c.Usage != 302 || c.Unpriced != 1 {
		t.Errorf("counts = %+v", c)
	}
	stop()

	// A second writer goes on where the first stopped, knowing all ids.
	w.put("acme", usage("acme", 7, nil), usage("acme", 1000, nil))
	lw, _ = w.writer(ledger.Options{})
	w.drain(lw)
	if got := len(w.entries("acme")); got != len(acme)+1 {
		t.Errorf("after the second writer %d entries, want %d", got, len(acme)+1)
	}
}

// Replaying the log into an empty store gives the same bytes and hashes,
// however the batches fall (invariant 3).
func TestReplayRegeneratesTheLedger(t *testing.T) {
	w := newWorld(t)
	book := pricing.Builtin()
	w.newTenant("acme")
	w.put("acme", usage("acme", 1, nil)) // before there is a book
	w.control(event.ControlPriceBook, book.Version(), book.Marshal())
	var values [][]byte
	for n := range 2000 {
		values = append(values, usage("acme", n%1800, nil))
	}
	w.put("acme", values...)
	lw, stop := w.writer(ledger.Options{})
	w.drain(lw)
	stop()
	first := w.entries("acme")
	if first[1].Priced || first[1].UnpricedReason != "no_price_book" {
		t.Errorf("an event before the first book: %+v", first[1])
	}

	w.db = testenv.MigratedPostgres(t)
	lw, stop = w.writer(ledger.Options{MaxBatchRecords: 7, Linger: time.Microsecond})
	w.drain(lw)
	stop()
	second := w.entries("acme")
	if len(first) != len(second) {
		t.Fatalf("replay gives %d entries, want %d", len(second), len(first))
	}
	for i := range first {
		if string(first[i].Append(nil)) != string(second[i].Append(nil)) {
			t.Fatalf("entry %d differs after replay", i+1)
		}
	}
}

// Two writers believe to own the partitions. Whatever they do, the ledger stays
// whole: entries() checks every link.
func TestTwoWritersCannotFork(t *testing.T) {
	w := newWorld(t)
	w.newTenant("acme", "bravo")
	opts := ledger.Options{MaxBatchRecords: 50, Linger: time.Millisecond, RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond}
	a, _ := w.writer(opts)
	b, stopB := w.writer(opts)
	events := 0
	put := func() {
		values := make([][]byte, 10)
		for i := range values {
			values[i] = usage("acme", events+i, nil)
		}
		w.put("acme", values...)
		events += len(values)
	}
	// Nothing is contended before both have written. Each takes the partition
	// over when it is fenced, so each gets its turn while there is something to write.
	for deadline := time.Now().Add(time.Minute); events < 1500 || a.Stats().Counts().Entries == 0 || b.Stats().Counts().Entries == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("after %d events the writers wrote %d and %d entries", events, a.Stats().Counts().Entries, b.Stats().Counts().Entries)
		}
		put()
	}
	stopB()
	for end := events + 1500; events < end; {
		put()
	}
	w.drain(a)
	wantKinds(t, "acme", kinds(w.entries("acme")), fmt.Sprintf("control=1 usage=%d", events))
}

// What is published is what is committed, in order, with nothing missing.
func TestPublishedFramesAreTheLedger(t *testing.T) {
	w := newWorld(t)
	w.newTenant("acme")
	var values [][]byte
	for n := range 3000 {
		values = append(values, usage("acme", n, nil))
	}
	w.put("acme", values...)
	lw, stop := w.writer(ledger.Options{MaxBatchRecords: 900})
	w.drain(lw)
	stop()
	want := w.entries("acme")
	p := tenant.ID("acme").Partition(testPartitions)
	r, err := kafka.OpenReader(t.Context(), w.cfg, w.cfg.Topics().Entries, p, kafka.Position{}, kafka.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var f chain.Frame
	next, batch, index := int64(1), int64(1), int32(0)
	for next <= int64(len(want)) {
		recs, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			if err := f.Decode(rec.Value); err != nil {
				t.Fatal(err)
			}
			if f.Tenant != "acme" || f.FirstSeq != next || f.Batch != batch || f.Index != index {
				t.Fatalf("frame %s seq %d batch %d index %d, want seq %d batch %d index %d", f.Tenant, f.FirstSeq, f.Batch, f.Index, next, batch, index)
			}
			for i := range f.Entries {
				if string(f.Entries[i].Canonical) != string(want[next-1].Append(nil)) {
					t.Fatalf("published entry %d is not the ledger's", next)
				}
				next++
			}
			if index += int32(len(f.Entries)); index == f.Total {
				batch, index = batch+1, 0
			}
		}
	}
}

// A topic that was made anew under us halts the partition and resets nothing.
func TestAnotherTopicHalts(t *testing.T) {
	w := newWorld(t)
	db := w.db.Open(t, postgres.RoleLedger)
	store := pgstore.New(db)
	if _, err := store.Assign(t.Context(), w.topic, 0); err != nil {
		t.Fatal(err)
	}
	other := w.topic
	binary.BigEndian.PutUint64(other.ID[:], 7)
	if _, err := store.Assign(t.Context(), other, 0); !errors.Is(err, ledger.ErrTopicChanged) || !ledger.Halts(err) {
		t.Errorf("another topic id: %v, want ErrTopicChanged, which halts", err)
	}
	grown := w.topic
	grown.Partitions++
	if _, err := store.Assign(t.Context(), grown, 0); !errors.Is(err, ledger.ErrTopicChanged) {
		t.Errorf("another partition count: %v, want ErrTopicChanged", err)
	}
}
