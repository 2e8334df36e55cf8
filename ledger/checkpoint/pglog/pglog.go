// Package pglog reads the ledger and the audit log out of Postgres for whoever
// signs their trees: the ends of many chains at once, and the rows of one, as
// they stand.
//
// Rows are read in the tenant's context and checked by ledger/verify: nothing of
// the writer's code stands between what is stored and what is signed.
package pglog

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/verify"
)

// tenantsPerRead bounds the tenants of one transaction's context.
const tenantsPerRead = 1000

// Ledger is the ledger as a checkpoint.Source.
type Ledger struct{ many, one *postgres.DB }

// Audit is the audit log as a checkpoint.Source.
type Audit struct{ many, one *postgres.DB }

var (
	_ checkpoint.Source = (*Ledger)(nil)
	_ checkpoint.Source = (*Audit)(nil)
)

// NewLedger makes the source. many is of the role postgres.RoleLedger, which may
// read several tenants at once; one, of postgres.RoleApp, reads the rows.
func NewLedger(many, one *postgres.DB) *Ledger { return &Ledger{many, one} }

// NewAudit makes the source of the audit log, with the same roles.
func NewAudit(many, one *postgres.DB) *Audit { return &Audit{many, one} }

// Log implements checkpoint.Source.
func (l *Ledger) Log() string { return checkpoint.LedgerLog }

// Log implements checkpoint.Source.
func (l *Audit) Log() string { return checkpoint.AuditLog }

// Links implements checkpoint.Source.
func (l *Ledger) Links(id tenant.ID, after int64, chain checkpoint.Hash) *verify.Links {
	return verify.NewLedgerLinks(string(id), after, chain)
}

// Links implements checkpoint.Source.
func (l *Audit) Links(id tenant.ID, after int64, chain checkpoint.Hash) *verify.Links {
	return verify.NewAuditLinks(string(id), after, chain)
}

// Ends reads the heads.
func (l *Ledger) Ends(ctx context.Context, ids []tenant.ID) (map[tenant.ID]checkpoint.End, error) {
	return ends(ctx, l.many, `select tenant_id, seq, chain from ledger.head where tenant_id = any($1)`, ids)
}

// Ends reads the heads.
func (l *Audit) Ends(ctx context.Context, ids []tenant.ID) (map[tenant.ID]checkpoint.End, error) {
	return ends(ctx, l.many, `select tenant_id, seq, chain from audit.head where tenant_id = any($1)`, ids)
}

// Chains reads stored chain hashes.
func (l *Ledger) Chains(ctx context.Context, at map[tenant.ID]int64) (map[tenant.ID]checkpoint.Hash, error) {
	return chains(ctx, l.many, `
		select e.tenant_id, e.chain from unnest($1::text[], $2::bigint[]) as u(tenant_id, seq)
		join ledger.entry e on e.tenant_id = u.tenant_id and e.seq = u.seq`, at)
}

// Chains reads stored chain hashes.
func (l *Audit) Chains(ctx context.Context, at map[tenant.ID]int64) (map[tenant.ID]checkpoint.Hash, error) {
	return chains(ctx, l.many, `
		select e.tenant_id, e.chain from unnest($1::text[], $2::bigint[]) as u(tenant_id, seq)
		join audit.event e on e.tenant_id = u.tenant_id and e.seq = u.seq`, at)
}

// byPrimaryKey keeps the planner from sorting a table that grew a minute ago:
// the primary key's order is always the right plan. The settings end with the
// transaction.
const byPrimaryKey = `select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)`

// Rows reads entries: of each only what is signed and what it hangs together by.
func (l *Ledger) Rows(ctx context.Context, id tenant.ID, from, to int64, fn func(int64, []byte, []byte) error) error {
	return records(ctx, l.one, id, `
		select seq, canonical, chain from ledger.entry
		where tenant_id = $1 and seq >= $2 and seq <= $3 order by tenant_id, seq`, from, to, fn)
}

// Rows reads audit events.
func (l *Audit) Rows(ctx context.Context, id tenant.ID, from, to int64, fn func(int64, []byte, []byte) error) error {
	return records(ctx, l.one, id, `
		select seq, canonical, chain from audit.event
		where tenant_id = $1 and seq >= $2 and seq <= $3 order by tenant_id, seq`, from, to, fn)
}

// binaryFormat is how the server sends values that are read in place.
const binaryFormat = 1

// records streams what a statement gives as (seq, canonical, chain).
func records(ctx context.Context, db *postgres.DB, id tenant.ID, sql string, from, to int64, fn func(int64, []byte, []byte) error) error {
	err := db.InTenant(ctx, id, func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, byPrimaryKey); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sql, string(id), from, to)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := record(rows, fn); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read records of %s: %w", id, err)
	}
	return nil
}

// record hands on one row without copying it, where the server sent it in binary.
func record(rows postgres.Rows, fn func(int64, []byte, []byte) error) error {
	raw, binaryRow := rows.RawValues(), true
	for _, f := range rows.FieldDescriptions() {
		binaryRow = binaryRow && f.Format == binaryFormat
	}
	if binaryRow && len(raw) == 3 && len(raw[0]) == 8 {
		return fn(int64(binary.BigEndian.Uint64(raw[0])), raw[1], raw[2])
	}
	var seq int64
	var canonical, chain []byte
	if err := rows.Scan(&seq, &canonical, &chain); err != nil {
		return err
	}
	return fn(seq, canonical, chain)
}

// ends runs a statement that gives (tenant, seq, chain) of a list of tenants.
func ends(ctx context.Context, db *postgres.DB, sql string, ids []tenant.ID) (map[tenant.ID]checkpoint.End, error) {
	found := make(map[tenant.ID]checkpoint.End, len(ids))
	for chunk := range slices.Chunk(ids, tenantsPerRead) {
		names := make([]string, len(chunk))
		for i, id := range chunk {
			names[i] = string(id)
		}
		err := db.InTenants(ctx, names, func(tx postgres.Tx) error {
			rows, err := tx.Query(ctx, sql, names)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id string
				var e checkpoint.End
				var chain []byte
				if err := rows.Scan(&id, &e.Seq, &chain); err != nil {
					return err
				}
				copy(e.Chain[:], chain)
				if e.Seq > 0 {
					found[tenant.ID(id)] = e
				}
			}
			return rows.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("read heads: %w", err)
		}
	}
	return found, nil
}

// chains runs a statement that gives (tenant, chain) of pairs of tenant and number.
func chains(ctx context.Context, db *postgres.DB, sql string, at map[tenant.ID]int64) (map[tenant.ID]checkpoint.Hash, error) {
	found := make(map[tenant.ID]checkpoint.Hash, len(at))
	var names []string
	var seqs []int64
	for id, seq := range at {
		names, seqs = append(names, string(id)), append(seqs, seq)
	}
	for from := 0; from < len(names); from += tenantsPerRead {
		to := min(from+tenantsPerRead, len(names))
		err := db.InTenants(ctx, names[from:to], func(tx postgres.Tx) error {
			rows, err := tx.Query(ctx, sql, names[from:to], seqs[from:to])
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id string
				var chain []byte
				if err := rows.Scan(&id, &chain); err != nil {
					return err
				}
				var h checkpoint.Hash
				copy(h[:], chain)
				found[tenant.ID(id)] = h
			}
			return rows.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("read chain hashes: %w", err)
		}
	}
	return found, nil
}
