package analytics

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// Range is consecutive commits of the ledger in one partition.
type Range struct {
	Partition int32
	From, To  int64 // numbers of the first and last commit, both included
}

// Writer stores planned batches in ClickHouse. It is used by one goroutine and
// allocates nothing per entry once its columns have grown.
type Writer struct {
	db        *clickhouse.DB
	entries   *entryBlock
	rollups   *rollupBlock
	announced *announcedBlock
}

// NewWriter makes a Writer on a connection of role clickhouse.Writer whose
// database has the schema of migrations.ClickHouse. The connection stays the
// caller's.
func NewWriter(db *clickhouse.DB) *Writer {
	return &Writer{db: db, entries: newEntryBlock(), rollups: newRollupBlock(), announced: newAnnouncedBlock()}
}

// Reset empties the blocks for the next plan.
func (w *Writer) Reset() {
	w.entries.reset()
	w.rollups.reset()
}

// Append adds one entry of the plan; commit is its number in its partition.
// Nothing of the entry is kept. The only error is [ErrFull].
func (w *Writer) Append(e *chain.Entry, commit int64) error {
	if w.entries.rows() >= MaxRows {
		return ErrFull
	}
	w.entries.append(e, commit)
	return nil
}

// AppendRollup adds one result row of the plan. The only error is [ErrFull].
func (w *Writer) AppendRollup(r *finding.Rollup) error {
	if w.rollups.rows() >= MaxRows {
		return ErrFull
	}
	w.rollups.append(r)
	return nil
}

// Store inserts what was appended since Reset under the plan's id and returns
// when it is durable and visible. The plan is announced before its entries:
// whoever sees an entry, or a killed writer's successor, sees the announcement.
// Storing the same plan again, with the same rows, changes nothing, as long as
// fewer than a thousand other plans were stored since; a writer has one
// unconfirmed plan at a time.
//
// Errors: [ErrPlan], or what the server or the network says (see [Writer.Transient]);
// after these the same plan must be stored again before any other.
func (w *Writer) Store(ctx context.Context, planID string, ranges []Range) error {
	if planID == "" || len(ranges) == 0 {
		return ErrPlan
	}
	for _, r := range ranges {
		if r.From < 1 || r.To < r.From {
			return fmt.Errorf("%w: commits %d to %d of partition %d", ErrPlan, r.From, r.To, r.Partition)
		}
	}
	w.announced.fill(ranges, w.entries.heads)
	for _, table := range [...]struct {
		name string
		rows clickhouse.Block
	}{
		{announcedTable, w.announced.block},
		{entryTable, w.entries.block},
		{rollupTable, w.rollups.block},
	} {
		if err := w.db.Insert(ctx, table.name, planID+"/"+table.name, table.rows); err != nil {
			return fmt.Errorf("store plan %s: %w", planID, err)
		}
	}
	return nil
}

// Largest is, per partition, the largest commit that any stored plan names.
func (w *Writer) Largest(ctx context.Context) (map[int32]int64, error) {
	rows, err := w.db.Query(ctx, largestSQL)
	if err != nil {
		return nil, fmt.Errorf("read the largest stored commits: %w", err)
	}
	defer rows.Close()
	largest := make(map[int32]int64)
	for rows.Next() {
		var partition int32
		var commit int64
		if err := rows.Scan(&partition, &commit); err != nil {
			return nil, fmt.Errorf("read the largest stored commits: %w", err)
		}
		largest[partition] = commit
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the largest stored commits: %w", err)
	}
	return largest, nil
}

const largestSQL = `SELECT ledger_partition, max(commit) FROM announced GROUP BY ledger_partition`

// Transient reports whether an error of Store or Largest passes with time.
func (w *Writer) Transient(err error) bool { return clickhouse.Transient(err) }

// announcedBlock holds the rows of one block of table announced.
type announcedBlock struct {
	tenant    *lowColumn
	partition proto.ColInt32
	commit    proto.ColInt64
	seq       proto.ColUInt64
	block     clickhouse.Block
}

func newAnnouncedBlock() *announcedBlock {
	b := &announcedBlock{tenant: newLowColumn()}
	b.block = clickhouse.Block{
		{Name: "tenant_id", Data: b.tenant}, {Name: "ledger_partition", Data: &b.partition},
		{Name: "commit", Data: &b.commit}, {Name: "seq", Data: &b.seq},
	}
	return b
}

// fill makes a row of tenant "" for each range and one for each tenant.
func (b *announcedBlock) fill(ranges []Range, heads []announcement) {
	b.block.Reset()
	for _, r := range ranges {
		b.append(announcement{partition: r.Partition, commit: r.To})
	}
	for _, h := range heads {
		b.append(h)
	}
}

func (b *announcedBlock) append(a announcement) {
	b.tenant.Append(a.tenant)
	b.partition = append(b.partition, a.partition)
	b.commit = append(b.commit, a.commit)
	b.seq = append(b.seq, uint64(a.seq))
}
