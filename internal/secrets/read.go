package secrets

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// List returns up to limit secrets of a tenant in order of id, those after
// `after`, revoked ones too. Values are masked.
func (s *Store) List(ctx context.Context, id tenant.ID, after string, limit int) ([]Secret, error) {
	const sql = `
		select s.secret_id, s.kind, s.name, s.created_at, s.created_by, s.rotate_by, s.revoked_at,
		       v.version, v.prefix, v.last4, v.created_at,
		       (select p.live_until from access.secret_version p
		        where p.tenant_id = s.tenant_id and p.secret_id = s.secret_id and p.version = v.version - 1 and p.live_until > $4)
		from access.secret s
		join lateral (select * from access.secret_version n where n.tenant_id = s.tenant_id and n.secret_id = s.secret_id
		              order by n.version desc limit 1) v on true
		where s.tenant_id = $1 and s.secret_id > $2 order by s.secret_id limit $3`
	var list []Secret
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, sql, string(id), after, limit, s.clock())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			m := Secret{Tenant: id}
			var prefix, last4 string
			var revoked, previous *time.Time
			err := rows.Scan(&m.ID, &m.Kind, &m.Name, &m.CreatedAt, &m.CreatedBy, &m.RotateBy, &revoked,
				&m.Version, &prefix, &last4, &m.RotatedAt, &previous)
			if err != nil {
				return err
			}
			m.Masked = prefix + "…" + last4
			if revoked != nil {
				m.RevokedAt = *revoked
			}
			if previous != nil && revoked == nil {
				m.PreviousUntil = *previous
			}
			list = append(list, m)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	return list, nil
}

// one is what is told of one secret.
func (s *Store) one(ctx context.Context, id tenant.ID, secretID string) (Secret, error) {
	// The id before it in order: ids end in letters, and none ends in this byte.
	list, err := s.List(ctx, id, secretID[:len(secretID)-1], 2)
	for i := range list {
		if list[i].ID == secretID {
			return list[i], nil
		}
	}
	if err == nil {
		err = ErrNotFound
	}
	return Secret{}, err
}

// Recorder keeps that a value was used; *audit.Recorder does.
type Recorder interface{ Allowed(ev audit.Event) }

// Live gives the values of a secret that are live, the newest first: a caller
// is served with any of them. It is for parts of this program that speak to
// others in the tenant's name; the audit log says which part used which secret,
// once per audit.AllowedWindow. Errors: ErrNotFound, keyring.ErrDestroyed.
func (s *Store) Live(ctx context.Context, rec Recorder, part string, id tenant.ID, kind, name string) ([]string, error) {
	type version struct {
		number int
		sealed []byte
	}
	var secretID string
	var versions []version
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select v.secret_id, v.version, v.sealed from access.secret s
			join access.secret_version v on v.tenant_id = s.tenant_id and v.secret_id = s.secret_id
			where s.tenant_id = $1 and s.kind = $2 and s.name = $3 and s.revoked_at is null
			  and v.sealed is not null and (v.live_until is null or v.live_until > $4)
			order by v.version desc`, string(id), kind, name, s.clock())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var v version
			if err := rows.Scan(&secretID, &v.number, &v.sealed); err != nil {
				return err
			}
			versions = append(versions, v)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read a secret: %w", err)
	}
	if len(versions) == 0 {
		return nil, ErrNotFound
	}
	rec.Allowed(audit.Event{Tenant: id, Actor: part, Action: "secret.use", Resource: "secret/" + secretID})
	values := make([]string, len(versions))
	for i, v := range versions {
		plain, err := s.keys.Open(nil, id, keyring.SealSecret, place(secretID, v.number), v.sealed)
		if err != nil {
			return nil, err
		}
		values[i] = string(plain)
	}
	return values, nil
}

// Sweep takes out the values of the tenants that are not live any more, and
// says how many they were.
func (s *Store) Sweep(ctx context.Context, ids []tenant.ID) (n int64, err error) {
	for _, id := range ids {
		err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
			tag, err := tx.Exec(ctx, `update access.secret_version set sealed = null
				where tenant_id = $1 and sealed is not null and live_until <= $2`, string(id), s.clock())
			n += tag.RowsAffected()
			return err
		})
		if err != nil {
			return n, fmt.Errorf("sweep the secrets of %s: %w", id, err)
		}
	}
	return n, nil
}
