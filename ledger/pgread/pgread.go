// Package pgread reads one tenant's ledger out of Postgres as the verifier
// needs it: whole ranges, as the raw bytes of a binary COPY, in the tenant's
// context and under row-level security like any other reader.
//
// It decides nothing and trusts nothing: what the columns hold is handed on as
// it stands. It shares no code with ledger/pgstore, which writes them, and
// allocates nothing per entry.
package pgread

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/verify"
)

// Source is a verify.Source over Postgres, as the role postgres.RoleApp.
type Source struct {
	db *postgres.DB
	id tenant.ID
}

var _ verify.Source = (*Source)(nil)

// New makes the source of a tenant or of a system chain. The pool needs a
// connection for each worker and one more.
func New(db *postgres.DB, id tenant.ID) *Source { return &Source{db, id} }

// Ends reads the head and the number of the last entry in one snapshot.
func (s *Source) Ends(ctx context.Context) (e verify.Ends, err error) {
	err = s.db.InTenant(ctx, s.id, func(tx postgres.Tx) error {
		var seq, epoch *int64
		var hash []byte
		err := tx.QueryRow(ctx, `
			select h.seq, h.chain, h.key_epoch::bigint,
			       coalesce((select e.seq from ledger.entry e where e.tenant_id = $1 order by e.seq desc limit 1), 0)
			from (select 1) one left join ledger.head h on h.tenant_id = $1`, string(s.id)).
			Scan(&seq, &hash, &epoch, &e.LastSeq)
		if err != nil || seq == nil {
			return err
		}
		e.HasHead, e.Seq, e.Epoch = true, *seq, *epoch
		copy(e.Chain[:], hash)
		return nil
	})
	if err != nil {
		return e, fmt.Errorf("read the head of %s: %w", s.id, err)
	}
	return e, nil
}

// COPY takes no parameters: the range stands in settings of the transaction.
// The planner knows nothing of it and little of a table that grew a minute ago;
// the primary key's order is always the right plan.
const (
	setRange = `select set_config('tallystick.from_seq', $1::bigint::text, true), set_config('tallystick.to_seq', $2::bigint::text, true),
		set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)`
	copyRange = `copy (
		select seq, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac from ledger.entry
		where tenant_id = (select sec.tenant())
		  and seq >= current_setting('tallystick.from_seq')::bigint and seq <= current_setting('tallystick.to_seq')::bigint
		order by tenant_id, seq) to stdout (format binary)`
)

// Rows reads the entries from..to in order of number.
func (s *Source) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	return s.db.InTenant(ctx, s.id, func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, setRange, from, to); err != nil {
			return fmt.Errorf("set the range: %w", err)
		}
		p := &parser{fn: fn}
		_, err := tx.Conn().PgConn().CopyTo(ctx, p, copyRange)
		if p.err != nil {
			return p.err // what ended the copy, rather than what it became on the way
		}
		if err == nil && !p.ended {
			err = errCut
		}
		return err
	})
}
