package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// SubjectKeys opens what the edge sealed, and authenticates audit rows.
// *keyring.Ring does both.
type SubjectKeys interface {
	audit.Keys
	Open(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, sealed []byte) ([]byte, error)
}

// PostgresSubjects is the Subjects over Postgres, as the role postgres.RoleApp,
// and the edge's source of confidential tags. What it opens it opens inside the
// transaction of the audit row, and gives away after its commit.
type PostgresSubjects struct {
	db   *postgres.DB
	keys SubjectKeys
}

var _ Subjects = (*PostgresSubjects)(nil)

// NewPostgresSubjects makes one. The caller closes db.
func NewPostgresSubjects(db *postgres.DB, keys SubjectKeys) *PostgresSubjects {
	return &PostgresSubjects{db, keys}
}

// Show opens the identity behind a pseudonym.
func (p *PostgresSubjects) Show(ctx context.Context, row audit.Event, pseudonym string) (s Subject, err error) {
	err = p.audited(ctx, row, func(tx postgres.Tx) error {
		var sealed []byte
		if s, sealed, err = readSubject(ctx, tx, row.Tenant, pseudonym); err != nil || sealed == nil {
			return err
		}
		at := keyring.Place{Table: "ledger.subject", Column: "identity", Row: pseudonym}
		identity, err := p.keys.Open(nil, row.Tenant, keyring.SealSubject, at, sealed)
		s.Identity, s.Opened = string(identity), err == nil
		return opening(err)
	})
	return shown(s, err)
}

// Find computes the pseudonym of an identity.
func (p *PostgresSubjects) Find(ctx context.Context, row audit.Event, identity string) (s Subject, err error) {
	pseudonym, err := p.pseudonym(row.Tenant, identity)
	if err != nil {
		return Subject{}, err
	}
	row.Resource = "subject/" + pseudonym
	err = p.audited(ctx, row, func(tx postgres.Tx) error {
		s, _, err = readSubject(ctx, tx, row.Tenant, pseudonym)
		return err
	})
	return shown(s, err)
}

// Erase takes the identity away and leaves a tombstone, also for a person who
// has not been seen yet.
func (p *PostgresSubjects) Erase(ctx context.Context, row audit.Event, pseudonym string) (s Subject, err error) {
	err = p.audited(ctx, row, func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, `
			insert into ledger.subject as s (tenant_id, pseudonym, erased_at) values ($1, $2, now())
			on conflict (tenant_id, pseudonym) do update set identity = null, erased_at = now() where s.erased_at is null`,
			string(row.Tenant), pseudonym); err != nil {
			return err
		}
		s, _, err = readSubject(ctx, tx, row.Tenant, pseudonym)
		return err
	})
	return shown(s, err)
}

// Readmit takes the tombstone away.
func (p *PostgresSubjects) Readmit(ctx context.Context, row audit.Event, pseudonym string) (s Subject, err error) {
	err = p.audited(ctx, row, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `delete from ledger.subject where tenant_id = $1 and pseudonym = $2 and erased_at is not null`,
			string(row.Tenant), pseudonym)
		if err == nil && tag.RowsAffected() == 0 {
			err = fmt.Errorf("no erased person has the pseudonym: %w", ErrNotFound)
		}
		s = Subject{Pseudonym: pseudonym, State: SubjectUnknown}
		return err
	})
	return shown(s, err)
}

// Open opens the sealed tags of an entry. Those of a correction stand in its
// original.
func (p *PostgresSubjects) Open(ctx context.Context, row audit.Event, seq int64) (out OpenedEntry, err error) {
	err = p.audited(ctx, row, func(tx postgres.Tx) error {
		var canonical []byte
		err := tx.QueryRow(ctx, `select canonical from ledger.entry where tenant_id = $1 and seq = $2`, string(row.Tenant), seq).Scan(&canonical)
		if err != nil {
			return err
		}
		var e chain.Entry
		if err := e.Decode(canonical); err != nil {
			return fmt.Errorf("entry %d: %w", seq, err)
		}
		if out.EventID = e.Event.ID; len(e.Event.SealedTags) == 0 {
			return nil
		}
		at := keyring.Place{Table: "ledger.entry", Column: "sealed_tags", Row: e.Event.ID}
		pairs, err := p.keys.Open(nil, row.Tenant, keyring.SealTags, at, e.Event.SealedTags)
		if err != nil {
			return opening(err)
		}
		out.Tags, err = event.DecodeTagPairs(pairs)
		return err
	})
	return shown(out, err)
}

// Confidential reads the tenant's confidential tags.
func (p *PostgresSubjects) Confidential(ctx context.Context, id tenant.ID) (keys []string, set time.Time, err error) {
	err = p.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select tag_keys, set_at from ledger.confidential where tenant_id = $1`, string(id)).Scan(&keys, &set)
	})
	if postgres.IsNoRows(err) {
		return nil, time.Time{}, nil
	}
	return keys, set, classifyStore(ctx, "read confidential tags", err)
}

// SetConfidential replaces the tenant's confidential tags.
func (p *PostgresSubjects) SetConfidential(ctx context.Context, row audit.Event, keys []string) (set time.Time, err error) {
	err = p.audited(ctx, row, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			insert into ledger.confidential (tenant_id, tag_keys) values ($1, $2)
			on conflict (tenant_id) do update set tag_keys = excluded.tag_keys, set_at = clock_timestamp()
			returning set_at`, string(row.Tenant), append([]string{}, keys...)).Scan(&set)
	})
	return set, err
}

// Version counts the changes of all tenants' confidential tags.
func (p *PostgresSubjects) Version(ctx context.Context) (version int64, err error) {
	err = p.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select version from ledger.confidential_version`).Scan(&version)
	})
	return version, classifyStore(ctx, "read the version of confidential tags", err)
}

// TagKeys are the keys of the tenant's confidential tags.
func (p *PostgresSubjects) TagKeys(ctx context.Context, id tenant.ID) ([]string, error) {
	keys, _, err := p.Confidential(ctx, id)
	return keys, err
}

// unopened is an error of a value that does not open. The attempt is audited
// all the same: its transaction is committed.
type unopened struct{ err error }

func (u *unopened) Error() string { return u.err.Error() }
func (u *unopened) Unwrap() error { return u.err }

// opening tells errors of opening from those of the store.
func opening(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, keyring.ErrDestroyed):
		return &unopened{fmt.Errorf("%w: %w", ErrDestroyed, err)}
	case errors.Is(err, keyring.ErrSealed):
		return &unopened{err}
	default:
		return &unopened{fmt.Errorf("%w: %w", ErrUnavailable, err)}
	}
}

// audited runs fn in a transaction of the row's tenant and writes the row with
// its outcome in the same one. An error means that nothing may be shown.
func (p *PostgresSubjects) audited(ctx context.Context, row audit.Event, fn func(postgres.Tx) error) error {
	var sealed *unopened
	err := p.db.InTenantsWrite(ctx, []string{string(row.Tenant)}, func(tx postgres.Tx) error {
		row.Outcome = audit.OK
		if err := fn(tx); errors.As(err, &sealed) {
			row.Outcome, row.Reason = audit.Failed, "it does not open"
		} else if err != nil {
			return err
		}
		return audit.Append(ctx, tx, p.keys, row)
	})
	switch {
	case errors.Is(err, keyring.ErrNoKey):
		return fmt.Errorf("tenant %s: %w", row.Tenant, ErrNotFound)
	case errors.Is(err, audit.ErrUnwritten):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, ErrNotFound):
		return err
	case err == nil && sealed != nil:
		return sealed
	}
	return classifyStore(ctx, row.Action, err)
}

// shown is v, and nothing of it beside an error.
func shown[T any](v T, err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return v, nil
}

// readSubject reads a person's row, and the sealed identity when there is one.
func readSubject(ctx context.Context, tx postgres.Tx, id tenant.ID, pseudonym string) (s Subject, sealed []byte, err error) {
	var first, last, erased *time.Time
	err = tx.QueryRow(ctx, `
		select identity, first_seen, last_seen, erased_at from ledger.subject where tenant_id = $1 and pseudonym = $2`,
		string(id), pseudonym).Scan(&sealed, &first, &last, &erased)
	s = Subject{Pseudonym: pseudonym, State: SubjectKnown, FirstSeen: orZero(first), LastSeen: orZero(last), ErasedAt: orZero(erased)}
	switch {
	case postgres.IsNoRows(err):
		s.State, err = SubjectUnknown, nil
	case erased != nil:
		s.State = SubjectErased
	}
	return s, sealed, err
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// pseudonym is the one that the edge computes (docs/ledger-format.md).
func (p *PostgresSubjects) pseudonym(id tenant.ID, identity string) (string, error) {
	key, err := p.keys.Derive(id, keyring.Pseudonym, 0)
	switch {
	case errors.Is(err, keyring.ErrNoKey):
		return "", fmt.Errorf("tenant %s: %w", id, ErrNotFound)
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte(identity))
	return hex.EncodeToString(mac.Sum(nil)[:pseudonymDigits/2]), nil
}

// sortedSet is the texts in order, each once.
func sortedSet(texts []string) []string {
	out := slices.Clone(texts)
	slices.Sort(out)
	return slices.Compact(out)
}
