package postgres

import "errors"

// ErrOverprivileged says that a DSN's role could ignore row-level security. The
// operator gives a role that is no superuser, has no BYPASSRLS and owns nothing.
var ErrOverprivileged = errors.New("postgres: the role could ignore row-level security")
