package clickhouse

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	clickhouseproto "github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// MaxBlockRows is the most that one block may hold. The server splits larger
// ones, and only a block that stays whole has one deduplication token.
const MaxBlockRows = 1_000_000

// Block is a set of named columns of equal length, in ch-go's column types
// (proto.ColStr, proto.ColUInt64, …), which the caller fills, sends, resets and
// fills again: nothing is allocated per row or per block once they have grown.
type Block = proto.Input

// insertSettings are what makes an insert repeatable: it is synchronous, and
// its token counts in the table and in every view's target.
func insertSettings(token string) ch.Settings {
	settings := ch.Settings{
		"async_insert":       0,
		"insert_deduplicate": 1,
		"deduplicate_blocks_in_dependent_materialized_views": 1,
		// One part per block, whatever the profile of the server's user says.
		"max_insert_block_size": MaxBlockRows + 48_576,
		// What is inserted into a summing table is summed by the plan or the view
		// already; merges do the rest.
		"optimize_on_insert": 0,
	}
	if token != "" {
		settings["insert_deduplication_token"] = token
	}
	return settings
}

// Insert sends one block into table, which may be qualified by its database and
// is quoted here. It returns nil after the commit. With a non-empty token the
// same call may be repeated until it does: a token that the table has seen
// within its deduplication window inserts nothing, there and in view targets.
//
// The block is only read, and not kept after the return; two goroutines may
// insert different blocks at once. LowCardinality columns are prepared here.
//
// Errors: [ErrReadOnly], [ErrBlock], or what the server or the network says
// ([Transient]); after an error it is unknown whether the rows are in.
func (db *DB) Insert(ctx context.Context, table, token string, block Block) error {
	if db.role != Writer {
		return ErrReadOnly
	}
	rows, err := checkBlock(block)
	if err != nil || rows == 0 {
		return err
	}
	sql := "INSERT INTO " + quoteTable(table) + " (" + columnList(block) + ")"
	if db.fast != nil {
		err = db.fast.insert(ctx, sql, token, rows, block)
	} else {
		err = db.insertBatch(ctx, sql, token, rows, block)
	}
	if err != nil {
		return fmt.Errorf("clickhouse: insert %d rows into %s: %w", rows, table, err)
	}
	return nil
}

// checkBlock returns the number of rows.
func checkBlock(block Block) (int, error) {
	if len(block) == 0 {
		return 0, fmt.Errorf("%w: no columns", ErrBlock)
	}
	rows := block[0].Data.Rows()
	for _, c := range block {
		if n := c.Data.Rows(); n != rows {
			return 0, fmt.Errorf("%w: column %s has %d rows, column %s has %d", ErrBlock, c.Name, n, block[0].Name, rows)
		}
	}
	if rows > MaxBlockRows {
		return 0, fmt.Errorf("%w: %d rows, at most %d", ErrBlock, rows, MaxBlockRows)
	}
	return rows, nil
}

// quoteTable quotes each part of db.table.
func quoteTable(table string) string {
	parts := strings.Split(table, ".")
	for i, p := range parts {
		parts[i] = quoteName(p)
	}
	return strings.Join(parts, ".")
}

func quoteName(name string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(name) + "`"
}

func columnList(block Block) string {
	var b strings.Builder
	for i, c := range block {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quoteName(c.Name))
	}
	return b.String()
}

// encodeBlock appends the block in Native format of revision 0, which is what
// an insert over HTTP is read as.
func encodeBlock(buf *proto.Buffer, rows int, block Block) error {
	b := proto.Block{Rows: rows, Columns: len(block)}
	if err := b.EncodeRawBlock(buf, 0, block); err != nil {
		return fmt.Errorf("%w: %w", ErrBlock, err)
	}
	return nil
}

// insertBatch is the way of the native protocol: clickhouse-go takes rows, so
// the block is turned into them. It is correct and several times slower; prefer
// a server's HTTP port.
func (db *DB) insertBatch(ctx context.Context, sql, token string, rows int, block Block) error {
	var buf proto.Buffer
	if err := encodeBlock(&buf, rows, block); err != nil {
		return err
	}
	decoded := clickhouseproto.Block{ServerContext: &column.ServerContext{Timezone: utc}}
	if err := decoded.Decode(proto.NewReader(bytes.NewReader(buf.Buf)), 0); err != nil {
		return fmt.Errorf("%w: %w", ErrBlock, err)
	}
	batch, err := db.PrepareBatch(ch.Context(ctx, ch.WithSettings(insertSettings(token))), sql)
	if err != nil {
		return err
	}
	defer batch.Close()
	values := make([]any, len(decoded.Columns))
	for row := range rows {
		for i, c := range decoded.Columns {
			values[i] = c.Row(row, false)
		}
		if err := batch.Append(values...); err != nil {
			return fmt.Errorf("%w: %w", ErrBlock, err)
		}
	}
	return batch.Send()
}
