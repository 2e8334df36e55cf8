// Package plan keeps plans, checkpoints, coverage and states of the processors
// in Postgres, and reads committed entries back from the ledger there.
//
// It promises that a partition has at most one open plan, that a plan is
// recorded and confirmed whole or not at all, and that a checkpoint and the
// coverage of the tenants behind it move together. Entries, coverage and states
// are only touched in a signed context of their tenants. It never writes to the
// ledger.
package plan

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/processors"
)

// Store is a processors.Store and processors.Snapshots. It is safe for
// concurrent use.
type Store struct{ db *postgres.DB }

var (
	_ processors.Store     = (*Store)(nil)
	_ processors.Snapshots = (*Store)(nil)
)

// NewStore makes a Store on a database opened as postgres.RoleProcessors. With
// the Ledger on the same pool, four connections are enough.
func NewStore(db *postgres.DB) *Store { return &Store{db} }

// Checkpoint reads how far the partition is.
func (s *Store) Checkpoint(ctx context.Context, partition int32) (processors.Checkpoint, error) {
	var cp processors.Checkpoint
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			select commit, filled, topic_id, next_offset, coalesce(plan::text, '') from processors.checkpoint where partition = $1`, partition).
			Scan(&cp.Commit, &cp.Filled, (*[16]byte)(&cp.Resume.Topic), &cp.Resume.Offset, &cp.Open)
	})
	if postgres.IsNoRows(err) {
		return processors.Checkpoint{}, nil
	}
	return cp, classify(err)
}

// ranges are the columns of a plan's ranges.
type ranges struct {
	partitions          []int32
	froms, tos, filleds []int64
	topics              [][16]byte
	offsets             []int64
}

func columnsOf(plan *processors.Plan) *ranges {
	var c ranges
	for _, r := range plan.Ranges {
		c.partitions = append(c.partitions, r.Partition)
		c.froms, c.tos, c.filleds = append(c.froms, r.From), append(c.tos, r.To), append(c.filleds, r.Filled)
		c.topics, c.offsets = append(c.topics, r.Resume.Topic), append(c.offsets, r.Resume.Offset)
	}
	return &c
}

// Record makes the plan durable.
func (s *Store) Record(ctx context.Context, plan *processors.Plan) error {
	c := columnsOf(plan)
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, `insert into processors.checkpoint (partition) select unnest($1::int[]) on conflict do nothing`, c.partitions); err != nil {
			return err
		}
		// Rows are locked in order of partition, so that two processes can never
		// wait for each other. The plan itself may stand there already: the
		// answer of an earlier try was lost.
		tag, err := tx.Exec(ctx, `
			with u as (
			  select * from unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::uuid[], $7::bigint[])
			    as u(partition, first, last, filled, topic, next_offset)
			), locked as (
			  select c.partition from processors.checkpoint c join u using (partition) order by c.partition for update of c
			)
			update processors.checkpoint c set plan = $1, planned_at = clock_timestamp(), planned_commit = u.last,
			       planned_filled = u.filled, planned_topic = u.topic, planned_offset = u.next_offset
			from u join locked using (partition)
			where c.partition = u.partition and c.commit = u.first - 1 and (c.plan is null or c.plan = $1)`,
			plan.ID, c.partitions, c.froms, c.tos, c.filleds, c.topics, c.offsets)
		if err == nil && tag.RowsAffected() != int64(len(plan.Ranges)) {
			err = fmt.Errorf("%w: %d of %d partitions are where plan %s expects them", processors.ErrFenced, tag.RowsAffected(), len(plan.Ranges), plan.ID)
		}
		return err
	})
	return classify(err)
}

// Open reads a plan that was recorded; nil when it has been confirmed.
func (s *Store) Open(ctx context.Context, id string) (*processors.Plan, error) {
	plan := &processors.Plan{ID: id}
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select partition, commit + 1, planned_commit, planned_filled, planned_topic, planned_offset
			from processors.checkpoint where plan = $1 order by partition`, id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r processors.Range
			if err := rows.Scan(&r.Partition, &r.From, &r.To, &r.Filled, (*[16]byte)(&r.Resume.Topic), &r.Resume.Offset); err != nil {
				return err
			}
			plan.Ranges = append(plan.Ranges, r)
		}
		return rows.Err()
	})
	if err != nil || len(plan.Ranges) == 0 {
		return nil, classify(err)
	}
	return plan, nil
}

// Confirm moves the checkpoints and the coverage.
func (s *Store) Confirm(ctx context.Context, plan *processors.Plan, covered []processors.Covered) error {
	tenants := make([]string, len(covered))
	for i := range covered {
		tenants[i] = covered[i].Tenant
	}
	fn := func(tx postgres.Tx) error {
		moved, err := moveCheckpoints(ctx, tx, plan)
		if err != nil || !moved {
			return err
		}
		return moveCoverage(ctx, tx, tenants, covered)
	}
	if len(tenants) == 0 {
		return classify(s.db.Tx(ctx, fn))
	}
	return classify(s.db.InTenantsWrite(ctx, tenants, fn))
}

// moveCheckpoints reports false when the plan was confirmed before.
func moveCheckpoints(ctx context.Context, tx postgres.Tx, plan *processors.Plan) (moved bool, err error) {
	tag, err := tx.Exec(ctx, `
		with locked as (
		  select partition from processors.checkpoint where plan = $1 order by partition for update
		)
		update processors.checkpoint c set commit = planned_commit, filled = greatest(filled, planned_filled),
		       topic_id = planned_topic, next_offset = planned_offset, plan = null, planned_at = null,
		       planned_commit = null, planned_filled = null, planned_topic = null, planned_offset = null
		from locked where c.partition = locked.partition and c.plan = $1`, plan.ID)
	if err != nil {
		return false, err
	}
	if tag.RowsAffected() > 0 {
		return true, nil
	}
	c := columnsOf(plan)
	var stored int
	err = tx.QueryRow(ctx, `
		select count(*) from unnest($1::int[], $2::bigint[]) as u(partition, last)
		join processors.checkpoint c on c.partition = u.partition and c.commit >= u.last`, c.partitions, c.tos).Scan(&stored)
	if err == nil && stored != len(plan.Ranges) {
		err = fmt.Errorf("%w: plan %s is neither open nor confirmed", processors.ErrFenced, plan.ID)
	}
	return false, err
}

func moveCoverage(ctx context.Context, tx postgres.Tx, tenants []string, covered []processors.Covered) error {
	if len(covered) == 0 {
		return nil
	}
	partitions := make([]int32, len(covered))
	seqs, received := make([]int64, len(covered)), make([]int64, len(covered))
	chains := make([][]byte, len(covered))
	for i := range covered {
		partitions[i], seqs[i], received[i] = covered[i].Partition, covered[i].Seq, covered[i].ReceivedAt
		chains[i] = covered[i].Chain[:]
	}
	tag, err := tx.Exec(ctx, `
		insert into processors.coverage as c (tenant_id, partition, seq, chain, received_at)
		select * from unnest($1::text[], $2::int[], $3::bigint[], $4::bytea[], $5::bigint[])
		on conflict (tenant_id) do update set partition = excluded.partition, seq = excluded.seq, chain = excluded.chain,
		       received_at = greatest(c.received_at, excluded.received_at)
		where c.seq < excluded.seq`, tenants, partitions, seqs, chains, received)
	if err == nil && tag.RowsAffected() != int64(len(covered)) {
		err = fmt.Errorf("%w: coverage of %d of %d tenants would move backwards", processors.ErrRefused, int64(len(covered))-tag.RowsAffected(), len(covered))
	}
	return err
}

// Covered reads the coverage of those of the tenants that have any.
func (s *Store) Covered(ctx context.Context, tenants []string) ([]processors.Covered, error) {
	var covered []processors.Covered
	err := s.db.InTenants(ctx, tenants, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select tenant_id, partition, seq, chain, received_at from processors.coverage where tenant_id = any($1)`, tenants)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var c processors.Covered
			var hash []byte
			if err := rows.Scan(&c.Tenant, &c.Partition, &c.Seq, &hash, &c.ReceivedAt); err != nil {
				return err
			}
			copy(c.Chain[:], hash)
			covered = append(covered, c)
		}
		return rows.Err()
	})
	return covered, classify(err)
}

// Save replaces the processor's snapshot of an earlier commit.
func (s *Store) Save(ctx context.Context, partition int32, snap *processors.Snapshot) error {
	owner := string(tenant.System(partition))
	err := s.db.InTenantsWrite(ctx, []string{owner}, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into processors.snapshot as s (tenant_id, processor, partition, version, commit, state) values ($1, $2, $3, $4, $5, $6)
			on conflict (tenant_id, partition, processor) do update set version = excluded.version, commit = excluded.commit,
			       taken_at = clock_timestamp(), state = excluded.state
			where s.commit < excluded.commit or s.version <> excluded.version`,
			owner, snap.Processor, partition, snap.Version, snap.Commit, snap.State)
		return err
	})
	return classify(err)
}

// Load reads the newest snapshot; nil when there is none.
func (s *Store) Load(ctx context.Context, partition int32, processor string) (*processors.Snapshot, error) {
	snap := &processors.Snapshot{Processor: processor}
	err := s.db.InTenants(ctx, []string{string(tenant.System(partition))}, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select version, commit, state from processors.snapshot where partition = $1 and processor = $2`, partition, processor).
			Scan(&snap.Version, &snap.Commit, &snap.State)
	})
	if postgres.IsNoRows(err) {
		return nil, nil
	}
	return snap, classify(err)
}

// Rebuild forgets how far a partition is stored, so that the next start stores
// it again from the ledger's first commit. The caller has stopped the
// processors and deleted the partition's rows from ClickHouse; else every entry
// is counted twice.
func (s *Store) Rebuild(ctx context.Context, partition int32) error {
	var tenants []string
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			select coalesce(array_agg(distinct t), '{}') from ledger.batch, unnest(tenants) t where partition = $1`, partition).Scan(&tenants)
	})
	if err != nil {
		return classify(err)
	}
	err = s.db.InTenantsWrite(ctx, append(tenants, string(tenant.System(partition))), func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, `delete from processors.coverage where partition = $1`, partition); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			update processors.checkpoint set commit = 0, filled = 0, next_offset = 0, plan = null, planned_at = null,
			       planned_commit = null, planned_filled = null, planned_topic = null, planned_offset = null
			where partition = $1`, partition)
		return err
	})
	return classify(err)
}

// Coverage reads what a report may claim, as the app role.
type Coverage struct{ db *postgres.DB }

// NewCoverage makes a Coverage on a database opened as postgres.RoleApp.
func NewCoverage(db *postgres.DB) *Coverage { return &Coverage{db} }

// Coverage is the newest entry of the tenant up to which everything is in
// ClickHouse: its sequence number, its chain hash, and the largest time of
// receipt up to it, in unix nanoseconds. All are zero for a tenant of which
// nothing is stored yet.
func (c *Coverage) Coverage(ctx context.Context, id tenant.ID) (seq int64, hash [32]byte, receivedAt int64, err error) {
	err = c.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		var chainHash []byte
		err := tx.QueryRow(ctx, `select seq, chain, received_at from processors.coverage where tenant_id = $1`, string(id)).
			Scan(&seq, &chainHash, &receivedAt)
		copy(hash[:], chainHash)
		return err
	})
	if postgres.IsNoRows(err) {
		return 0, [32]byte{}, 0, nil
	}
	return seq, hash, receivedAt, err
}

// Progress is the number of the tenant's newest entry in the ledger, and that of
// Coverage; zeros for a tenant that the ledger does not know.
func (c *Coverage) Progress(ctx context.Context, id tenant.ID) (newest, stored int64, err error) {
	err = c.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			select h.seq, coalesce(c.seq, 0)
			from ledger.head h left join processors.coverage c using (tenant_id) where h.tenant_id = $1`, string(id)).
			Scan(&newest, &stored)
	})
	if postgres.IsNoRows(err) {
		return 0, 0, nil
	}
	return newest, stored, err
}

// classify turns what the server says into the stage's errors.
func classify(err error) error {
	if postgres.Permanent(err) {
		return fmt.Errorf("%w: %w", processors.ErrRefused, err)
	}
	return err
}
