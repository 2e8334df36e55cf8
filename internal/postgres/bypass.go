package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Limits of a Bypass: it is for rare and short work.
const (
	bypassMaxConns         = 2
	bypassStatementTimeout = 30 * time.Second
)

// Appender writes audit rows. AppendBypass writes that the tenant's isolation,
// or that of all when id is empty, is stepped over for the reason, in the given
// transaction, which has entered the tenant's context.
type Appender interface {
	AppendBypass(ctx context.Context, tx Tx, id tenant.ID, reason string) error
}

// Bypass is the one way past row-level security.
type Bypass struct {
	db    *DB
	audit Appender
}

// OpenBypass connects as a login of RoleBypass, with a pool of two connections
// and a time limit on each statement.
//
// Errors: ErrNoAudit, and as Open.
func OpenBypass(ctx context.Context, dsn string, signer *Signer, audit Appender) (*Bypass, error) {
	if audit == nil {
		return nil, ErrNoAudit
	}
	db, err := open(ctx, dsn, signer, Options{
		MaxConns: bypassMaxConns, StatementTimeout: bypassStatementTimeout, Name: string(RoleBypass), Role: RoleBypass,
	})
	if err != nil {
		return nil, err
	}
	return &Bypass{db: db, audit: audit}, nil
}

// Close closes all connections.
func (b *Bypass) Close() { b.db.Close() }

// RunAsBypass runs fn in a transaction that no policy holds back, for work on
// one tenant or, with an empty id, on all. The audit row is written first and
// in the same transaction: where it cannot be written fn does not run, and what
// fn did is kept only together with it.
//
// reason is a constant at every call; internal/archtest lists the callers.
func (b *Bypass) RunAsBypass(ctx context.Context, id tenant.ID, reason string, fn func(Tx) error) error {
	if reason == "" {
		return ErrReason
	}
	var ids []string
	if id != "" {
		ids = []string{string(id)}
	}
	return b.db.run(ctx, beginWrite, ids, func(tx Tx) error {
		if err := b.audit.AppendBypass(ctx, tx, id, reason); err != nil {
			return fmt.Errorf("audit the bypass: %w", err)
		}
		return fn(tx)
	})
}
