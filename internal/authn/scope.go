package authn

import (
	"fmt"
	"slices"
	"strings"
)

// Scope is a set of things a credential may do for its tenants.
type Scope uint16

// The scopes. A credential has those that it was given when it was made, and no
// scope contains another.
const (
	// Read sees reports, entries and verdicts.
	Read Scope = 1 << iota
	// Ingest sends events.
	Ingest
	// Export takes whole ledgers and evidence away.
	Export
	// Audit sees the audit log.
	Audit
	// Admin changes settings, and makes and revokes credentials and secrets; for
	// a credential of all tenants also tenants and the pipeline.
	Admin
	// Decrypt sees the full value of a secret. Every use is audited first.
	Decrypt

	end
)

// AllScopes is what the administrator of an embedded installation has.
const AllScopes = end - 1

// scopeNames are the names in order of the bits; the API and the tables use them.
var scopeNames = []string{"read", "ingest", "export", "audit", "admin", "decrypt"}

// ScopeNames lists every scope there is.
func ScopeNames() []string { return slices.Clone(scopeNames) }

// Has reports whether all of want are in the set.
func (s Scope) Has(want Scope) bool { return s&want == want }

// Names lists the scopes of the set.
func (s Scope) Names() []string {
	var names []string
	for i, name := range scopeNames {
		if s.Has(1 << i) {
			names = append(names, name)
		}
	}
	return names
}

// String lists the scopes with commas.
func (s Scope) String() string { return strings.Join(s.Names(), ",") }

// ParseScopes reads names of scopes. Each must exist; there must be one.
func ParseScopes(names []string) (Scope, error) {
	var s Scope
	for _, name := range names {
		i := slices.Index(scopeNames, name)
		if i < 0 {
			return 0, fmt.Errorf("%w: %q; there are %s", ErrScope, name, strings.Join(scopeNames, ", "))
		}
		s |= 1 << i
	}
	if s == 0 {
		return 0, fmt.Errorf("%w: none is given; there are %s", ErrScope, strings.Join(scopeNames, ", "))
	}
	return s, nil
}
