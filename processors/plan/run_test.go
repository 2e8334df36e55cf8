package plan_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors"
	"github.com/tallystick/tallystick/processors/finding"
	"github.com/tallystick/tallystick/processors/plan"
	"github.com/tallystick/tallystick/processors/rollup"
)

const testPartitions = 4

// system is a broker, a database that stands in for the ledger's writer, and
// what ClickHouse would have.
type system struct {
	t        *testing.T
	cfg      kafka.Config
	db       *testenv.Ledger
	conn     *pgx.Conn
	producer *kafka.Producer
	heads    map[string]*processors.Covered
	numbers  [testPartitions]int64
	entries  int64
	cost     money.Sum

	mu      sync.Mutex // protects all below
	tokens  map[string]bool
	stored  map[string]int
	rollups finding.Rollup // of the total dimension
	largest map[int32]int64
}

func newSystem(t *testing.T) *system {
	t.Helper()
	b := testenv.Kafka(t)
	s := &system{
		t: t, db: testenv.MigratedPostgres(t), heads: map[string]*processors.Covered{}, tokens: map[string]bool{}, stored: map[string]int{}, largest: map[int32]int64{},
		cfg: kafka.Config{
			Brokers: b.Seeds, TopicPrefix: b.TopicPrefix, AllowPlaintext: b.External,
			SASL: kafka.SASL{Mechanism: b.SASLMechanism, Username: b.SASLUser, Password: b.SASLPassword},
		},
	}
	s.topics()
	var err error
	if s.conn, err = pgx.Connect(t.Context(), s.db.AdminDSN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close(context.Background()) })
	s.exec(`alter table ledger.entry_0 disable trigger all`)
	for p := range testPartitions {
		s.exec(`insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset) values ($1, $2, $3, 1, 0)`, p, [16]byte{1}, testPartitions)
	}
	return s
}

// newProducer makes a producer that knows the topics as they are now.
func (s *system) newProducer() {
	s.t.Helper()
	p, err := kafka.NewProducer(s.cfg, kafka.ProducerOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { p.Close(context.Background()) })
	s.producer = p
}

func (s *system) topics() {
	s.t.Helper()
	admin, err := kafka.NewAdmin(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.EnsureTopics(s.t.Context(), kafka.TopicSpec{Partitions: testPartitions}); err != nil {
		s.t.Fatal(err)
	}
	s.newProducer()
}

func (s *system) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.conn.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatal(err)
	}
}

// commit writes a commit of the partition to the ledger and returns its frames.
func (s *system) commit(partition int32, perTenant int) (recs []kafka.Record) {
	s.t.Helper()
	s.numbers[partition]++
	number := s.numbers[partition]
	var tenants []string
	var firsts []int64
	var counts []int32
	hasher := chain.NewHasher()
	const tenantsPerCommit = 2
	for k := range tenantsPerCommit {
		id := fmt.Sprintf("tenant-%d-%d", partition, k)
		h := s.heads[id]
		if h == nil {
			h = &processors.Covered{Tenant: id, Partition: partition, Chain: chain.Genesis(id)}
			s.heads[id] = h
		}
		f := chain.Frame{Tenant: id, Partition: partition, Batch: number, Index: int32(k * perTenant), Total: int32(tenantsPerCommit * perTenant), FirstSeq: h.Seq + 1}
		var w chain.FrameWriter
		w.Begin(nil, &f)
		for range perTenant {
			h.Seq++
			e := chain.Entry{Kind: chain.Usage, Seq: h.Seq, Priced: true, Cost: money.Pico(h.Seq)}
			e.Event.Tenant, e.Event.OccurredAt, e.Event.ReceivedAt, e.Event.Model = id, 1_760_000_000_000_000_000+h.Seq*1e9, h.Seq, "gpt-4o"
			h.ReceivedAt = h.Seq
			sealed := chain.Sealed{Canonical: e.Append(nil), Epoch: 1}
			leaf := hasher.Leaf(sealed.Canonical)
			h.Chain = hasher.Next(&h.Chain, &leaf)
			sealed.Chain = h.Chain
			w.Add(&sealed)
			s.exec(`insert into ledger.entry (tenant_id, seq, kind, key_epoch, canonical, chain, mac) values ($1, $2, 1, 1, $3, $4, $5)`,
				id, h.Seq, sealed.Canonical, sealed.Chain[:], sealed.MAC[:])
			s.entries++
			if err := s.cost.AddPico(e.Cost); err != nil {
				s.t.Fatal(err)
			}
		}
		recs = append(recs, kafka.Record{Topic: s.cfg.Topics().Entries, Partition: partition, Key: []byte(id), Value: w.Finish(), TimestampMs: time.Now().UnixMilli()})
		tenants, firsts, counts = append(tenants, id), append(firsts, f.FirstSeq), append(counts, int32(perTenant))
	}
	s.exec(`insert into ledger.batch (partition, batch, first_offset, next_offset, tenants, first_seqs, counts) values ($1, $2, 0, 0, $3, $4, $5)`,
		partition, number, tenants, firsts, counts)
	s.exec(`update ledger.partition set last_batch = $2 where partition = $1`, partition, number)
	return recs
}

func (s *system) publish(recs []kafka.Record) {
	s.t.Helper()
	if err := s.producer.ProduceBatch(s.t.Context(), recs, nil); err != nil {
		s.t.Fatal(err)
	}
}

// sink is one process's way to what ClickHouse has.
type sink struct {
	s       *system
	entries []string
	total   finding.Rollup
	fail    error // what Store says after it has stored, if set
}

func (k *sink) Reset() { k.entries, k.total = k.entries[:0], finding.Rollup{} }

func (k *sink) Append(e *chain.Entry, _ int64) error {
	k.entries = append(k.entries, fmt.Sprint(e.Event.Tenant, "/", e.Seq))
	return nil
}

func (k *sink) AppendRollup(r *finding.Rollup) error {
	if r.Dimension != "" {
		return nil
	}
	k.total.Requests += r.Requests
	return k.total.Cost.Add(r.Cost)
}

func (k *sink) Store(_ context.Context, p *processors.Plan) error {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if !k.s.tokens[p.ID] {
		k.s.tokens[p.ID] = true
		for _, e := range k.entries {
			k.s.stored[e]++
		}
		k.s.rollups.Requests += k.total.Requests
		if err := k.s.rollups.Cost.Add(k.total.Cost); err != nil {
			return err
		}
		for _, r := range p.Ranges {
			k.s.largest[r.Partition] = max(k.s.largest[r.Partition], r.To)
		}
	}
	return k.fail
}

func (k *sink) Largest(context.Context) (map[int32]int64, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	return maps.Clone(k.s.largest), nil
}

func (k *sink) Transient(error) bool { return false }

// run starts a process; the returned function ends it.
func (s *system) run(direct bool, fail error) (*processors.Runner, func()) {
	s.t.Helper()
	db, err := postgres.Open(s.t.Context(), s.db.DSNs[postgres.RoleProcessors], s.db.Signer, postgres.Options{MaxConns: 4})
	if err != nil {
		s.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("TALLYSTICK_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	store := plan.NewStore(db)
	r, err := processors.New(processors.Parts{
		Ledger: plan.NewLedger(db), Store: store, Snapshots: store, Sink: &sink{s: s, fail: fail}, Log: log,
		Processors: func() []processors.Processor { return []processors.Processor{rollup.New()} },
	}, processors.Options{FlushInterval: 50 * time.Millisecond, GapWait: 400 * time.Millisecond, SnapshotInterval: 200 * time.Millisecond})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, s.cfg, direct) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.t.Errorf("run: %v", err)
			}
			db.Close()
		})
	}
	s.t.Cleanup(stop)
	return r, stop
}

// await waits until everything is stored, once, and covered.
func (s *system) await() {
	s.t.Helper()
	app := plan.NewCoverage(s.db.Open(s.t, postgres.RoleApp))
	deadline := time.Now().Add(time.Minute)
	var err error
	for time.Now().Before(deadline) {
		if err = s.check(app); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond) // polling a database, not waiting for a goroutine
	}
	s.t.Fatal(err)
}

func (s *system) check(app *plan.Coverage) error {
	for id, h := range s.heads {
		seq, hash, received, err := app.Coverage(s.t.Context(), tenant.ID(id))
		if err != nil || seq != h.Seq || hash != h.Chain || received != h.ReceivedAt {
			return fmt.Errorf("coverage of %s is %d (%v), the head is %d", id, seq, err, h.Seq)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, h := range s.heads {
		for seq := int64(1); seq <= h.Seq; seq++ {
			if n := s.stored[fmt.Sprint(id, "/", seq)]; n != 1 {
				return fmt.Errorf("entry %d of %s is stored %d times", seq, id, n)
			}
		}
	}
	if int64(len(s.stored)) != s.entries || s.rollups.Requests != s.entries || s.rollups.Cost != s.cost {
		return fmt.Errorf("%d entries, %d in rollups with %s, stored; the ledger has %d with %s", len(s.stored), s.rollups.Requests, s.rollups.Cost, s.entries, s.cost)
	}
	return nil
}

// Two processes share the partitions; one goes, and everything is stored once.
func TestGroupSharesAndHandsOver(t *testing.T) {
	s := newSystem(t)
	a, stopA := s.run(false, nil)
	b, _ := s.run(false, nil)
	round := func() {
		for p := range int32(testPartitions) {
			s.publish(s.commit(p, 3))
		}
	}
	deadline := time.Now().Add(time.Minute)
	for a.Stats().Entries == 0 || b.Stats().Entries == 0 {
		round()
		if time.Now().After(deadline) {
			t.Fatalf("the processes do not share: %+v %+v", a.Stats(), b.Stats())
		}
	}
	go stopA()
	for range 20 {
		round()
	}
	s.await()
	stopA()
	round()
	s.await()
}

// A plan that was stored and not confirmed is stored again under its token.
func TestOpenPlanIsSettled(t *testing.T) {
	s := newSystem(t)
	refused := errors.New("the answer was lost")
	r, stop := s.run(true, refused)
	for range 5 {
		for p := range int32(testPartitions) {
			s.publish(s.commit(p, 4))
		}
	}
	deadline := time.Now().Add(time.Minute)
	for halted := 0; halted < testPartitions; {
		halted = 0
		for _, p := range r.Stats().Partitions {
			if p.Halted != nil {
				halted++
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the partitions did not halt: %+v", r.Stats())
		}
		time.Sleep(10 * time.Millisecond) // polling, as above
	}
	stop()
	if len(s.tokens) == 0 {
		t.Fatal("nothing was stored")
	}
	r, _ = s.run(true, nil)
	s.await()
	if r.Stats().Settled == 0 {
		t.Error("no plan was settled")
	}
}

// The topic is deleted and made again, and most of it is gone for ever.
func TestLostTopicIsFilledFromTheLedger(t *testing.T) {
	s := newSystem(t)
	_, stop := s.run(true, nil)
	for range 10 {
		for p := range int32(testPartitions) {
			s.publish(s.commit(p, 3))
		}
	}
	s.await()
	stop()
	for range 10 {
		for p := range int32(testPartitions) {
			s.commit(p, 3) // committed, and its publication lost with the topic
		}
	}
	admin, err := kafka.NewAdmin(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.DeleteTopics(t.Context(), s.cfg.Topics().Entries); err != nil {
		t.Fatal(err)
	}
	s.topics()
	s.publish(s.commit(0, 2)) // shows partition 0 the gap; the others see it by the ledger's number
	r, _ := s.run(true, nil)
	s.await()
	for p := range int32(testPartitions) {
		if got := r.Stats().Partitions[p]; got.Backfilled < 10 {
			t.Errorf("partition %d: %+v, want 10 commits from the ledger", p, got)
		}
	}
}
