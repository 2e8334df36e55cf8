package authn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Bounds of API tokens.
const (
	// MaxTokenLife and DefaultTokenLife are how long a token may and does live.
	MaxTokenLife     = 366 * 24 * time.Hour
	DefaultTokenLife = 90 * 24 * time.Hour
	// MaxTokensPerTenant bounds the tokens of a tenant that are in force.
	MaxTokensPerTenant = 1000
	maxTokenNameBytes  = 200
	// maxTokenBytes is longer than any token: what is longer is not hashed.
	maxTokenBytes = 512
)

// Token is what is told of an API token; the token itself is shown once, when it
// is made.
type Token struct {
	ID        string // "tok_…", the Subject of its Principal
	Tenant    tenant.ID
	Name      string
	Scopes    Scope
	CreatedAt time.Time
	CreatedBy string
	ExpiresAt time.Time
	RevokedAt time.Time // zero while it is in force
	RevokedBy string
}

// NewAPIToken is what a token is made from.
type NewAPIToken struct {
	Tenant    tenant.ID
	Name      string
	Scopes    Scope
	ExpiresAt time.Time // zero is DefaultTokenLife from now
}

// Tokens are the API tokens in Postgres. Its methods may be called from many
// goroutines.
type Tokens struct {
	db   *postgres.DB
	keys audit.Keys
	now  func() time.Time
}

// NewTokens makes the store, over a login of postgres.RoleApp. keys are those of
// the audit log: making and revoking a token are rows of it, in the same
// transaction.
func NewTokens(db *postgres.DB, keys audit.Keys) *Tokens {
	return &Tokens{db: db, keys: keys, now: time.Now}
}

// Create makes a token and returns it with its secret, which nobody sees again.
// by is the caller: it can give no scope and no tenant that it has not itself.
// Errors: ErrToken, ErrScope, audit.ErrUnwritten, or that of Postgres.
func (t *Tokens) Create(ctx context.Context, by Principal, n NewAPIToken) (tok Token, secret string, err error) {
	now := t.now().UTC().Truncate(time.Microsecond)
	if n.ExpiresAt.IsZero() {
		n.ExpiresAt = now.Add(DefaultTokenLife)
	}
	if err := n.check(by, now); err != nil {
		return Token{}, "", err
	}
	tok = Token{
		ID: "tok_" + strings.ToLower(rand.Text()), Tenant: n.Tenant, Name: n.Name, Scopes: n.Scopes,
		CreatedAt: now, CreatedBy: by.Subject, ExpiresAt: n.ExpiresAt.UTC().Truncate(time.Microsecond),
	}
	secret = newSecret(n.Tenant)
	digest := sha256.Sum256([]byte(secret))
	err = t.db.InTenantsWrite(ctx, []string{string(n.Tenant)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			insert into access.token (tenant_id, token_id, digest, name, scopes, created_at, created_by, expires_at)
			select $1, $2, $3, $4, $5, $6, $7, $8
			where (select count(*) from access.token where tenant_id = $1 and revoked_at is null and expires_at > $6) < $9`,
			string(tok.Tenant), tok.ID, digest[:], tok.Name, tok.Scopes.Names(), tok.CreatedAt, tok.CreatedBy, tok.ExpiresAt, MaxTokensPerTenant)
		if err != nil {
			return fmt.Errorf("make a token: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return fmt.Errorf("%w: the tenant has %d in force; revoke some", ErrToken, MaxTokensPerTenant)
		}
		reason := fmt.Sprintf("name %q, scopes %s, until %s", tok.Name, tok.Scopes, tok.ExpiresAt.Format(time.RFC3339))
		return t.append(ctx, tx, by, tok.Tenant, "token.create", tok.ID, reason)
	})
	if err != nil {
		return Token{}, "", err
	}
	return tok, secret, nil
}

// check says what is wrong with a token that is to be made.
func (n *NewAPIToken) check(by Principal, now time.Time) error {
	switch {
	case !tenant.ValidID(string(n.Tenant)) || !by.May(n.Tenant):
		return fmt.Errorf("%w: not a tenant that you may act for", ErrToken)
	case n.Name == "" || len(n.Name) > maxTokenNameBytes || !utf8.ValidString(n.Name):
		return fmt.Errorf("%w: a name of 1 to %d bytes is needed", ErrToken, maxTokenNameBytes)
	case n.Scopes == 0 || n.Scopes > AllScopes:
		return fmt.Errorf("%w: none is given", ErrScope)
	case !by.Can(n.Scopes):
		return fmt.Errorf("%w: you cannot give %s, which you have not", ErrScope, n.Scopes&^by.Scopes)
	case !n.ExpiresAt.After(now) || n.ExpiresAt.After(now.Add(MaxTokenLife)):
		return fmt.Errorf("%w: it must end within %d days from now", ErrToken, int(MaxTokenLife.Hours()/24))
	}
	return nil
}

// append writes an audit row about a token.
func (t *Tokens) append(ctx context.Context, tx postgres.Tx, by Principal, id tenant.ID, action, tokenID, reason string) error {
	p := PeerOf(ctx)
	return audit.Append(ctx, tx, t.keys, audit.Event{
		Tenant: id, Actor: by.Subject, Action: action, Resource: "token/" + tokenID, Outcome: audit.OK, Reason: reason,
		Addr: p.Addr, Client: p.Client, RequestID: p.RequestID,
	})
}

// List returns up to limit tokens of a tenant in order of id, those after
// `after`, revoked and expired ones too.
func (t *Tokens) List(ctx context.Context, id tenant.ID, after string, limit int) ([]Token, error) {
	var list []Token
	err := t.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select token_id, name, scopes, created_at, created_by, expires_at, revoked_at, coalesce(revoked_by, '')
			from access.token where tenant_id = $1 and token_id > $2 order by token_id limit $3`, string(id), after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			tok := Token{Tenant: id}
			var names []string
			var revoked *time.Time
			if err := rows.Scan(&tok.ID, &tok.Name, &names, &tok.CreatedAt, &tok.CreatedBy, &tok.ExpiresAt, &revoked, &tok.RevokedBy); err != nil {
				return err
			}
			if tok.Scopes, err = ParseScopes(names); err != nil {
				return err
			}
			tok.CreatedAt, tok.ExpiresAt = tok.CreatedAt.UTC(), tok.ExpiresAt.UTC()
			if revoked != nil {
				tok.RevokedAt = revoked.UTC()
			}
			list = append(list, tok)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return list, nil
}

// Revoke ends a token for ever. A Cache anywhere refuses it within CacheLife.
// Errors: ErrNoToken, also for one that was revoked before; audit.ErrUnwritten.
func (t *Tokens) Revoke(ctx context.Context, by Principal, id tenant.ID, tokenID string) error {
	return t.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			update access.token set revoked_at = $3, revoked_by = $4
			where tenant_id = $1 and token_id = $2 and revoked_at is null`, string(id), tokenID, t.now().UTC(), by.Subject)
		if err != nil {
			return fmt.Errorf("revoke a token: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrNoToken
		}
		return t.append(ctx, tx, by, id, "token.revoke", tokenID, "")
	})
}

// newSecret makes the text of a token: it names its tenant, in whose context it
// is looked up, and has 256 random bits.
func newSecret(id tenant.ID) string {
	var b [32]byte
	rand.Read(b[:]) // crypto/rand.Read never returns an error
	return TokenPrefix + string(id) + "." + base64.RawURLEncoding.EncodeToString(b[:])
}

// tenantOf is the tenant that a token names. What is no token of ours names a
// tenant that has none, so it is looked up like any other.
func tenantOf(token string) tenant.ID {
	name, _, ok := strings.Cut(strings.TrimPrefix(token, TokenPrefix), ".")
	if !ok || len(token) > maxTokenBytes || !tenant.ValidID(name) {
		return audit.Installation
	}
	return tenant.ID(name)
}

// known is what Postgres says of a token.
type known struct {
	principal Principal
	expiresAt time.Time
}

// Authenticate asks Postgres. Errors: ErrUnauthenticated, ErrUnavailable.
func (t *Tokens) Authenticate(ctx context.Context, token string) (Principal, error) {
	k, err := t.lookup(ctx, tenantOf(token), sha256.Sum256([]byte(token)))
	return k.principal, err
}

// lookup finds the token with a digest among those of a tenant. Every token
// that is not in force takes the same statement and the same comparison.
func (t *Tokens) lookup(ctx context.Context, id tenant.ID, digest [sha256.Size]byte) (known, error) {
	stored := make([]byte, sha256.Size)
	var tokenID string
	var names []string
	var expires time.Time
	var revoked bool
	err := t.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		err := tx.QueryRow(ctx, `
			select token_id, digest, scopes, expires_at, revoked_at is not null
			from access.token where tenant_id = $1 and digest = $2`, string(id), digest[:]).
			Scan(&tokenID, &stored, &names, &expires, &revoked)
		if postgres.IsNoRows(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return known{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	scopes, err := ParseScopes(names)
	same := subtle.ConstantTimeCompare(stored, digest[:]) == 1
	if !same || err != nil || revoked || !t.now().Before(expires) {
		return known{}, ErrUnauthenticated
	}
	return known{Principal{Subject: tokenID, Tenants: []tenant.ID{id}, Scopes: scopes}, expires}, nil
}
