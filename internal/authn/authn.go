// Package authn says who a caller is.
//
// It promises that a token is compared in constant time, that an unknown token
// and a missing one take the same path, and that a token file which others than
// its owner can read is not used. It never logs a token, never puts one into an
// error, and keeps only the digest of the tokens it knows. What a caller may do
// is decided elsewhere, from the Principal.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/internal/tenant"
)

// ErrUnauthenticated says that the credential is missing, malformed or unknown;
// it never says which. Answer 401 or UNAUTHENTICATED.
var ErrUnauthenticated = errors.New("authn: no valid credential")

// Principal is a caller whose credential was verified.
type Principal struct {
	// Subject names the credential in logs and audit rows. It is no secret.
	Subject string
	// AllTenants says that the caller may act for every tenant.
	AllTenants bool
	// Tenants are the tenants the caller may act for, when not all.
	Tenants []tenant.ID
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
