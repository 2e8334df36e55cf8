package postgres

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Bound is a transaction that a context can be signed for. One made by
// InTenant and its like sends the context together with its first statement,
// which spares a round trip.
//
// It is the driver's Tx, but for savepoints and large objects, which it refuses.
// The driver's own would take one round trip more to begin, or
// the extended protocol's time for three statements.
type Bound struct {
	conn    *Conn
	of      transaction
	pending string // the token that is still to be entered
	closed  bool
}

var _ pgx.Tx = (*Bound)(nil)

// begin begins a transaction with statements of which the last is
// askTransaction.
func begin(ctx context.Context, conn *Conn, statements string) (*Bound, error) {
	b := &Bound{conn: conn}
	results, err := conn.PgConn().Exec(ctx, statements).ReadAll()
	if err == nil {
		if last := results[len(results)-1]; len(last.Rows) == 1 && len(last.Rows[0]) == 2 {
			b.of.pid = string(last.Rows[0][0])
			b.of.start = strings.TrimPrefix(string(last.Rows[0][1]), `\x`)
			return b, nil
		}
		err = errNoTransaction
	}
	// It may have begun.
	_ = b.Rollback(context.WithoutCancel(ctx))
	return nil, err
}

// Commit is as of the driver's Tx.
func (b *Bound) Commit(ctx context.Context) error {
	if b.closed {
		return pgx.ErrTxClosed
	}
	b.closed = true
	tag, err := b.conn.Exec(ctx, "commit")
	if err != nil {
		if b.conn.PgConn().TxStatus() != 'I' {
			_ = b.conn.Close(ctx) // the commit's error says more
		}
		return err
	}
	if tag.String() == "ROLLBACK" {
		return pgx.ErrTxCommitRollback
	}
	return nil
}

// Rollback is as of the driver's Tx: a connection that cannot roll back is
// closed.
func (b *Bound) Rollback(ctx context.Context) error {
	if b.closed {
		return pgx.ErrTxClosed
	}
	b.closed = true
	_, err := b.conn.Exec(ctx, "rollback")
	if err != nil {
		_ = b.conn.Close(ctx) // the rollback's error says more
	}
	return err
}

// Begin refuses: nothing here needs savepoints.
func (b *Bound) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }

// LargeObjects are none: nothing here needs them.
func (b *Bound) LargeObjects() pgx.LargeObjects { return pgx.LargeObjects{} }

// enter sends a pending context by itself.
func (b *Bound) enter(ctx context.Context) error {
	if b.closed {
		return pgx.ErrTxClosed
	}
	if b.pending == "" {
		return nil
	}
	token := b.pending
	b.pending = ""
	_, err := b.conn.Exec(ctx, enterContext, token)
	return err
}

// with queues the statement behind the pending context, if there is one and if
// a batch can carry the statement.
func (b *Bound) with(sql string, args []any) (batch *pgx.Batch, ok bool) {
	if b.pending == "" || b.closed {
		return nil, false
	}
	if len(args) > 0 {
		switch args[0].(type) {
		case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
			return nil, false // options of the driver, which a batch does not take
		}
	}
	batch = &pgx.Batch{}
	batch.Queue(enterContext, b.pending)
	batch.Queue(sql, args...)
	b.pending = ""
	return batch, true
}

// Exec is as of the driver's Tx.
func (b *Bound) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	batch, ok := b.with(sql, args)
	if !ok {
		if err := b.enter(ctx); err != nil {
			return tag, err
		}
		return b.conn.Exec(ctx, sql, args...)
	}
	results := b.conn.SendBatch(ctx, batch)
	if _, err = results.Exec(); err == nil {
		tag, err = results.Exec()
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	return tag, err
}

// Query is as of the driver's Tx.
func (b *Bound) Query(ctx context.Context, sql string, args ...any) (Rows, error) {
	batch, ok := b.with(sql, args)
	if !ok {
		if err := b.enter(ctx); err != nil {
			return failedRows{err: err}, err
		}
		return b.conn.Query(ctx, sql, args...)
	}
	results := b.conn.SendBatch(ctx, batch)
	_, err := results.Exec()
	var rows Rows
	if err == nil {
		rows, err = results.Query()
	}
	if err != nil {
		if rows != nil {
			rows.Close()
		}
		_ = results.Close() // the same error
		return failedRows{err: err}, err
	}
	return &batchedRows{Rows: rows, results: results}, nil
}

// QueryRow is as of the driver's Tx.
func (b *Bound) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := b.Query(ctx, sql, args...)
	return oneRow{rows, err}
}

// SendBatch is as of the driver's Tx. A pending context goes before the batch's
// first statement.
func (b *Bound) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	if b.closed {
		return pgx.FailedBatchResults(batch, pgx.ErrTxClosed)
	}
	if b.pending == "" {
		return b.conn.SendBatch(ctx, batch)
	}
	entered := &pgx.Batch{}
	entered.Queue(enterContext, b.pending)
	entered.QueuedQueries = append(entered.QueuedQueries, batch.QueuedQueries...)
	b.pending = ""
	results := b.conn.SendBatch(ctx, entered)
	if _, err := results.Exec(); err != nil {
		_ = results.Close() // the same error
		return pgx.FailedBatchResults(batch, err)
	}
	return results
}

// CopyFrom is as of the driver's Tx.
func (b *Bound) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	if err := b.enter(ctx); err != nil {
		return 0, err
	}
	return b.conn.CopyFrom(ctx, table, columns, rows)
}

// Prepare is as of the driver's Tx.
func (b *Bound) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := b.enter(ctx); err != nil {
		return nil, err
	}
	return b.conn.Prepare(ctx, name, sql)
}

// Conn is the transaction's connection, with the context entered. Where it
// could not be, the transaction has failed and refuses whatever comes next.
func (b *Bound) Conn() *Conn {
	_ = b.enter(context.Background())
	return b.conn
}

// batchedRows are the rows of a batch's last statement.
type batchedRows struct {
	Rows
	results pgx.BatchResults
	err     error
}

func (r *batchedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

// Close frees the connection for the next statement.
func (r *batchedRows) Close() {
	r.Rows.Close()
	if err := r.results.Close(); r.err == nil {
		r.err = err
	}
}

func (r *batchedRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

// failedRows are no rows but an error, for who asks them and not the call.
type failedRows struct {
	pgx.Rows
	err error
}

func (r failedRows) Close()            {}
func (r failedRows) Err() error        { return r.err }
func (r failedRows) Next() bool        { return false }
func (r failedRows) Scan(...any) error { return r.err }

// oneRow is the first of rows.
type oneRow struct {
	rows Rows
	err  error
}

func (r oneRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
