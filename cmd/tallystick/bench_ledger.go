package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/migrations"
)

// benchBatch is the rows of one commit, of the ledger and of every baseline.
const benchBatch = 10_000

// benchDB is a Postgres of the benchmark's own.
type benchDB struct {
	pg    *embedded.Postgres
	store *pgstore.Store
	db    *postgres.DB
	plain *pgx.Conn // superuser, for baselines

	signer *postgres.Signer
	dsns   map[postgres.Role]string
}

func (r *benchRun) openPostgres(ctx context.Context, name string) (*benchDB, error) {
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{DataDir: filepath.Join(r.dir, name)})
	if err != nil {
		return nil, err
	}
	b := &benchDB{pg: pg}
	dsn := pg.DSN(embedded.PostgresSuperuser, "postgres")
	if err := migrations.Postgres(ctx, dsn); err != nil {
		return b, err
	}
	b.signer = postgres.NewSigner(1, [32]byte{1})
	if b.dsns, err = postgres.Provision(ctx, dsn, b.signer, [32]byte{2}); err != nil {
		return b, err
	}
	if b.db, err = postgres.Open(ctx, b.dsns[postgres.RoleLedger], b.signer, postgres.Options{MaxConns: 8}); err != nil {
		return b, err
	}
	b.store = pgstore.New(b.db)
	if b.plain, err = pgx.Connect(ctx, dsn); err != nil {
		return b, err
	}
	return b, r.assertSafe(ctx, b.plain)
}

func (b *benchDB) close() {
	if b.plain != nil {
		b.plain.Close(context.Background())
	}
	if b.db != nil {
		b.db.Close()
	}
	_ = b.pg.Stop(context.Background())
}

// assertSafe refuses to measure a server that could lose a commit.
func (r *benchRun) assertSafe(ctx context.Context, conn *pgx.Conn) error {
	line := "  postgres settings:"
	for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		var v string
		if err := conn.QueryRow(ctx, "select current_setting($1)", name).Scan(&v); err != nil {
			return err
		}
		line += " " + name + "=" + v
		if v != "on" {
			return fmt.Errorf("%s is %s: a figure without it means nothing", name, v)
		}
	}
	r.printf("%s", line)
	return nil
}

// benchKeys derives MAC keys from names.
type benchKeys struct{}

func (benchKeys) MACKey(id tenant.ID, epoch uint32) ([32]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s/%d", id, epoch)), nil
}

// nowhere is a Publisher that acknowledges at once: the ledger's own speed is
// measured without Kafka's.
type nowhere struct{}

func (nowhere) ProduceBatch(context.Context, []kafka.Record, []kafka.Result) error { return nil }

// feed is a Source in memory that gives out what is pushed into it.
type feed struct {
	batches chan []kafka.Record
	next    int64
}

func newFeed() *feed { return &feed{batches: make(chan []kafka.Record, 64)} }

func (f *feed) Open(context.Context, kafka.Position) (ledger.Reader, error) { return f, nil }
func (f *feed) CommitForLag(int64)                                          {}
func (f *feed) Close()                                                      {}

func (f *feed) Next(ctx context.Context) ([]kafka.Record, error) {
	select {
	case b := <-f.batches:
		for i := range b {
			b[i].Offset = f.next
			f.next++
		}
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// benchEvents makes n usage records of a few tenants of one partition, half of
// them of one hot tenant, with time-ordered ids.
func benchEvents(tenants []string, partition int32, n int) []kafka.Record {
	recs := make([]kafka.Record, n)
	now := time.Now().UnixNano()
	for i := range recs {
		id, _ := uuid.NewV7() // fails only when the system has no randomness
		e := event.Event{
			ID: id.String(), Tenant: tenants[0], OccurredAt: now + int64(i), ReceivedAt: now + int64(i) + 1,
			ProducerID: "bench", ProducerEpoch: 1, ProducerSeq: int64(i + 1), Provider: "openai", Model: "gpt-4o",
			Operation: "chat", Region: "us-east-1", ServiceTier: "standard", Status: "ok", HTTPStatus: 200, LatencyMicros: 812_345, TTFTMicros: 210_000,
			Team: "search", Service: "ranking-api", Environment: "production", HasContentMAC: true,
			ContentMAC: sha256.Sum256(id[:]),
		}
		if i%2 == 1 {
			e.Tenant = tenants[1+(i/2)%(len(tenants)-1)]
		}
		e.Tokens[tokens.Input], e.Tokens[tokens.CacheRead], e.Tokens[tokens.Output] = int64(200+i%4000), int64(i%900), int64(20+i%800)
		recs[i] = kafka.Record{Partition: partition, Key: []byte(e.Tenant), Value: event.AppendUsageRecord(nil, &e)}
	}
	return recs
}

// benchTenants names tenants that live in the partition.
func benchTenants(partition, partitions int32, n int) (ids []string) {
	for i := 0; len(ids) < n; i++ {
		if id := fmt.Sprintf("bench-%d", i); tenant.ID(id).Partition(partitions) == partition {
			ids = append(ids, id)
		}
	}
	return ids
}

// lane is one partition that is written.
type lane struct {
	partition int32
	tenants   []string
	feed      *feed
	fed       int64
}

const benchPartitions = 2

// benchIssued is when the benchmark's control records were issued, 2026-01-01.
const benchIssued = 1_767_225_600_000_000_000

// ledgerBench is a writer over memory, with its baselines beside it.
type ledgerBench struct {
	r      *benchRun
	b      *benchDB
	writer *ledger.Writer
	lanes  [benchPartitions]*lane
	done   chan error
	cancel context.CancelFunc
}

func (r *benchRun) startLedger(ctx context.Context, b *benchDB) *ledgerBench {
	lb := &ledgerBench{r: r, b: b, done: make(chan error, benchPartitions)}
	ctx, lb.cancel = context.WithCancel(ctx)
	topic := ledger.Topic{ID: [16]byte{1}, Partitions: benchPartitions}
	lb.writer = ledger.NewWriter(b.store, benchKeys{}, nowhere{}, kafka.Topics{}, ledger.Options{MaxBatchRecords: benchBatch}, warnings())
	for p := range int32(benchPartitions) {
		l := &lane{partition: p, tenants: benchTenants(p, benchPartitions, 20), feed: newFeed()}
		lb.lanes[p] = l
		lb.push(l, benchControls(l))
		go func() { lb.done <- lb.writer.RunPartition(ctx, topic, p, l.feed) }()
	}
	return lb
}

// benchControls are the records that make the lane's tenants and give it prices.
func benchControls(l *lane) []kafka.Record {
	book := pricing.Builtin()
	recs := []kafka.Record{{Key: []byte(tenant.System(l.partition)), Value: event.AppendControlRecord(nil,
		&event.Control{Kind: event.ControlPriceBook, Version: book.Version(), Content: book.Marshal(), IssuedAt: benchIssued})}}
	for _, id := range l.tenants {
		recs = append(recs, kafka.Record{Key: []byte(id), Value: event.AppendControlRecord(nil,
			&event.Control{Kind: event.ControlKeyEpoch, Tenant: id, Version: "1", IssuedAt: benchIssued})})
	}
	return recs
}

func (lb *ledgerBench) push(l *lane, recs []kafka.Record) {
	l.fed += int64(len(recs))
	l.feed.batches <- recs
}

// wait returns when everything that was pushed is committed.
func (lb *ledgerBench) wait(ctx context.Context) error {
	for {
		places, behind := lb.writer.Stats().Places(), false
		for _, l := range lb.lanes {
			if err := places[l.partition].Halted; err != nil {
				return err
			}
			behind = behind || places[l.partition].NextOffset < l.fed
		}
		if !behind {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Microsecond):
		}
	}
}

func (lb *ledgerBench) stop() error {
	lb.cancel()
	var errs []error
	for range lb.lanes {
		errs = append(errs, <-lb.done)
	}
	return errors.Join(errs...)
}

// block writes n batches through the first lanes.
func (lb *ledgerBench) block(ctx context.Context, lanes, n int) (sample, error) {
	var prepared [][]kafka.Record
	for range n {
		for _, l := range lb.lanes[:lanes] {
			prepared = append(prepared, benchEvents(l.tenants, l.partition, benchBatch))
		}
	}
	return measure(lb.b.pg.PID(), n*lanes*benchBatch, func() error {
		for i, recs := range prepared {
			lb.push(lb.lanes[i%lanes], recs)
		}
		return lb.wait(ctx)
	})
}

// benchLedger measures the writer, complete with dedupe, prices, chain, MAC,
// tenant context and synchronous commit, against plain COPY of the same rows
// into plain tables with the same columns and unique indexes, and against a
// ledger that commits row by row.
func (r *benchRun) benchLedger(ctx context.Context) error {
	r.printf("ledger writer (batches of %d rows)", benchBatch)
	b, err := r.openPostgres(ctx, "postgres-ledger")
	if b != nil {
		defer b.close()
	}
	if err != nil {
		return err
	}
	base, err := newCopyBaseline(ctx, b)
	if err != nil {
		return err
	}
	rowtx, err := newRowBaseline(ctx, b)
	if err != nil {
		return err
	}
	lb := r.startLedger(ctx, b)
	if err := lb.wait(ctx); err != nil {
		return err
	}
	rounds, batches, rowTime := 12, 5, 1500*time.Millisecond
	if r.short {
		rounds, batches, rowTime = 3, 2, 300*time.Millisecond
	}
	var one, two, copies, rows []sample
	for i := range rounds + 1 {
		var s [4]sample
		var errs [4]error
		s[0], errs[0] = base.block(ctx, batches)
		s[1], errs[1] = lb.block(ctx, 1, batches)
		s[2], errs[2] = lb.block(ctx, 2, batches)
		s[3], errs[3] = rowtx.block(ctx, rowTime)
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		if i == 0 {
			continue // the first round warms up
		}
		copies, one, two, rows = append(copies, s[0]), append(one, s[1]), append(two, s[2]), append(rows, s[3])
	}
	if err := lb.stop(); err != nil {
		return err
	}
	r.report("COPY baseline", copies)
	r.report("ledger, one partition", one)
	r.report("ledger, two partitions", two)
	r.report("row per transaction", rows)
	r.set("ledger", "%.0f/s", medianRate(one))
	r.set("ledger_vs_copy", "%.2f", medianRatio(one, copies))
	r.set("ledger2_vs_copy", "%.2f", medianRatio(two, copies))
	r.set("ledger_vs_rowtx", "%.0f", medianRatio(one, rows))
	return r.benchVerify(ctx, b, lb.lanes[0].tenants[0])
}

// copyBaseline loads prepared binary COPY streams into plain tables with the
// ledger's columns and both unique indexes: what the same disk, server and batch
// size can do without being a ledger.
type copyBaseline struct {
	b *benchDB
	n int64
}

func newCopyBaseline(ctx context.Context, b *benchDB) (*copyBaseline, error) {
	_, err := b.plain.Exec(ctx, `
		create schema bench;
		create table bench.entry (like ledger.entry, primary key (tenant_id, seq));
		create table bench.event_key (like ledger.event_key, primary key (tenant_id, key));`)
	return &copyBaseline{b: b}, err
}

// capture is a Store that passes on what a commit would write, and stores
// nothing.
type capture struct {
	ledger.Store
	commit func(*ledger.Batch)
}

func (c *capture) Assign(context.Context, ledger.Topic, int32) (ledger.State, error) {
	return ledger.State{Epoch: 1}, nil
}
func (c *capture) Heads(context.Context, []string) ([]ledger.Head, error)            { return nil, nil }
func (c *capture) Known(context.Context, []ledger.KeyRef) ([]ledger.KnownKey, error) { return nil, nil }
func (c *capture) Published(context.Context, int32, int64, int64) error              { return nil }
func (c *capture) Commit(_ context.Context, b *ledger.Batch) error {
	c.commit(b)
	return nil
}

// write has the ledger's own code make the controls of the tenants in a commit
// of their own, and then some batches of events.
func (c *capture) write(ctx context.Context, tenants []string, batches int) error {
	w := ledger.NewWriter(c, benchKeys{}, nowhere{}, kafka.Topics{}, ledger.Options{MaxBatchRecords: benchBatch}, warnings())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &lane{tenants: tenants, feed: newFeed()}
	done := make(chan error, 1)
	go func() { done <- w.RunPartition(ctx, ledger.Topic{ID: [16]byte{2}, Partitions: 1}, 0, l.feed) }()
	lb := &ledgerBench{writer: w}
	for i := range lb.lanes {
		lb.lanes[i] = l
	}
	lb.push(l, benchControls(l))
	if err := lb.wait(ctx); err != nil {
		return err
	}
	for range batches {
		lb.push(l, benchEvents(tenants, 0, benchBatch))
	}
	if err := lb.wait(ctx); err != nil {
		return err
	}
	cancel()
	return <-done
}

// prepare makes the COPY streams of n batches by the ledger's own code.
func (c *copyBaseline) prepare(ctx context.Context, n int) (entries, keys [][]byte, err error) {
	store := &capture{commit: func(b *ledger.Batch) {
		e, k := pgstore.EncodeCopy(b)
		entries, keys = append(entries, e), append(keys, k)
	}}
	c.n++ // tenants of its own in each block, so that numbers do not repeat
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("base-%d-%d", c.n, i))
	}
	if err := store.write(ctx, ids, n); err != nil {
		return nil, nil, err
	}
	return entries[1:], keys[1:], nil // without the controls
}

func (c *copyBaseline) block(ctx context.Context, n int) (sample, error) {
	entries, keys, err := c.prepare(ctx, n)
	if err != nil {
		return sample{}, err
	}
	return measure(c.b.pg.PID(), n*benchBatch, func() error {
		for i := range entries {
			if err := c.load(ctx, entries[i], keys[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *copyBaseline) load(ctx context.Context, entries, keys []byte) error {
	return pgx.BeginFunc(ctx, c.b.plain, func(tx pgx.Tx) error {
		pg := tx.Conn().PgConn()
		if _, err := pg.CopyFrom(ctx, bytes.NewReader(entries), "copy bench.entry from stdin binary"); err != nil {
			return err
		}
		_, err := pg.CopyFrom(ctx, bytes.NewReader(keys), "copy bench.event_key from stdin binary")
		return err
	})
}

// rowBaseline is the ledger that most systems have: one transaction a row, the
// head read and locked, the entry and its id inserted.
type rowBaseline struct {
	b *benchDB
	n int
}

func newRowBaseline(ctx context.Context, b *benchDB) (*rowBaseline, error) {
	_, err := b.plain.Exec(ctx, `
		create table bench.row_head (tenant_id text primary key, seq bigint not null, chain bytea not null);
		create table bench.row_entry (like ledger.entry, primary key (tenant_id, seq));
		create table bench.row_key (like ledger.event_key, primary key (tenant_id, key));
		insert into bench.row_head select 'row-' || i, 0, sha256('') from generate_series(0, 19) i;`)
	return &rowBaseline{b: b}, err
}

func (rb *rowBaseline) block(ctx context.Context, d time.Duration) (sample, error) {
	rows := 0
	body := make([]byte, 290)
	s, err := measure(rb.b.pg.PID(), 0, func() error {
		for end := time.Now().Add(d); time.Now().Before(end); rows++ {
			if err := rb.write(ctx, fmt.Sprintf("row-%d", rb.n%20), body); err != nil {
				return err
			}
			rb.n++
		}
		return nil
	})
	s.rows = rows
	return s, err
}

func (rb *rowBaseline) write(ctx context.Context, id string, body []byte) error {
	return pgx.BeginFunc(ctx, rb.b.plain, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended($1, 0))", id); err != nil {
			return err
		}
		var seq int64
		var prev []byte
		if err := tx.QueryRow(ctx, "select seq, chain from bench.row_head where tenant_id = $1 for update", id).Scan(&seq, &prev); err != nil {
			return err
		}
		leaf := sha256.Sum256(body)
		chain := sha256.Sum256(append(prev, leaf[:]...))
		if _, err := tx.Exec(ctx, `insert into bench.row_entry values ($1, $2, 1, 1, now(), 0.001, $3, $4, $4)`, id, seq+1, body, chain[:]); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `insert into bench.row_key values ($1, $2, $3, $4)`, id, uuid.New(), hex.EncodeToString(chain[:16]), seq+1); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "update bench.row_head set seq = $2, chain = $3 where tenant_id = $1", id, seq+1, chain[:])
		return err
	})
}
