package postgres

import "errors"

// Errors of this package. Those of the server pass through; SQLState reads them.
var (
	// ErrOverprivileged says that a DSN's role could ignore row-level security
	// or do more than its part of the program. The operator gives the login that
	// the message describes.
	ErrOverprivileged = errors.New("postgres: the role may do more than it should")
	// ErrSimpleProtocol says that a DSN asks for values inside statements.
	ErrSimpleProtocol = errors.New("postgres: the simple protocol would write values into statements; through a pooler use default_query_exec_mode=exec")
	// ErrReason says that a bypass was asked for without a reason.
	ErrReason = errors.New("postgres: a bypass needs a reason")
	// ErrNoAudit says that a Bypass was opened without an Appender.
	ErrNoAudit = errors.New("postgres: a bypass needs somebody who writes its audit row")
	// ErrNoLister says that EachTenant was called on a DB that was opened without
	// Options.Tenants.
	ErrNoLister = errors.New("postgres: nothing lists the tenants")
)

var errNoTransaction = errors.New("postgres: the server named no transaction")
