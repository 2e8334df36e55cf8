package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

var _ ledger.RerateStore = (*Store)(nil)

// ClaimRerate leases the oldest job of the tenants that nobody holds. At its
// first lease a job learns the end of the chain.
func (s *Store) ClaimRerate(ctx context.Context, tenants []string, owner string, lease time.Duration) (job ledger.RerateJob, ok bool, err error) {
	err = s.db.InTenantsWrite(ctx, tenants, func(tx postgres.Tx) error {
		var from, to, asked time.Time
		var difference, before string
		var priceAt *time.Time
		err := tx.QueryRow(ctx, `
			update ledger.rerate j set
			  lease_owner = $2, lease_until = clock_timestamp() + $3,
			  last_seq = case when j.last_seq > 0 then j.last_seq
			                  else coalesce((select h.seq from ledger.head h where h.tenant_id = j.tenant_id), 0) end
			from (
			  select tenant_id, job_id from ledger.rerate
			  where tenant_id = any($1) and state = 'running' and lease_until < clock_timestamp()
			  order by asked_at, tenant_id limit 1 for update skip locked) free
			where j.tenant_id = free.tenant_id and j.job_id = free.job_id
			returning j.tenant_id, j.job_id::text, j.from_time, j.to_time, j.dry_run, j.asked_at, j.last_seq, j.cursor_seq, j.planned_seq, j.looked_at, j.changed,
			  j.difference::text, coalesce(j.candidate_id::text, ''), j.price_at, j.cost_before::text`, tenants, owner, lease).
			Scan(&job.Tenant, &job.ID, &from, &to, &job.DryRun, &asked, &job.Last, &job.Cursor, &job.Planned, &job.LookedAt, &job.Changed, &difference,
				&job.Candidate, &priceAt, &before)
		if postgres.IsNoRows(err) {
			return nil
		}
		if err != nil {
			return err
		}
		ok, job.From, job.To, job.AskedAt = true, from.UnixNano(), to.UnixNano(), asked.UnixNano()
		if priceAt != nil {
			job.PriceAt = priceAt.UnixNano()
		}
		if job.Difference, err = money.ParseSum(difference); err == nil {
			job.Before, err = money.ParseSum(before)
		}
		return err
	})
	return job, ok && err == nil, classify(err)
}

// SaveRerate stores progress and renews the lease.
func (s *Store) SaveRerate(ctx context.Context, job *ledger.RerateJob, owner string, lease time.Duration) error {
	return s.updateRerate(ctx, job.Tenant, `
		update ledger.rerate set cursor_seq = $4, looked_at = $5, changed = $6, difference = $7::text::numeric, lease_until = clock_timestamp() + $8,
		  planned_seq = $9, cost_before = $10::text::numeric
		where tenant_id = $1 and job_id = $2 and lease_owner = $3 and state = 'running'`,
		job.Tenant, job.ID, owner, job.Cursor, job.LookedAt, job.Changed, job.Difference.String(), lease, job.Planned, job.Before.String())
}

// EndRerate stores how a job ended.
func (s *Store) EndRerate(ctx context.Context, job *ledger.RerateJob, owner, failure string) error {
	state := "done"
	if failure != "" {
		state = "failed"
	}
	return s.updateRerate(ctx, job.Tenant, `
		update ledger.rerate set state = $4, failure = $5, cursor_seq = $6, finished_at = clock_timestamp(), lease_until = '-infinity'
		where tenant_id = $1 and job_id = $2 and lease_owner = $3 and state = 'running'`,
		job.Tenant, job.ID, owner, state, failure, job.Cursor)
}

// updateRerate changes a job of which the caller holds the lease.
func (s *Store) updateRerate(ctx context.Context, tenantID, sql string, args ...any) error {
	err := s.db.InTenantsWrite(ctx, []string{tenantID}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		if err == nil && tag.RowsAffected() != 1 {
			err = ledger.ErrLease
		}
		return err
	})
	return classify(err)
}

// RerateStates reads usage entries of the job's time range in their newest form.
// Each statement is one range or list of a primary key: a join of them is planned
// badly while the tables are young.
func (s *Store) RerateStates(ctx context.Context, job *ledger.RerateJob, after, upTo int64) (states []ledger.RerateState, err error) {
	err = s.db.InTenants(ctx, []string{job.Tenant}, func(tx postgres.Tx) error {
		states, err = collectStates(tx.Query(ctx, `
			select seq, canonical from ledger.entry
			where tenant_id = $1 and seq > $2 and seq <= $3 and kind = $4 and occurred_at >= $5 and occurred_at < $6
			order by seq`, job.Tenant, after, upTo, int16(chain.Usage), time.Unix(0, job.From), time.Unix(0, job.To)))
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			select corrects, max(seq) from ledger.correction
			where tenant_id = $1 and corrects > $2 and corrects <= $3 group by corrects`, job.Tenant, after, upTo)
		if err != nil {
			return err
		}
		newest, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Original, Seq int64 }])
		if err != nil || len(newest) == 0 {
			return err
		}
		seqs, original := make([]int64, len(newest)), make(map[int64]int64, len(newest))
		for i, n := range newest {
			seqs[i], original[n.Seq] = n.Seq, n.Original
		}
		corrections, err := collectStates(tx.Query(ctx, `
			select seq, canonical from ledger.entry where tenant_id = $1 and seq = any($2)`, job.Tenant, seqs))
		if err != nil {
			return err
		}
		byOriginal := make(map[int64]ledger.RerateState, len(corrections))
		for _, c := range corrections {
			byOriginal[original[c.Seq]] = c
		}
		for i := range states {
			if c, ok := byOriginal[states[i].Seq]; ok {
				states[i] = c
			}
		}
		return nil
	})
	return states, classify(err)
}

func collectStates(rows postgres.Rows, err error) ([]ledger.RerateState, error) {
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[ledger.RerateState])
}

// NewestBook reads the price book in force, unless the caller has it.
func (s *Store) NewestBook(ctx context.Context, partition int32, have chain.Hash) (hash chain.Hash, content []byte, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		var stored []byte
		err := tx.QueryRow(ctx, `
			select content_hash, case when content_hash = $3 then null else content end from ledger.control
			where partition = $1 and kind = $2 order by kafka_offset desc limit 1`, partition, event.ControlPriceBook, have[:]).Scan(&stored, &content)
		if postgres.IsNoRows(err) {
			return nil
		}
		copy(hash[:], stored)
		return err
	})
	return hash, content, classify(err)
}

// NextOffset reads how far the partition is ledgered, 0 before its first batch.
func (s *Store) NextOffset(ctx context.Context, partition int32) (next int64, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		err := tx.QueryRow(ctx, `select next_offset from ledger.partition where partition = $1`, partition).Scan(&next)
		if postgres.IsNoRows(err) {
			return nil
		}
		return err
	})
	return next, classify(err)
}
