package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const (
	benchAgents  = 2000
	benchTenants = 10
	benchSamples = 25 // of a frame
)

// real is a gateway over the real engines, and agents of it.
type real struct {
	*world
	issuer *agentauth.Issuer
	log    *recording
	change func(*agent.Options)
	store  *counting
	agents []agentauth.Credential
}

// counting counts the questions of hellos to the register.
type counting struct {
	*agentauth.Register
	questions atomic.Int64
}

func (c *counting) Standings(ctx context.Context, id tenant.ID, asks []agentauth.Ask) ([]agentauth.Standing, error) {
	c.questions.Add(1)
	return c.Register.Standings(ctx, id, asks)
}

// recording notes which frames Kafka has acknowledged.
type recording struct {
	*kafka.Producer
	mu    sync.Mutex
	acked map[string]int // by tenant, agent, epoch and number
}

func (r *recording) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error {
	err := r.Producer.ProduceBatch(ctx, recs, results)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.acked == nil {
		return err
	}
	for i := range recs {
		if results[i].Err == nil {
			var b pb.GpuSampleBatch
			if proto.Unmarshal(recs[i].Value, &b) == nil {
				r.acked[fmt.Sprint(b.TenantId, b.AgentId, b.ProducerEpoch, "/", b.Seq)]++
			}
		}
	}
	return err
}

func newReal(t testing.TB, agents int, change func(*agent.Options)) *real {
	t.Helper()
	ring, err := keyring.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	brokers := testenv.Kafka(t)
	cfg := kafka.Config{Brokers: brokers.Seeds, TopicPrefix: brokers.TopicPrefix, AllowPlaintext: true, Logger: slog.New(slog.DiscardHandler)}
	if brokers.SASLMechanism != "" {
		cfg.SASL = kafka.SASL{Mechanism: brokers.SASLMechanism, Username: brokers.SASLUser, Password: brokers.SASLPassword}
	}
	if brokers.TLSCA != "" {
		cfg.TLS = kafka.TLS{Enabled: true, CAFile: brokers.TLSCA}
	}
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	if _, err := admin.EnsureTopics(t.Context(), kafka.TopicSpec{Partitions: 4, ReplicationFactor: 1}); err != nil {
		t.Fatal(err)
	}
	producer, err := kafka.NewProducer(cfg, kafka.ProducerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = producer.Close(context.Background()) })
	db := testenv.MigratedPostgres(t).Open(t, postgres.RoleApp)
	r := &real{world: &world{}, log: &recording{Producer: producer}, store: &counting{Register: agentauth.NewRegister(db, ring)}}
	r.change = func(o *agent.Options) {
		o.Topic, o.Partitions = cfg.Topics().Telemetry, 4
		o.TenantRate, o.StreamRate = 1_000_000, 100_000
		o.RevocationInterval, o.ReportInterval = time.Second, 2*time.Second
		if change != nil {
			change(o)
		}
	}
	r.start(t, r.log, r.store, r.change)
	peppers, err := agentauth.LoadPeppers(t.Context(), agentauth.PepperText(string(r.pepper)), r.store, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.issuer = agentauth.NewIssuer(r.store.Register, peppers)
	by := authn.Principal{Subject: "bench", AllTenants: true, Scopes: authn.AllScopes}
	r.agents = make([]agentauth.Credential, agents)
	var tenants errgroup.Group
	for n := range min(agents, benchTenants) {
		id := tenant.ID(fmt.Sprintf("tenant-%d", n))
		if _, err := ring.Create(id); err != nil {
			t.Fatal(err)
		}
		tenants.Go(func() (err error) {
			for i := n; i < agents && err == nil; i += benchTenants {
				_, r.agents[i], err = r.issuer.Create(t.Context(), by, id, fmt.Sprintf("agent %d", i))
			}
			return err
		})
	}
	if err := tenants.Wait(); err != nil {
		t.Fatal(err)
	}
	return r
}

// restart stops the gateway and starts another one, on another port.
func (r *real) restart(t testing.TB) {
	t.Helper()
	r.stop()
	r.start(t, r.log, r.store, r.change)
}

// encoded is a message that is bytes already: the client of a benchmark shares
// the machine, and is to cost little.
type encoded []byte

type encodedCodec struct{ encoding.CodecV2 }

func (c encodedCodec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(*encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// encodedFrame is an AgentFrame of samples that are encoded already.
func encodedFrame(epoch, seq int64, all []byte) *encoded {
	body := protowire.AppendTag(nil, 1, protowire.VarintType)
	body = protowire.AppendVarint(body, uint64(epoch))
	body = protowire.AppendTag(body, 2, protowire.VarintType)
	body = protowire.AppendVarint(body, uint64(seq))
	b := protowire.AppendTag(make([]byte, 0, len(all)+32), 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(body)+len(all)))
	b = append(append(b, body...), all...)
	return (*encoded)(&b)
}

func encodeSamples(n int) []byte {
	b, err := proto.Marshal(&pb.SampleFrame{Samples: samples(n)})
	if err != nil {
		panic(err)
	}
	return b
}

// cpu is the CPU time of this process: gateway, broker and agents.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load is what agents of a benchmark do together.
type load struct {
	frames atomic.Int64 // acknowledged
	mu     sync.Mutex
	delays []time.Duration
}

// speak sends frames over a stream until ctx ends, at most `window` of them
// unacknowledged; with a pace, one each so often.
func (l *load) speak(ctx context.Context, s *stream, all []byte, window int, first, pace time.Duration) error {
	sent := make([]time.Time, window)
	places := make(chan struct{}, window)
	done := make(chan error, 1)
	go func() {
		acked := int64(0)
		for {
			f, err := s.Recv()
			if err != nil {
				done <- err
				return
			}
			a := f.GetAck()
			if a == nil {
				done <- fmt.Errorf("got %v", f)
				return
			}
			now := time.Now()
			l.mu.Lock()
			for ; acked < a.Seq; acked++ {
				l.delays = append(l.delays, now.Sub(sent[(acked+1)%int64(window)]))
				l.frames.Add(1)
				<-places
			}
			l.mu.Unlock()
		}
	}()
	next := time.Now().Add(first)
	for seq := int64(1); ; seq++ {
		if pace > 0 {
			timer := time.NewTimer(time.Until(next))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
			next = next.Add(pace)
		}
		select {
		case places <- struct{}{}:
		case err := <-done:
			return err
		case <-ctx.Done():
			return nil
		}
		sent[seq%int64(window)] = time.Now()
		if err := s.SendMsg(encodedFrame(s.epoch, seq, all)); err != nil {
			return err
		}
	}
}

func percentile(all []time.Duration, p float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)-1, int(float64(len(all))*p))]
}

// BenchmarkStreams is 2,000 streams, each on a TLS connection of its own, over
// the embedded Kafka with fsync and the embedded Postgres; agents, gateway and
// engines share the machine. An operation is one acknowledged frame of 25
// samples.
func BenchmarkStreams(b *testing.B) {
	for name, pace := range map[string]time.Duration{"flat_out": 0, "paced_50k": time.Second} {
		b.Run(name, func(b *testing.B) { benchStreams(b, pace) })
	}
}

// speakAll has every agent hold a stream and send over it, flat out or one frame each
// pace. It returns when each of them has spoken; stop has them end.
func (r *real) speakAll(t testing.TB, pace time.Duration) (l *load, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	all := encodeSamples(benchSamples)
	streams := r.connectAll(t, ctx)
	l = &load{}
	var agents sync.WaitGroup
	for i, s := range streams {
		agents.Go(func() {
			if err := l.speak(ctx, s, all, 4, pace*time.Duration(i)/benchAgents, pace); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	for l.frames.Load() < int64(len(streams)) {
		time.Sleep(10 * time.Millisecond)
	}
	l.mu.Lock()
	l.delays = l.delays[:0]
	l.mu.Unlock()
	return l, func() {
		cancel()
		agents.Wait()
	}
}

func benchStreams(b *testing.B, pace time.Duration) {
	r := newReal(b, benchAgents, nil)
	l, stop := r.speakAll(b, pace)
	used, first, began := cpu(), l.frames.Load(), time.Now()
	at := first
	for b.Loop() {
		for at++; l.frames.Load() < at; {
			time.Sleep(time.Millisecond)
		}
	}
	took := time.Since(began)
	frames := l.frames.Load() - first
	used = cpu() - used
	stop()
	n := float64(frames * benchSamples)
	b.ReportMetric(n/took.Seconds(), "samples/s")
	b.ReportMetric(float64(used.Microseconds())/n, "cpu-us/sample")
	b.ReportMetric(float64(percentile(l.delays, 0.5).Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(percentile(l.delays, 0.99).Microseconds())/1000, "p99-ms")
	r.checkTaken(b)
}

// checkTaken wants everything to have been taken at once.
func (r *real) checkTaken(t testing.TB) {
	t.Helper()
	if st := r.Stats(); st.DelayedFrames != 0 || st.UnavailableFrames != 0 || st.RefusedSamples != 0 {
		t.Errorf("stats %+v", st)
	}
}

// connectAll has all agents say hello, each on a connection of its own.
func (r *real) connectAll(t testing.TB, ctx context.Context) []*stream {
	t.Helper()
	streams := make([]*stream, len(r.agents))
	places := make(chan struct{}, 64)
	var all sync.WaitGroup
	for i, who := range r.agents {
		conn := r.dial(t)
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			s, err := connect(ctx, conn, who, 1)
			if err != nil {
				t.Error(err)
				return
			}
			streams[i] = s
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return streams
}

// BenchmarkFrame is the hot path's own work on a frame of 25 samples,
// without decoding it.
func BenchmarkFrame(b *testing.B) {
	raw := *encodedFrame(1, 1, encodeSamples(benchSamples))
	b.ReportAllocs()
	walker := agent.NewWalker()
	for b.Loop() {
		if n := walker.Walk(raw); n != benchSamples {
			b.Fatalf("%d samples", n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchSamples, "ns/sample")
}

func (w *world) dialOnce(t testing.TB) *grpc.ClientConn { return w.dialWith(t, nil) }
