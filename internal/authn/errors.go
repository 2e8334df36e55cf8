package authn

import "errors"

var (
	// ErrUnauthenticated says that the credential is missing, malformed, unknown,
	// expired or revoked; it never says which. Answer 401 or UNAUTHENTICATED.
	ErrUnauthenticated = errors.New("authn: no valid credential")
	// ErrUnavailable says that nobody can tell now whether the credential is
	// valid. Answer 503: the caller comes again.
	ErrUnavailable = errors.New("authn: credentials cannot be verified now")
	// ErrScope says that a scope does not exist, or may not be given.
	ErrScope = errors.New("authn: no such scope")
	// ErrToken says that a token cannot be made as asked for.
	ErrToken = errors.New("authn: bad token")
	// ErrNoToken says that a tenant has no token of that id that is in force.
	ErrNoToken = errors.New("authn: no such token")
)
