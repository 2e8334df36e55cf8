package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// PostgresLedger is the LedgerReader over Postgres, as the role
// postgres.RoleApp: every read is a transaction in one tenant's context.
type PostgresLedger struct{ db *postgres.DB }

var (
	_ LedgerReader = (*PostgresLedger)(nil)
	_ Conflicts    = (*PostgresLedger)(nil)
)

// NewPostgresLedger makes a reader. The caller closes db.
func NewPostgresLedger(db *postgres.DB) *PostgresLedger { return &PostgresLedger{db} }

// Head reads the end of the tenant's chain.
func (p *PostgresLedger) Head(ctx context.Context, id tenant.ID) (h Head, err error) {
	err = p.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		var hash []byte
		err := tx.QueryRow(ctx, `select seq, chain, key_epoch, received_at from ledger.head where tenant_id = $1`, string(id)).
			Scan(&h.Seq, &hash, &h.KeyEpoch, &h.ReceivedAt)
		copy(h.Chain[:], hash)
		return err
	})
	return h, classifyStore(ctx, "read head", err)
}

// Entries reads a page of entries.
func (p *PostgresLedger) Entries(ctx context.Context, id tenant.ID, from int64, limit int, descending bool) ([]StoredEntry, error) {
	const (
		up = `select seq, key_epoch, canonical, chain, mac from ledger.entry
			where tenant_id = $1 and seq >= $2 order by seq limit $3`
		down = `select seq, key_epoch, canonical, chain, mac from ledger.entry
			where tenant_id = $1 and ($2 = 0 or seq <= $2) order by seq desc limit $3`
	)
	sql := up
	if descending {
		sql = down
	}
	var list []StoredEntry
	err := p.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, sql, string(id), from, limit)
		if err != nil {
			return err
		}
		list, err = scanEntries(rows)
		return err
	})
	return list, classifyStore(ctx, "read entries", err)
}

func scanEntries(rows postgres.Rows) ([]StoredEntry, error) {
	defer rows.Close()
	var list []StoredEntry
	for rows.Next() {
		var e StoredEntry
		var hash, mac []byte
		if err := rows.Scan(&e.Seq, &e.Epoch, &e.Canonical, &hash, &mac); err != nil {
			return nil, err
		}
		copy(e.Chain[:], hash)
		copy(e.MAC[:], mac)
		list = append(list, e)
	}
	return list, rows.Err()
}

// Event looks the event id up among the tenant's keys.
func (p *PostgresLedger) Event(ctx context.Context, id tenant.ID, eventID string) (entry *StoredEntry, err error) {
	key := event.KeyOf(eventID)
	err = p.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select e.seq, e.key_epoch, e.canonical, e.chain, e.mac
			from ledger.event_key k join ledger.entry e on e.tenant_id = k.tenant_id and e.seq = k.seq
			where k.tenant_id = $1 and k.key = $2`, string(id), [16]byte(key))
		if err != nil {
			return err
		}
		list, err := scanEntries(rows)
		if err == nil && len(list) > 0 {
			entry = &list[0]
		}
		return err
	})
	return entry, classifyStore(ctx, "read event", err)
}

// Conflicts reads all of the tenant's rejections with a time of use, which only
// those of conflicts have. It is exact and takes as long as the ledger is.
func (p *PostgresLedger) Conflicts(ctx context.Context, id tenant.ID, eventID string) (n int64, err error) {
	err = p.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select canonical from ledger.entry
			where tenant_id = $1 and kind = $2 and occurred_at is not null`, string(id), int16(chain.Rejected))
		if err != nil {
			return err
		}
		defer rows.Close()
		var e chain.Entry
		for rows.Next() {
			if err := e.Decode(rows.RawValues()[0]); err == nil && e.RejectReason == chain.RejectConflict && e.Event.ID == eventID {
				n++
			}
		}
		return rows.Err()
	})
	return n, classifyStore(ctx, "count conflicts", err)
}

// classifyStore turns what Postgres says into the API's errors.
func classifyStore(ctx context.Context, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
	case postgres.IsNoRows(err):
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	case postgres.Permanent(err):
		return fmt.Errorf("%s: %w", what, err)
	default:
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
}
