package pgread

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/verify"
)

// Occurred is the smallest range of entries with all that occurred in
// [from, before); zeros when there are none. It reads the times of all entries.
func (s *Source) Occurred(ctx context.Context, from, before time.Time) (first, last int64, err error) {
	err = s.db.InTenant(ctx, s.id, func(tx postgres.Tx) error {
		// Columns are floored to microseconds: so are the bounds.
		return tx.QueryRow(ctx, `
			select coalesce(min(seq), 0), coalesce(max(seq), 0) from (
			  select seq from ledger.entry where tenant_id = $1 and occurred_at >= $2 and occurred_at < $3 offset 0) e`,
			string(s.id), from.Truncate(time.Microsecond), before.Truncate(time.Microsecond)).Scan(&first, &last)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("find the entries of %s to %s: %w", from.Format(time.RFC3339), before.Format(time.RFC3339), err)
	}
	return first, last, nil
}

// Audit is a tenant's audit log as a verify.Source, as the role postgres.RoleApp.
type Audit struct {
	db *postgres.DB
	id tenant.ID
}

var _ verify.Source = (*Audit)(nil)

// NewAudit makes the source of a tenant's audit log.
func NewAudit(db *postgres.DB, id tenant.ID) *Audit { return &Audit{db, id} }

// Ends reads the head and the last row in one snapshot.
func (a *Audit) Ends(ctx context.Context) (e verify.Ends, err error) {
	err = a.db.InTenant(ctx, a.id, func(tx postgres.Tx) error {
		var seq *int64
		var hash []byte
		err := tx.QueryRow(ctx, `
			select h.seq, h.chain, coalesce(l.seq, 0), coalesce(l.key_epoch, 0)
			from (select 1) one
			left join audit.head h on h.tenant_id = $1
			left join lateral (select e.seq, e.key_epoch::bigint from audit.event e where e.tenant_id = $1 order by e.seq desc limit 1) l on true`,
			string(a.id)).Scan(&seq, &hash, &e.LastSeq, &e.Epoch)
		if err != nil || seq == nil {
			return err
		}
		e.HasHead, e.Seq = true, *seq
		copy(e.Chain[:], hash)
		return nil
	})
	if err != nil {
		return e, fmt.Errorf("read the audit head of %s: %w", a.id, err)
	}
	return e, nil
}

// Rows reads the rows from..to in order of number.
func (a *Audit) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	return a.db.InTenant(ctx, a.id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select seq, key_epoch::bigint, canonical, chain, mac from audit.event
			where tenant_id = $1 and seq >= $2 and seq <= $3 order by seq`, string(a.id), from, to)
		if err != nil {
			return err
		}
		defer rows.Close()
		var r verify.Row
		for rows.Next() {
			if err := rows.Scan(&r.Seq, &r.Epoch, &r.Canonical, &r.Chain, &r.MAC); err != nil {
				return err
			}
			if err := fn(&r); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// Happened is the smallest range with all rows of [from, to]; zeros when there
// are none.
func (a *Audit) Happened(ctx context.Context, from, to time.Time) (first, last int64, err error) {
	err = a.db.InTenant(ctx, a.id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			select coalesce(min(seq), 0), coalesce(max(seq), 0) from audit.event where tenant_id = $1 and at >= $2 and at <= $3`,
			string(a.id), from.Truncate(time.Microsecond), to).Scan(&first, &last)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("find the audit rows of the time: %w", err)
	}
	return first, last, nil
}
