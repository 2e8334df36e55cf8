package pgstore

import (
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/ledger"
)

// queueSubjects keeps the identities of persons that are not known yet, in one
// statement, and none when the batch names nobody. A person who was erased has a
// row without an identity, which this leaves as it is; of a known one it moves
// the last day. The ledger's role can write no identity but a new one.
func queueSubjects(batch *pgx.Batch, b *ledger.Batch) {
	if len(b.Subjects) == 0 {
		return
	}
	n := len(b.Subjects)
	tenants, pseudonyms := make([]string, n), make([]string, n)
	identities, days := make([][]byte, n), make([]time.Time, n)
	for i := range b.Subjects {
		s := &b.Subjects[i]
		tenants[i], pseudonyms[i], identities[i] = s.Tenant, s.Pseudonym, s.Identity
		days[i] = time.Unix(int64(s.Day)*int64(24*time.Hour/time.Second), 0).UTC()
	}
	// Grouped, because a statement may not touch a row twice; ordered, so that
	// rows are locked in one order.
	batch.Queue(`
		insert into ledger.subject as s (tenant_id, pseudonym, identity, first_seen, last_seen)
		select t, p, (array_agg(i order by i))[1], min(d), max(d)
		from unnest($1::text[], $2::text[], $3::bytea[], $4::date[]) as u(t, p, i, d)
		group by t, p order by t, p
		on conflict (tenant_id, pseudonym) do update set last_seen = excluded.last_seen
		where s.erased_at is null and s.last_seen < excluded.last_seen`,
		tenants, pseudonyms, identities, days)
}
