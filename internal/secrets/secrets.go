// Package secrets keeps what a tenant has given us to keep: provider keys,
// webhook addresses, routing keys, cloud credentials.
//
// It promises that a value is stored sealed only (AES-256-GCM under the tenant's
// sealing root, bound to its row), that what is told of a secret is masked, and
// that a full value is in the audit log before it is in anybody's hands. A new
// value and the one before it are both live for Overlap, so that a rotation
// interrupts nobody; a value that is not live is taken out. It never logs a
// value, puts one into an error, or keeps one in memory.
package secrets

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// Overlap is how long the value before the newest stays live.
	Overlap = 24 * time.Hour
	// Cadence is when a secret of a customer's integration should be rotated.
	Cadence = 90 * 24 * time.Hour
	// MaxValueBytes bounds a value; a service account's JSON fits.
	MaxValueBytes = 64 << 10
	// MaxSecretsPerTenant bounds the secrets of a tenant that are in force.
	MaxSecretsPerTenant = 1000
	maxNameBytes        = 200
	maxReasonBytes      = 500
)

// Kinds lists what a secret can be for.
func Kinds() []string {
	return []string{"provider_key", "webhook_url", "webhook_secret", "routing_key", "cloud_credential"}
}

var (
	// ErrInvalid says that a secret cannot be kept as it is given; the text says
	// which part, and never its value.
	ErrInvalid = errors.New("secrets: not acceptable")
	// ErrNotFound says that the tenant has no such secret in force.
	ErrNotFound = errors.New("secrets: no such secret")
	// ErrExists says that a secret of that kind and name is in force.
	ErrExists = errors.New("secrets: there is one of that kind and name; rotate it")
)

// Keys seal values and authenticate audit rows; *keyring.Ring does.
type Keys interface {
	audit.Keys
	Seal(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error)
	Open(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, sealed []byte) ([]byte, error)
}

// Secret is what is told of a secret.
type Secret struct {
	ID        string // "sec_…"
	Tenant    tenant.ID
	Kind      string
	Name      string
	Masked    string // of the newest value
	Version   int
	CreatedAt time.Time
	CreatedBy string
	RotatedAt time.Time // when the newest value came
	RotateBy  time.Time
	// PreviousUntil is how long the value before it is live; zero when none is.
	PreviousUntil time.Time
	RevokedAt     time.Time // zero while it is in force
}

// New is what a secret is made from.
type New struct {
	Tenant     tenant.ID
	Kind, Name string
	Value      string
	// Beside writes what belongs to the new secret elsewhere, in the same
	// transaction; nil is nothing. Its error gives everything up.
	Beside func(ctx context.Context, tx postgres.Tx, secretID string) error
}

// Store keeps secrets in Postgres. Its methods may be called from many
// goroutines. Each change is given up when its audit row cannot be written;
// errors then match audit.ErrUnwritten.
type Store struct {
	db   *postgres.DB
	keys Keys
	now  func() time.Time
}

// NewStore makes a store over a login of postgres.RoleApp.
func NewStore(db *postgres.DB, keys Keys) *Store { return &Store{db: db, keys: keys, now: time.Now} }

func (s *Store) clock() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// place is where a value is kept; a sealed value opens nowhere else.
func place(secretID string, version int) keyring.Place {
	return keyring.Place{Table: "access.secret_version", Column: "sealed", Row: secretID + "/" + strconv.Itoa(version)}
}

// checkValue says what is wrong with a value, without it.
func checkValue(value string) error {
	if value == "" || len(value) > MaxValueBytes || !utf8.ValidString(value) {
		return fmt.Errorf("%w: a value has 1 to %d bytes of UTF-8", ErrInvalid, MaxValueBytes)
	}
	return nil
}

// maskable is the least length of a value of which anything is shown: eight of
// its characters tell nothing of the others.
const maskable = 24

// mask is what may be shown of a value: its first and last four characters,
// when they are plain and the value is long enough.
func mask(value string) (prefix, last4 string) {
	if len(value) < maskable {
		return "", ""
	}
	prefix, last4 = value[:4], value[len(value)-4:]
	for _, c := range []byte(prefix + last4) {
		if c <= ' ' || c > '~' {
			return "", ""
		}
	}
	return prefix, last4
}

// Add keeps a new secret. Errors: ErrInvalid, ErrExists, keyring.ErrDestroyed.
func (s *Store) Add(ctx context.Context, by authn.Principal, n New) (Secret, error) {
	switch {
	case !slices.Contains(Kinds(), n.Kind):
		return Secret{}, fmt.Errorf("%w: the kind is one of %s", ErrInvalid, strings.Join(Kinds(), ", "))
	case n.Name == "" || len(n.Name) > maxNameBytes || !utf8.ValidString(n.Name):
		return Secret{}, fmt.Errorf("%w: a name has 1 to %d bytes of UTF-8", ErrInvalid, maxNameBytes)
	}
	if err := checkValue(n.Value); err != nil {
		return Secret{}, err
	}
	now := s.clock()
	id := "sec_" + strings.ToLower(rand.Text())
	err := s.db.InTenantsWrite(ctx, []string{string(n.Tenant)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			insert into access.secret (tenant_id, secret_id, kind, name, created_at, created_by, rotate_by)
			select $1, $2, $3, $4, $5, $6, $7
			where (select count(*) from access.secret where tenant_id = $1 and revoked_at is null) < $8
			on conflict (tenant_id, kind, name) where revoked_at is null do nothing`,
			string(n.Tenant), id, n.Kind, n.Name, now, by.Subject, now.Add(Cadence), MaxSecretsPerTenant)
		if err != nil {
			return fmt.Errorf("keep a secret: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return s.whyNot(ctx, tx, n)
		}
		if err := s.addVersion(ctx, tx, by, n.Tenant, id, 1, n.Value, now); err != nil {
			return err
		}
		if n.Beside != nil {
			if err := n.Beside(ctx, tx, id); err != nil {
				return err
			}
		}
		return s.append(ctx, tx, by, n.Tenant, "secret.create", id, fmt.Sprintf("%s %q", n.Kind, n.Name))
	})
	if err != nil {
		return Secret{}, err
	}
	return s.one(ctx, n.Tenant, id)
}

// whyNot tells a name that is taken from a tenant that has too many.
func (s *Store) whyNot(ctx context.Context, tx postgres.Tx, n New) error {
	var taken bool
	err := tx.QueryRow(ctx, `select exists (select from access.secret where tenant_id = $1 and kind = $2 and name = $3 and revoked_at is null)`,
		string(n.Tenant), n.Kind, n.Name).Scan(&taken)
	switch {
	case err != nil:
		return fmt.Errorf("keep a secret: %w", err)
	case taken:
		return ErrExists
	}
	return fmt.Errorf("%w: the tenant has %d secrets; revoke some", ErrInvalid, MaxSecretsPerTenant)
}

// addVersion seals a value for its row and stores it.
func (s *Store) addVersion(ctx context.Context, tx postgres.Tx, by authn.Principal, id tenant.ID, secretID string, version int, value string, now time.Time) error {
	sealed, err := s.keys.Seal(nil, id, keyring.SealSecret, place(secretID, version), []byte(value))
	if err != nil {
		return err
	}
	prefix, last4 := mask(value)
	_, err = tx.Exec(ctx, `
		insert into access.secret_version (tenant_id, secret_id, version, sealed, prefix, last4, created_at, created_by)
		values ($1, $2, $3, $4, $5, $6, $7, $8)`, string(id), secretID, version, sealed, prefix, last4, now, by.Subject)
	if err != nil {
		return fmt.Errorf("keep a value: %w", err)
	}
	return nil
}

func (s *Store) append(ctx context.Context, tx postgres.Tx, by authn.Principal, id tenant.ID, action, secretID, reason string) error {
	p := authn.PeerOf(ctx)
	return audit.Append(ctx, tx, s.keys, audit.Event{
		Tenant: id, Actor: by.Subject, Action: action, Resource: "secret/" + secretID, Outcome: audit.OK, Reason: reason,
		Addr: p.Addr, Client: p.Client, RequestID: p.RequestID,
	})
}

// newest locks a secret in force and gives the number of its newest version.
func newest(ctx context.Context, tx postgres.Tx, id tenant.ID, secretID string) (version int, err error) {
	var one int
	err = tx.QueryRow(ctx, `select 1 from access.secret where tenant_id = $1 and secret_id = $2 and revoked_at is null for update`,
		string(id), secretID).Scan(&one)
	if err == nil {
		err = tx.QueryRow(ctx, `select max(version) from access.secret_version where tenant_id = $1 and secret_id = $2`,
			string(id), secretID).Scan(&version)
	}
	if postgres.IsNoRows(err) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("find a secret: %w", err)
	}
	return version, nil
}

// Rotate gives a secret a new value. The one before it is live for Overlap, and
// any older one is not any more. Errors: ErrInvalid, ErrNotFound,
// keyring.ErrDestroyed.
func (s *Store) Rotate(ctx context.Context, by authn.Principal, id tenant.ID, secretID, value string) (Secret, error) {
	if err := checkValue(value); err != nil {
		return Secret{}, err
	}
	now := s.clock()
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		version, err := newest(ctx, tx, id, secretID)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			update access.secret_version set live_until = case when version = $3 then $4 else least(live_until, $5) end,
			       sealed = case when version = $3 then sealed end
			where tenant_id = $1 and secret_id = $2 and sealed is not null`, string(id), secretID, version, now.Add(Overlap), now)
		if err == nil {
			_, err = tx.Exec(ctx, `update access.secret set rotate_by = $3 where tenant_id = $1 and secret_id = $2`, string(id), secretID, now.Add(Cadence))
		}
		if err != nil {
			return fmt.Errorf("rotate a secret: %w", err)
		}
		if err := s.addVersion(ctx, tx, by, id, secretID, version+1, value, now); err != nil {
			return err
		}
		return s.append(ctx, tx, by, id, "secret.rotate", secretID, fmt.Sprintf("version %d", version+1))
	})
	if err != nil {
		return Secret{}, err
	}
	return s.one(ctx, id, secretID)
}

// Revoke ends a secret for ever and takes its values out. Errors: ErrNotFound.
func (s *Store) Revoke(ctx context.Context, by authn.Principal, id tenant.ID, secretID string) error {
	now := s.clock()
	return s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		if _, err := newest(ctx, tx, id, secretID); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `update access.secret_version set sealed = null, live_until = coalesce(least(live_until, $3), $3)
			where tenant_id = $1 and secret_id = $2 and sealed is not null`, string(id), secretID, now)
		if err == nil {
			_, err = tx.Exec(ctx, `update access.secret set revoked_at = $3, revoked_by = $4 where tenant_id = $1 and secret_id = $2`,
				string(id), secretID, now, by.Subject)
		}
		if err != nil {
			return fmt.Errorf("revoke a secret: %w", err)
		}
		return s.append(ctx, tx, by, id, "secret.revoke", secretID, "")
	})
}

// Reveal gives the newest value, after the audit row that says who saw it and
// why is committed. Errors: ErrNotFound, ErrInvalid for a missing reason,
// keyring.ErrSealed, keyring.ErrDestroyed.
func (s *Store) Reveal(ctx context.Context, by authn.Principal, id tenant.ID, secretID, reason string) (value string, version int, err error) {
	if reason == "" || len(reason) > maxReasonBytes {
		return "", 0, fmt.Errorf("%w: a reason of 1 to %d bytes is needed", ErrInvalid, maxReasonBytes)
	}
	var sealed []byte
	err = s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		if version, err = newest(ctx, tx, id, secretID); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `select sealed from access.secret_version where tenant_id = $1 and secret_id = $2 and version = $3`,
			string(id), secretID, version).Scan(&sealed)
		if err != nil {
			return fmt.Errorf("read a value: %w", err)
		}
		return s.append(ctx, tx, by, id, "secret.reveal", secretID, fmt.Sprintf("version %d: %s", version, reason))
	})
	if err != nil {
		return "", 0, err
	}
	plain, err := s.keys.Open(nil, id, keyring.SealSecret, place(secretID, version), sealed)
	if err != nil {
		return "", 0, err
	}
	return string(plain), version, nil
}
