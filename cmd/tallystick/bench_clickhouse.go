package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/migrations"
)

// clickhouseBench inserts the same rows into the same table, with its view, in
// three ways.
type clickhouseBench struct {
	db      *clickhouse.DB
	writer  *analytics.Writer
	entries []chain.Entry
	rows    [][]any // the entries as clickhouse-go takes them
	plans   int64
}

// benchClickHouse measures how plans of the ledger's batch size are stored, from
// decoded entries to durable rows: ours, clickhouse-go's row append, and the
// engine alone copying the rows from a table in its memory.
func (r *benchRun) benchClickHouse(ctx context.Context) (err error) {
	lib, err := embedded.FindCHDB("")
	if err != nil {
		return err
	}
	engine, err := embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{DataDir: filepath.Join(r.dir, "clickhouse"), LibPath: lib})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Stop(context.Background())) }()
	b, err := openClickHouseBench(ctx, engine.DSN("default"))
	if err != nil {
		return err
	}
	defer b.db.Close()
	rounds := 30
	if r.short {
		rounds = 3
	}
	paths := []struct {
		name string
		run  func(context.Context) error
		s    []sample
	}{
		{name: "engine only", run: b.inside},
		{name: "clickhouse-go row append", run: b.rowAppend},
		{name: "ours", run: b.store},
	}
	for i := range rounds + 1 {
		for j := range paths {
			s, err := measure(engine.PID(), len(b.entries), func() error { return paths[j].run(ctx) })
			if err != nil {
				return fmt.Errorf("%s: %w", paths[j].name, err)
			}
			if i > 0 { // the first round warms up
				paths[j].s = append(paths[j].s, s)
			}
		}
	}
	r.printf("clickhouse (table entry with its view, %d rows an insert)", len(b.entries))
	for _, p := range paths {
		r.report(p.name, p.s)
	}
	r.set("clickhouse_vs_engine", "%.2f", medianRatio(paths[2].s, paths[0].s))
	r.set("clickhouse_vs_append", "%.2f", medianRatio(paths[2].s, paths[1].s))
	return b.check(ctx, 3*(rounds+1)+1)
}

// openClickHouseBench makes the schema and the rows of each way.
func openClickHouseBench(ctx context.Context, dsn string) (_ *clickhouseBench, err error) {
	if err := migrations.ClickHouse(ctx, dsn); err != nil {
		return nil, err
	}
	b := &clickhouseBench{}
	if b.entries, err = benchEntries(ctx, 1); err != nil {
		return nil, err
	}
	if b.db, err = clickhouse.Open(ctx, dsn, clickhouse.Writer); err != nil {
		return nil, err
	}
	b.writer = analytics.NewWriter(b.db)
	err = b.store(ctx)
	if err == nil {
		err = b.db.Exec(ctx, "CREATE TABLE bench_rows ENGINE = Memory AS SELECT * FROM entry")
	}
	if err == nil {
		err = b.readRows(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	return b, nil
}

// readRows reads the stored rows back as values of clickhouse-go.
func (b *clickhouseBench) readRows(ctx context.Context) error {
	rows, err := b.db.Query(ctx, "SELECT * FROM bench_rows")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		types := rows.ColumnTypes()
		values := make([]any, len(types))
		for i, t := range types {
			values[i] = reflect.New(t.ScanType()).Interface()
		}
		if err := rows.Scan(values...); err != nil {
			return err
		}
		for i := range values {
			values[i] = reflect.ValueOf(values[i]).Elem().Interface()
		}
		b.rows = append(b.rows, values)
	}
	return rows.Err()
}

// store is a plan of ours.
func (b *clickhouseBench) store(ctx context.Context) error {
	b.plans++
	b.writer.Reset()
	for i := range b.entries {
		if err := b.writer.Append(&b.entries[i], b.plans); err != nil {
			return err
		}
	}
	return b.writer.Store(ctx, fmt.Sprint("plan-", b.plans), []analytics.Range{{From: b.plans, To: b.plans}})
}

// once is a context whose insert has a token of its own, as ours have.
func (b *clickhouseBench) once(ctx context.Context) context.Context {
	b.plans++
	return ch.Context(ctx, ch.WithSettings(ch.Settings{
		"insert_deduplication_token": fmt.Sprint("bench-", b.plans), "async_insert": 0,
		"deduplicate_blocks_in_dependent_materialized_views": 1,
	}))
}

func (b *clickhouseBench) rowAppend(ctx context.Context) error {
	batch, err := b.db.PrepareBatch(b.once(ctx), "INSERT INTO entry")
	if err != nil {
		return err
	}
	defer batch.Close()
	for _, values := range b.rows {
		if err := batch.Append(values...); err != nil {
			return err
		}
	}
	return batch.Send()
}

func (b *clickhouseBench) inside(ctx context.Context) error {
	return b.db.Exec(b.once(ctx), "INSERT INTO entry SELECT * FROM bench_rows")
}

// check counts what the ways have stored, in the table and by its view.
func (b *clickhouseBench) check(ctx context.Context, inserts int) error {
	var stored, viewed uint64
	err := b.db.QueryRow(ctx, "SELECT (SELECT count() FROM entry), (SELECT sum(sum_requests) FROM usage_hour)").Scan(&stored, &viewed)
	if want := uint64(inserts * len(b.entries)); err == nil && (stored != want || viewed != want) {
		err = fmt.Errorf("stored %d rows, %d by the view, want %d", stored, viewed, want)
	}
	return err
}
