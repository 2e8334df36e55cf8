package connections

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Store keeps connections in Postgres. Its methods may be called from many
// goroutines. Each change of a configuration is given up when its audit row
// cannot be written; errors then match audit.ErrUnwritten.
type Store struct {
	db   *postgres.DB
	keys audit.Keys
	now  func() time.Time
}

// NewStore makes a store over a login of postgres.RoleApp.
func NewStore(db *postgres.DB, keys audit.Keys) *Store {
	return &Store{db: db, keys: keys, now: time.Now}
}

func (s *Store) clock() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// change runs fn and writes the audit row behind it, in one transaction.
func (s *Store) change(ctx context.Context, by authn.Principal, id tenant.ID, action, resource, reason string, fn func(postgres.Tx) error) error {
	return s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		p := authn.PeerOf(ctx)
		return audit.Append(ctx, tx, s.keys, audit.Event{
			Tenant: id, Actor: by.Subject, Action: action, Resource: resource, Outcome: audit.OK, Reason: reason,
			Addr: p.Addr, Client: p.Client, RequestID: p.RequestID,
		})
	})
}

// Create makes a connection. Errors: ErrInvalid, ErrExists.
func (s *Store) Create(ctx context.Context, by authn.Principal, n New) (Bedrock, error) {
	if n.Name == "" || len(n.Name) > 200 || !utf8.ValidString(n.Name) || strings.ContainsFunc(n.Name, func(r rune) bool { return r < ' ' }) {
		return Bedrock{}, fmt.Errorf("%w: a name has 1 to 200 bytes and no control characters", ErrInvalid)
	}
	if err := n.Place.Validate(); err != nil {
		return Bedrock{}, err
	}
	p := n.Place
	if p.Source != Directory {
		p.ExternalID = newExternalID()
	}
	c := Bedrock{ID: "con_" + strings.ToLower(rand.Text()), Tenant: n.Tenant, Name: n.Name, Place: p, CreatedAt: s.clock(), CreatedBy: by.Subject}
	err := s.change(ctx, by, n.Tenant, "connection.create", "connection/"+c.ID, string(p.Source)+" "+p.Bucket+p.LogGroup, func(tx postgres.Tx) error {
		var count int
		if err := tx.QueryRow(ctx, `select count(*) from connection.bedrock where tenant_id = $1 and removed_at is null`, string(n.Tenant)).Scan(&count); err != nil {
			return err
		}
		if count >= MaxPerTenant {
			return fmt.Errorf("%w: a tenant has at most %d connections", ErrInvalid, MaxPerTenant)
		}
		_, err := tx.Exec(ctx, `
			insert into connection.bedrock (tenant_id, connection_id, name, source, bucket, prefix, queue, log_group, region, role_arn, external_id, created_at, created_by)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
			string(n.Tenant), c.ID, c.Name, string(p.Source), p.Bucket, p.Prefix, p.Queue, p.LogGroup, p.Region, p.RoleARN, p.ExternalID, c.CreatedAt, by.Subject)
		if postgres.SQLState(err) == "23505" {
			return ErrExists
		}
		return err
	})
	if err != nil {
		return Bedrock{}, fmt.Errorf("make a connection: %w", err)
	}
	return c, nil
}

// List returns up to limit connections in force of a tenant in order of id,
// those after `after`.
func (s *Store) List(ctx context.Context, id tenant.ID, after string, limit int) (list []Bedrock, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select connection_id, name, source, bucket, prefix, queue, log_group, region, role_arn, external_id, created_at, created_by, paused,
			       coalesce(polled_at, 'epoch'), coalesce(succeeded_at, 'epoch'), failures, failure, objects, records, accepted, refused, malformed, damaged, metered
			from connection.bedrock where tenant_id = $1 and removed_at is null and connection_id > $2 order by connection_id limit $3`, string(id), after, limit)
		if err != nil {
			return err
		}
		list, err = scan(rows, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return list, nil
}

func scan(rows postgres.Rows, id tenant.ID) (list []Bedrock, err error) {
	defer rows.Close()
	for rows.Next() {
		c := Bedrock{Tenant: id}
		p, t := &c.Place, &c.State
		err := rows.Scan(&c.ID, &c.Name, &p.Source, &p.Bucket, &p.Prefix, &p.Queue, &p.LogGroup, &p.Region, &p.RoleARN, &p.ExternalID,
			&c.CreatedAt, &c.CreatedBy, &c.Paused, &t.PolledAt, &t.SucceededAt, &t.Failures, &t.Failure,
			&t.Objects, &t.Records, &t.Accepted, &t.Refused, &t.Malformed, &t.Damaged, &t.Metered)
		if err != nil {
			return nil, err
		}
		for _, at := range []*time.Time{&t.PolledAt, &t.SucceededAt} {
			if at.Unix() == 0 {
				*at = time.Time{}
			}
		}
		list = append(list, c)
	}
	return list, rows.Err()
}

// SetPaused stops a connection's passes, or has them go on. Errors: ErrNotFound.
func (s *Store) SetPaused(ctx context.Context, by authn.Principal, id tenant.ID, connectionID string, paused bool) error {
	action := "connection.resume"
	if paused {
		action = "connection.pause"
	}
	return s.change(ctx, by, id, action, "connection/"+connectionID, "", func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `update connection.bedrock set paused = $3, due_at = '-infinity', lease_owner = null
			where tenant_id = $1 and connection_id = $2 and removed_at is null`, string(id), connectionID, paused)
		return found(tag.RowsAffected(), err)
	})
}

// Remove ends a connection for ever. What it brought stays in the ledger, and
// nothing of the customer's is touched. Errors: ErrNotFound.
func (s *Store) Remove(ctx context.Context, by authn.Principal, id tenant.ID, connectionID string) error {
	return s.change(ctx, by, id, "connection.remove", "connection/"+connectionID, "", func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `update connection.bedrock set removed_at = $3, removed_by = $4, lease_owner = null
			where tenant_id = $1 and connection_id = $2 and removed_at is null`, string(id), connectionID, s.clock(), by.Subject)
		if err := found(tag.RowsAffected(), err); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `delete from connection.bedrock_object where tenant_id = $1 and connection_id = $2`, string(id), connectionID)
		return err
	})
}

func found(rows int64, err error) error {
	if err == nil && rows == 0 {
		return ErrNotFound
	}
	return err
}

// RequestMetadata reports whether the tenant's log records may say who called
// and what for; true until the tenant says otherwise.
func (s *Store) RequestMetadata(ctx context.Context, id tenant.ID) (keep bool, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select coalesce((select request_metadata from connection.bedrock_setting where tenant_id = $1), true)`, string(id)).Scan(&keep)
	})
	if err != nil {
		return false, fmt.Errorf("read the setting of request metadata: %w", err)
	}
	return keep, nil
}

// SetRequestMetadata sets it, for what is read from now on.
func (s *Store) SetRequestMetadata(ctx context.Context, by authn.Principal, id tenant.ID, keep bool) error {
	word := "off"
	if keep {
		word = "on"
	}
	return s.change(ctx, by, id, "connection.metadata", "bedrock", word, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into connection.bedrock_setting (tenant_id, request_metadata, changed_at, changed_by) values ($1, $2, $3, $4)
			on conflict (tenant_id) do update set request_metadata = excluded.request_metadata, changed_at = excluded.changed_at, changed_by = excluded.changed_by`,
			string(id), keep, s.clock(), by.Subject)
		return err
	})
}
