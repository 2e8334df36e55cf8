package gputime

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
)

// Checkpoint is where a partition goes on.
type Checkpoint struct {
	Epoch  int64
	Resume kafka.Position
	Clock  int64 // the log's, unix microseconds
	Oldest int64 // Core.Oldest
}

// Store keeps windows, events that are to be sent, counts and checkpoints in
// Postgres. It is safe for concurrent use.
type Store struct{ db *postgres.DB }

// NewStore makes a Store on a database opened as postgres.RoleProcessors.
func NewStore(db *postgres.DB) *Store { return &Store{db} }

// tenantsPerRead bounds the tenants of one transaction's context.
const tenantsPerRead = 1000

// Open takes the partition over: who had it before can commit no more.
func (s *Store) Open(ctx context.Context, partition int32) (cp Checkpoint, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			insert into processors.gpu_partition as p (partition, epoch) values ($1, 1)
			on conflict (partition) do update set epoch = p.epoch + 1
			returning epoch, topic_id, next_offset, clock_us, oldest_us`, partition).
			Scan(&cp.Epoch, (*[16]byte)(&cp.Resume.Topic), &cp.Resume.Offset, &cp.Clock, &cp.Oldest)
	})
	return cp, classify(err)
}

// Load reads those of the windows that are stored.
func (s *Store) Load(ctx context.Context, places map[Place]struct{}) (found []Stored, err error) {
	byTenant := map[string][]Place{}
	for p := range places {
		byTenant[p.Tenant] = append(byTenant[p.Tenant], p)
	}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(byTenant)), tenantsPerRead) {
		var tenants, gpus []string
		var starts []int64
		for _, id := range ids {
			for _, p := range byTenant[id] {
				tenants, gpus, starts = append(tenants, p.Tenant), append(gpus, p.GPU), append(starts, p.Start)
			}
		}
		err := s.db.InTenants(ctx, ids, func(tx postgres.Tx) error {
			rows, err := tx.Query(ctx, `
				select w.tenant_id, w.gpu, w.start_us, w.end_us, w.dirty_since, w.state
				from unnest($1::text[], $2::text[], $3::bigint[]) as u(tenant, gpu, start)
				join processors.gpu_window w on w.tenant_id = u.tenant and w.gpu = u.gpu and w.start_us = u.start`, tenants, gpus, starts)
			if err != nil {
				return err
			}
			found, err = appendStored(found, rows)
			return err
		})
		if err != nil {
			return nil, classify(err)
		}
	}
	return found, nil
}

func appendStored(found []Stored, rows postgres.Rows) ([]Stored, error) {
	defer rows.Close()
	for rows.Next() {
		var w Stored
		if err := rows.Scan(&w.Tenant, &w.GPU, &w.Start, &w.End, &w.DirtySince, &w.State); err != nil {
			return found, err
		}
		found = append(found, w)
	}
	return found, rows.Err()
}

// Waiting reads what was left to be done for the tenants: windows with samples that
// are in no event yet, and events that are not known to be sent, in the order in
// which they were made.
func (s *Store) Waiting(ctx context.Context, tenants []string) (windows []Stored, events []event.Event, err error) {
	for ids := range slices.Chunk(tenants, tenantsPerRead) {
		err := s.db.InTenants(ctx, ids, func(tx postgres.Tx) error {
			rows, err := tx.Query(ctx, `
				select tenant_id, gpu, start_us, end_us, dirty_since, state from processors.gpu_window
				where dirty_since > 0 and tenant_id = any($1)`, ids)
			if err != nil {
				return err
			}
			if windows, err = appendStored(windows, rows); err != nil {
				return err
			}
			rows, err = tx.Query(ctx, `
				select event from processors.gpu_outbox where refused is null and tenant_id = any($1) order by at_offset, ordinal`, ids)
			if err != nil {
				return err
			}
			events, err = appendEvents(events, rows)
			return err
		})
		if err != nil {
			return nil, nil, classify(err)
		}
	}
	return windows, events, nil
}

func appendEvents(events []event.Event, rows postgres.Rows) ([]event.Event, error) {
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return events, err
		}
		var e event.Event
		if err := e.DecodeProto(b, event.Strict); err != nil {
			return events, fmt.Errorf("%w: event: %w", ErrState, err)
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// Commit stores what changed and moves the partition's checkpoint, in one
// transaction. ErrFenced when another process has taken the partition over.
func (s *Store) Commit(ctx context.Context, partition int32, cp Checkpoint, ch *Changes) error {
	ids := map[string]struct{}{}
	for i := range ch.Windows {
		ids[ch.Windows[i].Tenant] = struct{}{}
	}
	for i := range ch.Events {
		ids[ch.Events[i].Tenant] = struct{}{}
	}
	for source := range ch.Counts {
		ids[source.Tenant] = struct{}{}
	}
	tenants := slices.Sorted(maps.Keys(ids))
	fn := func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			update processors.gpu_partition set topic_id = $3, next_offset = $4, clock_us = $5, oldest_us = $6
			where partition = $1 and epoch = $2`, partition, cp.Epoch, [16]byte(cp.Resume.Topic), cp.Resume.Offset, cp.Clock, cp.Oldest)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("%w: partition %d epoch %d", ErrFenced, partition, cp.Epoch)
		}
		if err := putWindows(ctx, tx, ch.Windows); err != nil {
			return err
		}
		if err := putEvents(ctx, tx, cp.Resume.Offset, ch.Events); err != nil {
			return err
		}
		if err := putCounts(ctx, tx, ch.Counts); err != nil || len(tenants) == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `
			delete from processors.gpu_window where tenant_id = any($1) and end_us < $2 and dirty_since = 0`, tenants, ch.Forget)
		return err
	}
	if len(tenants) == 0 {
		return classify(s.db.Tx(ctx, fn))
	}
	return classify(s.db.InTenantsWrite(ctx, tenants, fn))
}

func putWindows(ctx context.Context, tx postgres.Tx, windows []Stored) error {
	if len(windows) == 0 {
		return nil
	}
	n := len(windows)
	tenants, gpus, states := make([]string, n), make([]string, n), make([][]byte, n)
	starts, ends, dirty := make([]int64, n), make([]int64, n), make([]int64, n)
	for i := range windows {
		w := &windows[i]
		tenants[i], gpus[i], states[i], starts[i], ends[i], dirty[i] = w.Tenant, w.GPU, w.State, w.Start, w.End, w.DirtySince
	}
	_, err := tx.Exec(ctx, `
		insert into processors.gpu_window (tenant_id, gpu, start_us, end_us, dirty_since, state)
		select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[])
		on conflict (tenant_id, gpu, start_us) do update set dirty_since = excluded.dirty_since, state = excluded.state`,
		tenants, gpus, starts, ends, dirty, states)
	return err
}

func putEvents(ctx context.Context, tx postgres.Tx, offset int64, events []event.Event) error {
	if len(events) == 0 {
		return nil
	}
	n := len(events)
	tenants, ids, bodies, ordinals := make([]string, n), make([]string, n), make([][]byte, n), make([]int32, n)
	for i := range events {
		tenants[i], ids[i], bodies[i], ordinals[i] = events[i].Tenant, events[i].ID, events[i].AppendProducer(nil), int32(i)
	}
	// No conflict clause: an id that is there would be a second body under it.
	_, err := tx.Exec(ctx, `
		insert into processors.gpu_outbox (tenant_id, event_id, at_offset, ordinal, event)
		select u.tenant, u.id, $5, u.ordinal, u.body from unnest($1::text[], $2::text[], $3::int[], $4::bytea[]) as u(tenant, id, ordinal, body)`,
		tenants, ids, ordinals, bodies, offset)
	return err
}

func putCounts(ctx context.Context, tx postgres.Tx, counts map[Source]Counts) error {
	if len(counts) == 0 {
		return nil
	}
	var tenants, agents []string
	var numbers [7][]int64
	sources := slices.SortedFunc(maps.Keys(counts), func(a, b Source) int {
		return strings.Compare(a.Tenant+"\x00"+a.Agent, b.Tenant+"\x00"+b.Agent)
	})
	for _, source := range sources {
		c := counts[source]
		tenants, agents = append(tenants, source.Tenant), append(agents, source.Agent)
		for i, v := range [...]int64{c.Accounted, c.Duplicate, c.Late, c.Future, c.Malformed, c.WithoutTime, c.ClippedMicros} {
			numbers[i] = append(numbers[i], v)
		}
	}
	_, err := tx.Exec(ctx, `
		insert into processors.gpu_count as c (tenant_id, agent_id, accounted, duplicate, late, future, malformed, without_time, clipped_us)
		select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[])
		on conflict (tenant_id, agent_id) do update set accounted = c.accounted + excluded.accounted,
		  duplicate = c.duplicate + excluded.duplicate, late = c.late + excluded.late, future = c.future + excluded.future,
		  malformed = c.malformed + excluded.malformed, without_time = c.without_time + excluded.without_time,
		  clipped_us = c.clipped_us + excluded.clipped_us`,
		tenants, agents, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6])
	return err
}

// Sent takes events out of those that are to be sent: Kafka has them. Those that
// refused names, by their place, stay with the rule that they break.
func (s *Store) Sent(ctx context.Context, events []event.Event, refused map[int]string) error {
	ids := map[string]struct{}{}
	var tenants, names, rules []string
	for i := range events {
		ids[events[i].Tenant] = struct{}{}
		tenants, names, rules = append(tenants, events[i].Tenant), append(names, events[i].ID), append(rules, refused[i])
	}
	return classify(s.db.InTenantsWrite(ctx, slices.Sorted(maps.Keys(ids)), func(tx postgres.Tx) error {
		if len(refused) > 0 {
			if _, err := tx.Exec(ctx, `
				update processors.gpu_outbox o set refused = u.rule
				from unnest($1::text[], $2::text[], $3::text[]) as u(tenant, id, rule)
				where o.tenant_id = u.tenant and o.event_id = u.id and u.rule <> ''`, tenants, names, rules); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `
			delete from processors.gpu_outbox o using unnest($1::text[], $2::text[], $3::text[]) as u(tenant, id, rule)
			where o.tenant_id = u.tenant and o.event_id = u.id and u.rule = ''`, tenants, names, rules)
		return err
	}))
}

func classify(err error) error {
	if postgres.Permanent(err) {
		return fmt.Errorf("%w: %w", ErrRefusedState, err)
	}
	return err
}
