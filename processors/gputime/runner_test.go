package gputime

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// message is a batch as the gateway writes it.
func message(b *Batch) *pb.GpuSampleBatch {
	m := &pb.GpuSampleBatch{TenantId: b.Tenant, AgentId: b.Agent, ReceivedAt: timestamppb.New(time.UnixMicro(b.ReceivedAt))}
	for i := range b.Samples {
		m.Samples = append(m.Samples, sampleMessage(&b.Samples[i]))
	}
	return m
}

func sampleMessage(s *Sample) *pb.GpuSample {
	d := s.Device
	m := &pb.GpuSample{
		GpuUuid: s.GPU, MigUuid: s.MIG, MigProfile: s.Profile, StartUs: s.Start, EndUs: s.End, Host: d.Host, Model: d.Model,
		Cloud: d.Cloud, Region: d.Region, InstanceType: d.Instance, PurchaseOption: d.Purchase, MigEnabled: &s.MIGEnabled,
	}
	if s.Relayed {
		m.Source = gpu.SourceOTLP
	}
	percent := func(v int64) *float64 {
		if v == Unknown {
			return nil
		}
		return proto.Float64(float64(v) / (million / 100))
	}
	m.SmActivePercent = percent(s.Used)
	for _, c := range s.Claims {
		w := &pb.GpuWorkload{
			Namespace: c.Owner.Namespace, Pod: c.Owner.Pod, Job: c.Owner.Job, Team: c.Owner.Team, Service: c.Owner.Service,
			Environment: c.Owner.Environment, Allocated: proto.Bool(true), SmUtilizationPercent: percent(c.Used),
		}
		if c.Share != Unknown {
			w.AllocatedShare = proto.Float64(float64(c.Share) / million)
		}
		m.Workloads = append(m.Workloads, w)
	}
	return m
}

// What goes over the wire is what was meant, also at the ends of what is possible.
func TestSamplesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		for _, b := range drawBatches(rt) {
			for i := range b.Samples {
				s, err := sampleOf(sampleMessage(&b.Samples[i]))
				if err != nil {
					rt.Fatal(err)
				}
				o, p := newWindow(place{}), newWindow(place{})
				o.add(&s, factsFrom(&s))
				p.add(&b.Samples[i], factsFrom(&b.Samples[i]))
				if !bytes.Equal(o.encode(), p.encode()) {
					rt.Fatalf("%+v became %+v", b.Samples[i], s)
				}
			}
		}
	})
}

// memoryLog is a partition of telemetry.
type memoryLog struct {
	mu   sync.Mutex
	recs []kafka.Record
	rng  *rand.Rand
}

func (l *memoryLog) ProduceBatch(_ context.Context, recs []kafka.Record, _ []kafka.Result) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range recs {
		r.Offset = int64(len(l.recs))
		l.recs = append(l.recs, r)
	}
	return nil
}

func (l *memoryLog) Open(_ context.Context, at kafka.Position) (Reader, error) {
	return &memoryReader{l, int(at.Offset)}, nil
}
func (l *memoryLog) Start(context.Context) (int64, error) { return 0, nil }
func (l *memoryLog) CommitForLag(int64)                   {}

type memoryReader struct {
	log *memoryLog
	at  int
}

func (r *memoryReader) Next(ctx context.Context) ([]kafka.Record, error) {
	for {
		r.log.mu.Lock()
		if n := min(1+r.log.rng.IntN(4), len(r.log.recs)-r.at); n > 0 {
			out := r.log.recs[r.at : r.at+n]
			r.at += n
			r.log.mu.Unlock()
			return out, nil
		}
		r.log.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
func (r *memoryReader) Topic() kafka.TopicInfo { return kafka.TopicInfo{} }
func (r *memoryReader) Close()                 {}

// flakyEdge takes events, or says that it did not, or takes them and says that it
// did not.
type flakyEdge struct {
	t      *testing.T
	mu     sync.Mutex
	rng    *rand.Rand
	have   map[string][]byte
	order  []event.Event
	again  int
	faults int
	refuse string // id of one that is refused
	seen   chan struct{}
}

var errFlaky = errors.New("away")

func (e *flakyEdge) Submit(_ context.Context, events []event.Event) (map[int]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	fault := 2
	if e.faults > 0 {
		e.faults--
		fault = e.rng.IntN(3)
	}
	if fault == 0 {
		return nil, errFlaky
	}
	refused := map[int]string{}
	for i := range events {
		ev := &events[i]
		body := ev.AppendProducer(nil)
		switch was, ok := e.have[ev.ID]; {
		case ev.ID == e.refuse:
			refused[i] = "tags: max_items"
		case !ok:
			e.have[ev.ID] = body
			e.order = append(e.order, *ev)
		case bytes.Equal(was, body):
			e.again++
		default:
			e.t.Errorf("a second body under %s", ev.ID)
		}
	}
	if fault == 1 {
		return nil, errFlaky
	}
	select {
	case e.seen <- struct{}{}:
	default:
	}
	return refused, nil
}

// Over Postgres, with an edge that fails and processes that are killed at any step,
// exactly the events of the pure Core come out, each with one body, and each
// correction after what it corrects.
func TestRunnerIsKilledAtAnyStep(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	store := NewStore(l.Open(t, postgres.RoleProcessors))
	rng := rand.New(rand.NewPCG(7, 7))
	for round := range int32(6) {
		batches := rapid.Custom(drawBatches).Example(int(round) + 1)
		id := tenant.ID("acme")
		partitions := round + 1 // another partition each round: another checkpoint
		part := id.Partition(partitions)
		name := string(id)
		pure, log := newWorld(t, testOptions), &memoryLog{rng: rng}
		var end int64
		for i := range batches {
			batches[i].Agent = "agent"
			end = max(end, batches[i].ReceivedAt)
		}
		batches = append(batches, Batch{Tenant: name, Agent: "agent", ReceivedAt: end + 1000*second})
		for i := range batches {
			pure.apply(&batches[i])
			value, err := proto.Marshal(message(&batches[i]))
			if err != nil {
				t.Fatal(err)
			}
			_ = log.ProduceBatch(t.Context(), []kafka.Record{{Key: []byte(name), Value: value}}, nil)
		}
		pure.commit()
		clean(t, l)
		edge := &flakyEdge{t: t, rng: rng, have: map[string][]byte{}, faults: 12, seen: make(chan struct{}, 1)}
		opts := testOptions
		opts.Commit = time.Microsecond
		r, err := New(Parts{Store: store, Edge: edge, Publisher: log, Tenants: func() []tenant.ID { return []tenant.ID{id} }, Partitions: partitions}, opts)
		if err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(40 * time.Second)
		for len(edge.order) < len(pure.events) && time.Now().Before(deadline) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(120))*time.Millisecond)
			if err := r.RunPartition(ctx, part, log); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
		if len(edge.order) != len(pure.events) {
			t.Fatalf("round %d: %d events, want %d", round, len(edge.order), len(pure.events))
		}
		for i := range pure.events {
			if got := edge.have[pure.events[i].ID]; !bytes.Equal(got, pure.events[i].AppendProducer(nil)) {
				t.Fatalf("round %d: event %d differs from that of the pure core", round, i)
			}
		}
		net(t, edge.order)
	}
}

// clean empties the tables, as superuser.
func clean(t *testing.T, l *testenv.Ledger) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), "truncate processors.gpu_window, processors.gpu_outbox, processors.gpu_partition, processors.gpu_count"); err != nil {
		t.Fatal(err)
	}
}

// A silence lets the clock go on by a record; what the edge refuses stays where an
// operator sees it; counts are kept; an earlier owner is fenced.
func TestSilenceRefusalAndFence(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	store := NewStore(l.Open(t, postgres.RoleProcessors))
	now := time.UnixMicro(base + 1000*second)
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Second); return now }
	opts := testOptions
	opts.Commit, opts.Now = time.Microsecond, clock
	log := &memoryLog{rng: rand.New(rand.NewPCG(1, 1))}
	b := Batch{Tenant: "acme", Agent: "agent", ReceivedAt: base + 60*second, Samples: samplesOf("g", base, 6, func(i int64, s *Sample) { s.Used = i % 2 * million })}
	value, err := proto.Marshal(message(&b))
	if err != nil {
		t.Fatal(err)
	}
	_ = log.ProduceBatch(t.Context(), []kafka.Record{
		{Key: []byte("acme"), Value: value}, {Key: []byte("acme"), Value: []byte("no batch")}, {Key: []byte("other"), Value: value},
	}, nil)
	pure := newWorld(t, testOptions)
	pure.apply(&b)
	pure.flush()
	edge := &flakyEdge{t: t, rng: log.rng, have: map[string][]byte{}, refuse: pure.events[0].ID, seen: make(chan struct{}, 1)}
	r, err := New(Parts{Store: store, Edge: edge, Publisher: log, Tenants: func() []tenant.ID { return []tenant.ID{"acme"} }, Partitions: 1}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.RunPartition(ctx, 0, log) }()
	select {
	case <-edge.seen:
	case <-time.After(30 * time.Second):
		t.Fatal("no window was closed by the silence")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(edge.order) != len(pure.events)-1 {
		t.Errorf("%d events, want %d", len(edge.order), len(pure.events)-1)
	}
	last := log.recs[len(log.recs)-1]
	var tick pb.GpuSampleBatch
	if err := proto.Unmarshal(last.Value, &tick); err != nil || tick.TenantId != "system/0" || len(tick.Samples) != 0 {
		t.Errorf("the clock's record is %v, %v", &tick, err)
	}
	if counts, err := store.CountsOf(t.Context(), "acme"); err != nil || counts["agent"] != (Counts{Accounted: 6}) {
		t.Errorf("%+v, %v", counts, err)
	}
	cp, err := store.Open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if cp.Clock == 0 || cp.Oldest != cp.Clock-testOptions.Horizon.Microseconds() {
		t.Errorf("the checkpoint has %+v", cp)
	}
	if _, err := store.Open(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := store.Commit(t.Context(), 0, cp, &Changes{}); !errors.Is(err, ErrFenced) {
		t.Errorf("an earlier owner commits: %v", err)
	}
}
