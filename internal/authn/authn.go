// Package authn says who a caller is.
//
// There are two kinds of credentials: the administrator's token of an embedded
// installation, in a file (Static), and API tokens in Postgres, each of one
// tenant, with scopes and an end (Tokens). A Cache keeps what was found out, for
// at most CacheLife, so that no request waits for Postgres and a revoked token
// is refused everywhere within seconds. An Audited tells the audit log who was
// let in and who was not.
//
// It promises that a token is compared in constant time, that a token which is
// unknown, malformed, expired or revoked takes the same path and gives the same
// answer, and that a token file which others than its owner can read is not
// used. It never logs a token, never puts one into an error, and keeps only the
// digest of the tokens it knows: SHA-256 is enough of 256 random bits. What a
// caller may do is decided elsewhere, from the Principal.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Principal is a caller whose credential was verified.
type Principal struct {
	// Subject names the credential in logs and audit rows. It is no secret.
	Subject string
	// AllTenants says that the caller may act for every tenant.
	AllTenants bool
	// Tenants are the tenants the caller may act for, when not all.
	Tenants []tenant.ID
	// Scopes are what the caller may do for them. The zero value may nothing.
	Scopes Scope
}

// Can reports whether the caller has all of the scopes.
func (p Principal) Can(want Scope) bool { return p.Scopes.Has(want) }

// Chain is the tenant in whose audit log the caller's doings stand: its own one,
// else "" for that of the installation.
func (p Principal) Chain() tenant.ID {
	id, _ := p.Single()
	return id
}

// Authenticator says who a bearer token belongs to. Errors: ErrUnauthenticated;
// any other means that nobody can tell now.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (Principal, error)
}

// May reports whether the caller may act for the tenant. Nobody may act for a
// system chain.
func (p Principal) May(id tenant.ID) bool {
	if id.IsSystem() {
		return false
	}
	return p.AllTenants || slices.Contains(p.Tenants, id)
}

// Single is the caller's tenant when there is exactly one.
func (p Principal) Single() (tenant.ID, bool) {
	if p.AllTenants || len(p.Tenants) != 1 {
		return "", false
	}
	return p.Tenants[0], true
}

// BearerToken takes the token out of the value of an Authorization header, or
// "" when it holds none. The scheme's case does not matter (RFC 9110, 11.1).
func BearerToken(header string) string {
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// Static knows one token: the administrator's of an embedded installation.
type Static struct {
	digest    [sha256.Size]byte
	principal Principal
}

// NewStatic makes an authenticator that knows one token.
func NewStatic(token string, p Principal) *Static {
	return &Static{digest: sha256.Sum256([]byte(token)), principal: p}
}

// Authenticate returns the principal of the token, or ErrUnauthenticated. It
// takes the same time for every wrong token of one length.
func (s *Static) Authenticate(_ context.Context, token string) (Principal, error) {
	digest := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(digest[:], s.digest[:]) != 1 || token == "" {
		return Principal{}, ErrUnauthenticated
	}
	return s.principal, nil
}
