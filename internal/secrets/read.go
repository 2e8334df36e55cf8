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

// told is what is told of secrets; a condition and an order follow.
const told = `
	select s.secret_id, s.kind, s.name, s.created_at, s.created_by, s.rotate_by, s.revoked_at,
	       v.version, v.prefix, v.last4, v.created_at,
	       (select p.live_until from access.secret_version p
	        where p.tenant_id = s.tenant_id and p.secret_id = s.secret_id and p.version = v.version - 1 and p.live_until > $2)
	from access.secret s
	join lateral (select * from access.secret_version n where n.tenant_id = s.tenant_id and n.secret_id = s.secret_id
	              order by n.version desc limit 1) v on true
	where s.tenant_id = $1 and `

// List returns up to limit secrets of a tenant in order of id, those after
// `after`, revoked ones too. Values are masked.
func (s *Store) List(ctx context.Context, id tenant.ID, after string, limit int) ([]Secret, error) {
	const sql = told + `s.secret_id > $3 order by s.secret_id limit $4`
	return s.list(ctx, id, sql, string(id), s.clock(), after, limit)
}

// Of returns those of a tenant's secrets, in order of id, masked.
func (s *Store) Of(ctx context.Context, id tenant.ID, secretIDs []string) ([]Secret, error) {
	const sql = told + `s.secret_id = any($3) order by s.secret_id`
	return s.list(ctx, id, sql, string(id), s.clock(), secretIDs)
}

func (s *Store) list(ctx context.Context, id tenant.ID, sql string, args ...any) ([]Secret, error) {
	var list []Secret
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, sql, args...)
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
	list, err := s.Of(ctx, id, []string{secretID})
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Secret{}, err
	}
	return list[0], nil
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

// Sealed is a live value as it is stored: it is worth nothing without the
// tenant's keys, so it may be kept where a value may not.
type Sealed struct {
	SecretID, Name string
	Version        int
	// Until is when it is live no more; zero for the newest.
	Until time.Time
	value []byte
}

// LiveSealed reads the live values of a tenant's secrets of a kind, in a
// transaction that has entered the tenant's context: in order of name, and of
// one secret the newest first.
func LiveSealed(ctx context.Context, tx postgres.Tx, id tenant.ID, kind string, now time.Time) ([]Sealed, error) {
	rows, err := tx.Query(ctx, `
		select v.secret_id, s.name, v.version, v.sealed, v.live_until from access.secret s
		join access.secret_version v on v.tenant_id = s.tenant_id and v.secret_id = s.secret_id
		where s.tenant_id = $1 and s.kind = $2 and s.revoked_at is null
		  and v.sealed is not null and (v.live_until is null or v.live_until > $3)
		order by s.name, v.version desc`, string(id), kind, now)
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	defer rows.Close()
	var list []Sealed
	for rows.Next() {
		var v Sealed
		var until *time.Time
		if err := rows.Scan(&v.SecretID, &v.Name, &v.Version, &v.value, &until); err != nil {
			return nil, fmt.Errorf("read secrets: %w", err)
		}
		if until != nil {
			v.Until = *until
		}
		list = append(list, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	return list, nil
}

// Open opens a live value. The caller says in the audit log that it was used,
// and keeps it no longer than it needs it. Errors: keyring.ErrDestroyed,
// keyring.ErrSealed.
func Open(keys Keys, id tenant.ID, v *Sealed) (string, error) {
	plain, err := keys.Open(nil, id, keyring.SealSecret, place(v.SecretID, v.Version), v.value)
	return string(plain), err
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
