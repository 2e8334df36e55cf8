package pgstore

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
)

// checkPosition holds the place from which an owner is about to read on against
// the batches that led there. An offset that somebody raised would pass over
// acknowledged records for good, without a gap in any chain.
func checkPosition(ctx context.Context, tx postgres.Tx, partition int32, st *ledger.State) error {
	var batches, offset, holes int64
	err := tx.QueryRow(ctx, `
		select count(*), coalesce((array_agg(next_offset order by batch desc))[1], 0), count(*) filter (where first_offset <> before)
		from (select batch, first_offset, next_offset, lag(next_offset, 1, first_offset) over (order by batch) as before
		      from ledger.batch where partition = $1 and batch > $2::bigint - $3::bigint) newest`,
		partition, st.LastBatch, checkedBatches).Scan(&batches, &offset, &holes)
	if err != nil {
		return err
	}
	want := min(st.LastBatch, checkedBatches)
	switch {
	case batches != want:
		return fmt.Errorf("%w: partition %d: %d of the last %d batches are stored, the newest of which is %d",
			ledger.ErrPosition, partition, batches, want, st.LastBatch)
	case st.LastBatch > 0 && offset != st.NextOffset:
		return fmt.Errorf("%w: partition %d: the stored offset is %d, and the last batch ends before offset %d",
			ledger.ErrPosition, partition, st.NextOffset, offset)
	case holes > 0:
		return fmt.Errorf("%w: partition %d: %d of the last %d batches do not begin where the one before ends",
			ledger.ErrPosition, partition, holes, batches)
	}
	return nil
}

// checkedBatches bounds how many batches an assignment looks at.
const checkedBatches = 1000
