package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Originals reads the newest state of those refs that are usage entries.
func (s *Store) Originals(ctx context.Context, refs []ledger.KeyRef) ([]ledger.Original, error) {
	tenants, ids, keys := refColumns(refs)
	var found []ledger.Original
	err := s.db.InTenants(ctx, tenants, func(tx postgres.Tx) error {
		// Materialized, so that each step is look-ups in a primary key.
		rows, err := tx.Query(ctx, `
			with known as materialized (
				select k.tenant_id, k.key, k.seq
				from unnest($1::text[], $2::uuid[]) as u(tenant_id, key)
				join ledger.event_key k on k.tenant_id = u.tenant_id and k.key = u.key),
			newest as materialized (
				select known.tenant_id, known.key, known.seq, coalesce(max(c.seq), known.seq) as newest
				from known left join ledger.correction c on c.tenant_id = known.tenant_id and c.corrects = known.seq
				group by known.tenant_id, known.key, known.seq)
			select w.tenant_id, w.key, n.canonical from newest w
			join ledger.entry n on n.tenant_id = w.tenant_id and n.seq = w.newest
			where n.kind = $3 or w.newest > w.seq`,
			ids, keys, int16(chain.Usage))
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (o ledger.Original, err error) {
			err = row.Scan(&o.Tenant, (*[16]byte)(&o.Key), &o.Newest)
			return o, err
		})
		return err
	})
	return found, classify(err)
}

// refColumns is the refs as two columns, and the tenants among them.
func refColumns(refs []ledger.KeyRef) (tenants, ids []string, keys [][16]byte) {
	ids, keys = make([]string, len(refs)), make([][16]byte, len(refs))
	seen := make(map[string]struct{})
	for i := range refs {
		ids[i], keys[i] = refs[i].Tenant, refs[i].Key
		if _, ok := seen[refs[i].Tenant]; !ok {
			seen[refs[i].Tenant] = struct{}{}
			tenants = append(tenants, refs[i].Tenant)
		}
	}
	return tenants, ids, keys
}

// queueCorrections notes which entries correct which, in one statement, and none
// when the batch corrects nothing.
func queueCorrections(batch *pgx.Batch, b *ledger.Batch) {
	var tenants []string
	var corrects, seqs []int64
	for i := range b.Groups {
		g := &b.Groups[i]
		for j := range b.Rows[g.First : g.First+g.Count] {
			if r := &b.Rows[g.First+j]; r.Corrects > 0 {
				tenants, corrects, seqs = append(tenants, g.After.Tenant), append(corrects, r.Corrects), append(seqs, r.Seq)
			}
		}
	}
	if len(seqs) > 0 {
		batch.Queue(`
			insert into ledger.correction (tenant_id, corrects, seq)
			select * from unnest($1::text[], $2::bigint[], $3::bigint[])`, tenants, corrects, seqs)
	}
}
