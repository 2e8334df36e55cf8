package clickhouse_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"github.com/tallystick/tallystick/internal/clickhouse"
)

var benchTables = []string{
	`CREATE TABLE bench (
		tenant_id LowCardinality(String), seq UInt64, id UUID, at DateTime64(6), received DateTime64(6), model LowCardinality(String),
		provider LowCardinality(String), project LowCardinality(String), agent LowCardinality(String), kind UInt8, input UInt64,
		output UInt64, cached UInt64, reasoning UInt64, cost Decimal(38, 12), price_row UInt32, book FixedString(32), latency_ms UInt32,
		status UInt16, subject String
	) ENGINE = MergeTree ORDER BY (tenant_id, seq) SETTINGS non_replicated_deduplication_window = 1000`,
	`CREATE TABLE bench_hourly (
		tenant_id LowCardinality(String), hour DateTime, model LowCardinality(String), project LowCardinality(String),
		n UInt64, input UInt64, output UInt64, cost Decimal(38, 12)
	) ENGINE = SummingMergeTree ORDER BY (tenant_id, hour, model, project) SETTINGS non_replicated_deduplication_window = 1000`,
	`CREATE MATERIALIZED VIEW bench_hourly_mv TO bench_hourly AS
	 SELECT tenant_id, toStartOfHour(at) AS hour, model, project, count() AS n, sum(input) AS input, sum(output) AS output, sum(cost) AS cost
	 FROM bench GROUP BY tenant_id, hour, model, project`,
}

// benchRow is one row; cost counts 1e-12 USD.
type benchRow struct {
	tenant, model, provider, project, agent, subject string
	seq, input, output, cached, reasoning            uint64
	id                                               uuid.UUID
	at                                               time.Time
	cost                                             int64
	price, latency                                   uint32
	kind                                             uint8
	status                                           uint16
	book                                             [32]byte
}

func benchRows(n int) []benchRow {
	rows := make([]benchRow, n)
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for i := range rows {
		rows[i] = benchRow{
			tenant: fmt.Sprintf("tenant-%d", i%50), model: fmt.Sprintf("model-%d", i%12), provider: fmt.Sprintf("provider-%d", i%4),
			project: fmt.Sprintf("project-%d", i%40), agent: fmt.Sprintf("agent-%d", i%200), subject: fmt.Sprintf("%032x", i*2654435761),
			seq: uint64(i), input: uint64(i * 7 % 9000), output: uint64(i * 3 % 2000), cached: uint64(i % 500), reasoning: uint64(i % 90),
			id: uuid.Must(uuid.NewV7()), at: start.Add(time.Duration(i) * 37 * time.Millisecond), cost: int64(i) * 1_234_567,
			price: uint32(i % 60), latency: uint32(i % 4000), kind: 1, status: 200, book: [32]byte{1, 2, 3},
		}
	}
	return rows
}

// benchColumns are reused from block to block.
type benchColumns struct {
	tenant, model, provider, project, agent *proto.ColLowCardinality[string]
	seq, input, output, cached, reasoning   proto.ColUInt64
	id                                      proto.ColUUID
	at, received                            *proto.ColDateTime64
	kind                                    proto.ColUInt8
	cost                                    proto.ColDecimal128
	price, latency                          proto.ColUInt32
	book                                    proto.ColFixedStr
	status                                  proto.ColUInt16
	subject                                 proto.ColStr
	block                                   clickhouse.Block
}

func newBenchColumns() *benchColumns {
	lc := func() *proto.ColLowCardinality[string] { return new(proto.ColStr).LowCardinality() }
	c := &benchColumns{
		tenant: lc(), model: lc(), provider: lc(), project: lc(), agent: lc(),
		at: new(proto.ColDateTime64).WithPrecision(6), received: new(proto.ColDateTime64).WithPrecision(6),
		book: proto.ColFixedStr{Size: 32},
	}
	c.block = clickhouse.Block{
		{Name: "tenant_id", Data: c.tenant}, {Name: "seq", Data: &c.seq}, {Name: "id", Data: &c.id}, {Name: "at", Data: c.at},
		{Name: "received", Data: c.received}, {Name: "model", Data: c.model}, {Name: "provider", Data: c.provider},
		{Name: "project", Data: c.project}, {Name: "agent", Data: c.agent}, {Name: "kind", Data: &c.kind}, {Name: "input", Data: &c.input},
		{Name: "output", Data: &c.output}, {Name: "cached", Data: &c.cached}, {Name: "reasoning", Data: &c.reasoning},
		{Name: "cost", Data: proto.Alias(&c.cost, "Decimal(38, 12)")}, {Name: "price_row", Data: &c.price}, {Name: "book", Data: &c.book},
		{Name: "latency_ms", Data: &c.latency}, {Name: "status", Data: &c.status}, {Name: "subject", Data: &c.subject},
	}
	return c
}

func (c *benchColumns) fill(rows []benchRow) clickhouse.Block {
	c.block.Reset()
	c.cost.Reset()
	for i := range rows {
		r := &rows[i]
		c.tenant.Append(r.tenant)
		c.seq.Append(r.seq)
		c.id.Append(r.id)
		c.at.Append(r.at)
		c.received.Append(r.at)
		c.model.Append(r.model)
		c.provider.Append(r.provider)
		c.project.Append(r.project)
		c.agent.Append(r.agent)
		c.kind.Append(r.kind)
		c.input.Append(r.input)
		c.output.Append(r.output)
		c.cached.Append(r.cached)
		c.reasoning.Append(r.reasoning)
		c.cost.Append(proto.Decimal128{Low: uint64(r.cost), High: uint64(r.cost >> 63)})
		c.price.Append(r.price)
		c.book.Append(r.book[:])
		c.latency.Append(r.latency)
		c.status.Append(r.status)
		c.subject.Append(r.subject)
	}
	return c.block
}

func appendBatch(b *testing.B, db *clickhouse.DB, token string, rows []benchRow) {
	ctx := ch.Context(b.Context(), ch.WithSettings(ch.Settings{"insert_deduplication_token": token, "async_insert": 0}))
	batch, err := db.PrepareBatch(ctx, "INSERT INTO bench")
	if err != nil {
		b.Fatal(err)
	}
	for i := range rows {
		r := &rows[i]
		if err := batch.Append(r.tenant, r.seq, r.id, r.at, r.at, r.model, r.provider, r.project, r.agent, r.kind, r.input, r.output,
			r.cached, r.reasoning, decimal.New(r.cost, -12), r.price, string(r.book[:]), r.latency, r.status, r.subject); err != nil {
			b.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkInsert compares our one-post insert with clickhouse-go's row batch,
// interleaved block by block, into 20 columns with one materialised view. It
// prints rows/s of each by the median block, their ratio, the CPU of both
// processes per row, and the engine's peak memory.
func BenchmarkInsert(b *testing.B) {
	for _, size := range []int{10_000, 50_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) { benchmarkInsert(b, size) })
	}
}

func benchmarkInsert(b *testing.B, size int) {
	_, db := newDatabase(b)
	mustExec(b, db, benchTables...)
	rows, columns := benchRows(size), newBenchColumns()
	var fast, slow way
	sent := uint64(0)
	for b.Loop() {
		for _, w := range []*way{&fast, &slow} {
			sent++
			token := strconv.FormatUint(sent, 10)
			w.measure(b, func() {
				if w == &slow {
					appendBatch(b, db, token, rows)
				} else if err := db.Insert(b.Context(), "bench", token, columns.fill(rows)); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
	if n := count(b, db, "SELECT sum(n) FROM bench_hourly"); n != sent*uint64(size) {
		b.Fatalf("%d rows by the view, want %d", n, sent*uint64(size))
	}
	perRow := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(size) }
	b.ReportMetric(float64(size)/fast.median().Seconds(), "rows/s")
	b.ReportMetric(float64(size)/slow.median().Seconds(), "batch-rows/s")
	b.ReportMetric(slow.median().Seconds()/fast.median().Seconds(), "vs_batch")
	b.ReportMetric(perRow(fast.own)/float64(len(fast.blocks)), "client-cpu-µs/row")
	b.ReportMetric(perRow(slow.own)/float64(len(slow.blocks)), "batch-client-cpu-µs/row")
	b.ReportMetric(perRow(fast.engine)/float64(len(fast.blocks)), "engine-cpu-µs/row")
	b.ReportMetric(float64(peakBytes(b, engine.PID())>>20), "engine-peak-MiB")
	b.ReportMetric(0, "ns/op")
}

// way collects one side of the comparison.
type way struct {
	blocks      []time.Duration
	own, engine time.Duration // CPU of this process and of the engine's
}

func (w *way) measure(b *testing.B, insert func()) {
	own, child, begin := ownCPU(b), processCPU(b, engine.PID()), time.Now()
	insert()
	w.blocks = append(w.blocks, time.Since(begin))
	w.own += ownCPU(b) - own
	w.engine += processCPU(b, engine.PID()) - child
}

func (w *way) median() time.Duration {
	sorted := slices.Clone(w.blocks)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

func ownCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// processCPU reads user and system time from the process table, in which they
// count 10 ms ticks.
func processCPU(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func peakBytes(b *testing.B, pid int) uint64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib uint64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib << 10
}
