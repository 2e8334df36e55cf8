package connections

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Lease is a connection that this process may read until Until.
type Lease struct {
	Bedrock
	Owner uuid.UUID
	Until time.Time
}

// Version is a number that has changed when any tenant's connections have: made,
// paused, resumed or removed.
func (s *Store) Version(ctx context.Context) (version int64, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select version from connection.bedrock_version`).Scan(&version)
	})
	if err != nil {
		return 0, fmt.Errorf("ask for changed connections: %w", err)
	}
	return version, nil
}

// Any reports whether the tenant has a connection to read.
func (s *Store) Any(ctx context.Context, id tenant.ID) (any bool, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select exists (select from connection.bedrock where tenant_id = $1 and removed_at is null and not paused)`, string(id)).Scan(&any)
	})
	if err != nil {
		return false, fmt.Errorf("look for connections of %s: %w", id, err)
	}
	return any, nil
}

// Lease takes one of the tenant's connections that are due and that nobody
// holds, the longest due first; ok is false when there is none.
func (s *Store) Lease(ctx context.Context, id tenant.ID, owner uuid.UUID, life time.Duration) (l Lease, ok bool, err error) {
	now := s.clock()
	l.Owner, l.Until = owner, now.Add(life)
	err = s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			update connection.bedrock set lease_owner = $2, lease_until = $3
			where tenant_id = $1 and connection_id = (
			  select connection_id from connection.bedrock
			  where tenant_id = $1 and removed_at is null and not paused and due_at <= $4 and lease_until <= $4
			  order by due_at, connection_id limit 1 for update skip locked)
			returning connection_id, name, source, bucket, prefix, queue, log_group, region, role_arn, external_id, created_at, created_by, paused,
			       coalesce(polled_at, 'epoch'), coalesce(succeeded_at, 'epoch'), failures, failure, objects, records, accepted, refused, malformed, damaged, metered`,
			string(id), owner, l.Until, now)
		if err != nil {
			return err
		}
		list, err := scan(rows, id)
		if err == nil && len(list) == 1 {
			l.Bedrock, ok = list[0], true
		}
		return err
	})
	if err != nil {
		return l, false, fmt.Errorf("lease a connection: %w", err)
	}
	return l, ok, nil
}

// Cursor is how far a series of the connection was read, "" before its beginning.
func (s *Store) Cursor(ctx context.Context, l *Lease, series string) (position string, err error) {
	err = s.db.InTenant(ctx, l.Tenant, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select coalesce((select position from connection.bedrock_cursor
			where tenant_id = $1 and connection_id = $2 and series = $3), '')`, string(l.Tenant), l.ID, series).Scan(&position)
	})
	if err != nil {
		return "", fmt.Errorf("read a cursor: %w", err)
	}
	return position, nil
}

// Read are the objects of a series behind its cursor that were read, with the
// versions they had.
func (s *Store) Read(ctx context.Context, l *Lease, series string) (map[string]string, error) {
	read := map[string]string{}
	err := s.db.InTenant(ctx, l.Tenant, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select object, version from connection.bedrock_object where tenant_id = $1 and connection_id = $2 and series = $3`,
			string(l.Tenant), l.ID, series)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var object, version string
			if err := rows.Scan(&object, &version); err != nil {
				return err
			}
			read[object] = version
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list what was read: %w", err)
	}
	return read, nil
}

// Progress is what Done keeps of one object.
type Progress struct {
	Series string
	// Object and Version are kept so that the object is not read again; an empty
	// Object is not kept, because Position says it all.
	Object, Version string
	// Position moves the series' cursor, "" leaves it. Forward moves it only
	// forward in the order of bytes, and forgets the objects before it.
	Position string
	Forward  bool
	Counts   Counts
}

// Done says that every event of an object is durable or was refused, and
// prolongs the lease. It is one transaction. Errors: ErrLost.
func (s *Store) Done(ctx context.Context, l *Lease, life time.Duration, p Progress) error {
	until := s.clock().Add(life)
	err := s.db.InTenantsWrite(ctx, []string{string(l.Tenant)}, func(tx postgres.Tx) error {
		if err := s.hold(ctx, tx, l, until, &p.Counts); err != nil {
			return err
		}
		if p.Object != "" {
			_, err := tx.Exec(ctx, `
				insert into connection.bedrock_object (tenant_id, connection_id, series, object, version, read_at) values ($1, $2, $3, $4, $5, $6)
				on conflict (tenant_id, connection_id, series, object) do update set version = excluded.version, read_at = excluded.read_at`,
				string(l.Tenant), l.ID, p.Series, p.Object, p.Version, s.clock())
			if err != nil {
				return err
			}
		}
		if p.Position == "" {
			return nil
		}
		if !p.Forward {
			_, err := tx.Exec(ctx, `
				insert into connection.bedrock_cursor (tenant_id, connection_id, series, position) values ($1, $2, $3, $4)
				on conflict (tenant_id, connection_id, series) do update set position = excluded.position`,
				string(l.Tenant), l.ID, p.Series, p.Position)
			return err
		}
		_, err := tx.Exec(ctx, `
			insert into connection.bedrock_cursor (tenant_id, connection_id, series, position) values ($1, $2, $3, $4)
			on conflict (tenant_id, connection_id, series) do update set position = greatest(bedrock_cursor.position, excluded.position)`,
			string(l.Tenant), l.ID, p.Series, p.Position)
		if err == nil {
			_, err = tx.Exec(ctx, `delete from connection.bedrock_object where tenant_id = $1 and connection_id = $2 and series = $3 and object <= $4`,
				string(l.Tenant), l.ID, p.Series, p.Position)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keep how far a connection was read: %w", err)
	}
	l.Until = until
	return nil
}

// hold prolongs the lease and adds the counts, if it is still ours.
func (s *Store) hold(ctx context.Context, tx postgres.Tx, l *Lease, until time.Time, n *Counts) error {
	tag, err := tx.Exec(ctx, `
		update connection.bedrock set lease_until = $4, objects = objects + $5, records = records + $6, accepted = accepted + $7,
		  refused = refused + $8, malformed = malformed + $9, damaged = damaged + $10, metered = metered + $11
		where tenant_id = $1 and connection_id = $2 and lease_owner = $3 and removed_at is null and not paused`,
		string(l.Tenant), l.ID, l.Owner, until, n.Objects, n.Records, n.Accepted, n.Refused, n.Malformed, n.Damaged, n.Metered)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrLost
	}
	return err
}

// Finish ends a pass and gives the lease back; failure is "" for one that went
// well. The next one begins after pause. Errors: ErrLost.
func (s *Store) Finish(ctx context.Context, l *Lease, failure string, pause time.Duration) error {
	now := s.clock()
	failure = strings.ToValidUTF8(failure[:min(len(failure), 480)], "")
	err := s.db.InTenantsWrite(ctx, []string{string(l.Tenant)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			update connection.bedrock set lease_owner = null, lease_until = '-infinity', due_at = $4, polled_at = $5,
			  succeeded_at = case when $6 = '' then $5 else succeeded_at end,
			  failures = case when $6 = '' then 0 else failures + 1 end, failure = $6
			where tenant_id = $1 and connection_id = $2 and lease_owner = $3`,
			string(l.Tenant), l.ID, l.Owner, now.Add(pause), now, failure)
		if err == nil && tag.RowsAffected() == 0 {
			return ErrLost
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("end a pass: %w", err)
	}
	return nil
}
