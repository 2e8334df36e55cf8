package pgstore

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
)

// Actions of the audit log.
const (
	auditRecoveryBegin = "ledger.recovery_begin"
	auditRecoveryEnd   = "ledger.recovery_end"
)

// Recovery records which partitions are being replayed after a restore, each
// change with its audit row in the same transaction. It is a ledger.Recovery.
type Recovery struct {
	db   *postgres.DB
	keys audit.Keys
	ends func(ctx context.Context) ([]int64, error)
}

var _ ledger.Recovery = (*Recovery)(nil)

// NewRecovery makes a Recovery; db is of the role postgres.RoleLedger. ends gives
// the end offset of each partition of `events`.
func NewRecovery(db *postgres.DB, keys audit.Keys, ends func(ctx context.Context) ([]int64, error)) *Recovery {
	return &Recovery{db, keys, ends}
}

// Begin implements ledger.Recovery.
func (r *Recovery) Begin(ctx context.Context, partition int32, epoch int64, short []ledger.Shortfall) error {
	reason := fmt.Sprintf("%s; %d chains in all", &short[0], len(short))
	err := r.db.InTenantsWrite(ctx, []string{string(audit.Installation)}, func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, `insert into ledger.recovery (partition, epoch, reason) values ($1, $2, $3)`, partition, epoch, reason); err != nil {
			return err
		}
		return r.record(ctx, tx, auditRecoveryBegin, partition, reason)
	})
	return classify(err)
}

// End implements ledger.Recovery.
func (r *Recovery) End(ctx context.Context, partition int32) error {
	err := r.db.InTenantsWrite(ctx, []string{string(audit.Installation)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `update ledger.recovery set ended_at = clock_timestamp() where partition = $1 and ended_at is null`, partition)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return r.record(ctx, tx, auditRecoveryEnd, partition, "the roots are those of the published checkpoints")
	})
	return classify(err)
}

func (r *Recovery) record(ctx context.Context, tx postgres.Tx, action string, partition int32, reason string) error {
	return audit.Append(ctx, tx, r.keys, audit.Event{
		Tenant: audit.Installation, Actor: "ledger", Action: action, Resource: fmt.Sprintf("partition/%d", partition), Outcome: audit.OK, Reason: reason,
	})
}

// EndOffset implements ledger.Recovery.
func (r *Recovery) EndOffset(ctx context.Context, partition int32) (int64, error) {
	ends, err := r.ends(ctx)
	if err != nil {
		return 0, err
	}
	if int(partition) >= len(ends) {
		return 0, fmt.Errorf("%w: partition %d of %d", ledger.ErrTopicChanged, partition, len(ends))
	}
	return ends[partition], nil
}

// RecoveringPartitions are the partitions that are being replayed: nothing of
// them may be served. Any role may ask.
func RecoveringPartitions(ctx context.Context, db *postgres.DB) (map[int32]bool, error) {
	found := make(map[int32]bool)
	err := db.Tx(ctx, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select partition from ledger.recovery where ended_at is null`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var p int32
			if err := rows.Scan(&p); err != nil {
				return err
			}
			found[p] = true
		}
		return rows.Err()
	})
	return found, err
}
