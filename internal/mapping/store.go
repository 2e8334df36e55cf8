package mapping

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Store keeps versions of rules in Postgres. Its methods may be called from many
// goroutines.
type Store struct {
	db   *postgres.DB
	keys audit.Keys
}

// NewStore makes a store over a login of postgres.RoleApp.
func NewStore(db *postgres.DB, keys audit.Keys) *Store { return &Store{db: db, keys: keys} }

// Version is one version of a tenant's rules.
type Version struct {
	Number    int64
	Content   string // canonical
	CreatedAt time.Time
	CreatedBy string
	// Said is when the version stood in the log, zero before that.
	Said time.Time
}

// Put makes the next version, in force from then on, with its audit row in the same
// transaction. after is the version that the caller believes to be the newest, 0 for
// none. The rules that are in force already make no new version. Errors: ErrInvalid,
// ErrVersion.
func (s *Store) Put(ctx context.Context, by authn.Principal, id tenant.ID, after int64, text []byte) (v Version, err error) {
	list, err := Parse(text)
	if err != nil {
		return v, err
	}
	content, err := Canonical(list)
	if err != nil {
		return v, err
	}
	err = s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		newest, err := newest(ctx, tx, id)
		if err != nil {
			return err
		}
		if newest.Number != after {
			return fmt.Errorf("%w: version %d", ErrVersion, newest.Number)
		}
		if newest.Content == string(content) {
			v = newest
			return nil
		}
		v = Version{Number: after + 1, Content: string(content), CreatedBy: by.Subject}
		err = tx.QueryRow(ctx, `insert into mapping.rules (tenant_id, version, content, created_by) values ($1, $2, $3, $4) returning created_at`,
			string(id), v.Number, v.Content, by.Subject).Scan(&v.CreatedAt)
		if postgres.SQLState(err) == "23505" {
			return fmt.Errorf("%w: version %d", ErrVersion, v.Number)
		}
		if err != nil {
			return err
		}
		p := authn.PeerOf(ctx)
		hash := Hash(content)
		return audit.Append(ctx, tx, s.keys, audit.Event{
			Tenant: id, Actor: by.Subject, Action: "mapping.put", Resource: "mapping/" + strconv.FormatInt(v.Number, 10), Outcome: audit.OK,
			Reason: fmt.Sprintf("%d rules, sha256 %x", len(list), hash[:8]), Addr: p.Addr, Client: p.Client, RequestID: p.RequestID,
		})
	})
	if err != nil {
		return Version{}, fmt.Errorf("put mapping rules: %w", err)
	}
	return v, nil
}

func newest(ctx context.Context, tx postgres.Tx, id tenant.ID) (v Version, err error) {
	err = tx.QueryRow(ctx, `select version, content, created_at, created_by, coalesce(said, 'epoch') from mapping.rules where tenant_id = $1 order by version desc limit 1`, string(id)).
		Scan(&v.Number, &v.Content, &v.CreatedAt, &v.CreatedBy, &v.Said)
	if postgres.IsNoRows(err) {
		return v, nil
	}
	return v.plain(), err
}

func (v Version) plain() Version {
	if v.Said.Unix() == 0 {
		v.Said = time.Time{}
	}
	return v
}

// Get returns a version, the newest for 0. A tenant without rules has the version 0.
func (s *Store) Get(ctx context.Context, id tenant.ID, number int64) (v Version, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		if number == 0 {
			v, err = newest(ctx, tx, id)
			return err
		}
		err := tx.QueryRow(ctx, `select version, content, created_at, created_by, coalesce(said, 'epoch') from mapping.rules where tenant_id = $1 and version = $2`, string(id), number).
			Scan(&v.Number, &v.Content, &v.CreatedAt, &v.CreatedBy, &v.Said)
		v = v.plain()
		return err
	})
	if err != nil && !postgres.IsNoRows(err) {
		err = fmt.Errorf("read mapping rules: %w", err)
	}
	return v, err
}

// MappingVersion counts the changes of all tenants' rules.
func (s *Store) MappingVersion(ctx context.Context) (n int64, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select version from mapping.changes`).Scan(&n)
	})
	if err != nil {
		err = fmt.Errorf("read the version of mapping rules: %w", err)
	}
	return n, err
}

// MappingRules are the tenant's rules in force.
func (s *Store) MappingRules(ctx context.Context, id tenant.ID) (*Rules, error) {
	v, err := s.Get(ctx, id, 0)
	if err != nil || v.Number == 0 {
		return &Rules{Tenant: id}, err
	}
	return New(id, v.Number, []byte(v.Content))
}

// Unsaid calls say for each version of a tenant that does not stand in the log yet,
// in order, and notes that it does when say returns nil. Said twice, because we died
// in between, is a second control entry of the same version, which says the same.
func (s *Store) Unsaid(ctx context.Context, id tenant.ID, say func(Version) error) error {
	return s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select version, content, created_at, created_by from mapping.rules where tenant_id = $1 and said is null order by version for update skip locked`, string(id))
		if err != nil {
			return err
		}
		var list []Version
		for rows.Next() {
			var v Version
			if err := rows.Scan(&v.Number, &v.Content, &v.CreatedAt, &v.CreatedBy); err != nil {
				rows.Close()
				return err
			}
			list = append(list, v)
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		for _, v := range list {
			if err := say(v); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `update mapping.rules set said = clock_timestamp() where tenant_id = $1 and version = $2`, string(id), v.Number); err != nil {
				return err
			}
		}
		return nil
	})
}
