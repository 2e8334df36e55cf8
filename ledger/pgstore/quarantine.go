package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
)

// Errors of Quarantine. Nothing was changed when one is returned.
var (
	// ErrElsewhere says that the partition does not stand at the offset: it is
	// ledgered already, or records before it are not.
	ErrElsewhere = errors.New("pgstore: the partition does not stand at that offset")
	// ErrDecided says that the record is quarantined already.
	ErrDecided = errors.New("pgstore: the record is quarantined already")
	// ErrDecision says that a decision lacks a reason or an operator.
	ErrDecision = errors.New("pgstore: a quarantine needs a reason (1 to 500 bytes) and an operator (1 to 200 bytes)")
)

// Decision turns one record of the log into a ledgered rejection.
type Decision struct {
	Partition int32
	Offset    int64  // where the partition halted
	Reason    string // why, for the auditor
	Operator  string // who
}

// Quarantine records the decision for good, with the time and the database
// user, and takes the partition away from whoever writes it, so that no writer
// that does not know of it can pass the record. The writer that is assigned next
// appends a rejected(quarantined) entry in the record's place. adminDSN is of a
// role that owns the ledger's tables: the writer's own role cannot decide this.
//
// Only the record that the partition waits at can be quarantined: the decision
// then cannot differ from what is ledgered already.
func Quarantine(ctx context.Context, adminDSN string, d Decision) error {
	if d.Reason == "" || len(d.Reason) > 500 || d.Operator == "" || len(d.Operator) > 200 {
		return ErrDecision
	}
	conn, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var next int64
		err := tx.QueryRow(ctx, `
			update ledger.partition set epoch = epoch + 1 where partition = $1 returning next_offset`, d.Partition).Scan(&next)
		if postgres.IsNoRows(err) {
			return fmt.Errorf("%w: partition %d was never written", ErrElsewhere, d.Partition)
		}
		if err != nil {
			return fmt.Errorf("take partition %d: %w", d.Partition, err)
		}
		if next != d.Offset {
			return fmt.Errorf("%w: partition %d stands at %d, not at %d", ErrElsewhere, d.Partition, next, d.Offset)
		}
		_, err = tx.Exec(ctx, `
			insert into ledger.quarantine (partition, kafka_offset, reason, operator) values ($1, $2, $3, $4)`,
			d.Partition, d.Offset, d.Reason, d.Operator)
		if postgres.SQLState(err) == "23505" {
			return fmt.Errorf("%w: partition %d offset %d", ErrDecided, d.Partition, d.Offset)
		}
		if err != nil {
			return fmt.Errorf("record the decision: %w", err)
		}
		return nil
	})
}

// readQuarantine reads the decisions about records from the offset on.
func readQuarantine(ctx context.Context, tx postgres.Tx, partition int32, from int64) ([]int64, error) {
	rows, err := tx.Query(ctx, `
		select kafka_offset from ledger.quarantine where partition = $1 and kafka_offset >= $2 order by 1`, partition, from)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}
