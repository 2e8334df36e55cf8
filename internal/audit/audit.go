// Package audit keeps the audit log: who did what, from where, and how it ended,
// in a chain per tenant that nobody can quietly change (docs/ledger-format.md,
// "Audit log").
//
// It promises that an event is in the chain when Append's transaction commits,
// and that the chain of a tenant is gap-free whoever else appends to it; that no
// role may change or delete a row; that a token of ours never stands in one,
// even where a client wrote it into a header; and that what a flood of refused
// callers can make it write is bounded (Recorder), the rest being counted.
//
// A call that changes something and whose row cannot be written must fail: give
// Append the transaction that makes the change, or Record the intent before it.
// What belongs to no tenant is in the chain of Installation.
//
// Lock order: Append locks the tenant's row of audit.head until the transaction
// ends. It comes after every other lock of the transaction (docs/architecture.md),
// and of several tenants in order of id.
package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Installation is the chain of what belongs to no tenant, such as a login with a
// token that nobody knows. Its keys exist in every installation, and no request
// can name it as its tenant.
var Installation = tenant.System(0)

// Outcomes of an event.
const (
	// OK: it was done, and the row stands in the transaction that did it, or was
	// written after it.
	OK = "ok"
	// Attempted: it is about to be done. A later row of the same request says how
	// it ended; without one, the process died in between.
	Attempted = "attempted"
	// Denied: the caller may not.
	Denied = "denied"
	// Failed: it was allowed and did not work.
	Failed = "failed"
)

// Actions that this package's users share. Others are named in the same way:
// noun, dot, verb.
const (
	Authenticate = "credential.authenticate"
	Authorize    = "credential.authorize"
)

// Event is one row. Texts that are too long are cut, and what is not printable
// is replaced: an event always fits.
type Event struct {
	// Tenant is whose chain it stands in; "" is Installation.
	Tenant tenant.ID
	// At is when it happened; zero is now.
	At time.Time
	// Actor names the credential or operator, never the secret.
	Actor string
	// Action is what was done, such as "token.create".
	Action string
	// Resource is what it was done to, such as "token/tok_x".
	Resource string
	// Outcome is OK, Attempted, Denied or Failed.
	Outcome string
	// Reason is why: what the caller gave, or why it was refused.
	Reason string
	// Addr is the address that the connection came from, without its port.
	Addr string
	// Client is the program that called: its user agent.
	Client string
	// RequestID is the request's id, as its answer and the log have it.
	RequestID string
	// Count is how many equal events the row stands for; 0 and 1 are one.
	Count int64
	// Until is when the last of several happened.
	Until time.Time
}

// Keys gives the keys that rows are authenticated with; *keyring.Ring does.
type Keys interface {
	Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error)
	// Epoch is the epoch in which new rows are authenticated.
	Epoch(id tenant.ID, p keyring.Purpose) uint32
}

// ErrUnwritten says that an audit row could not be written, so what it is about
// must not happen. 503 or exit code 7: come again.
var ErrUnwritten = errors.New("audit: the row cannot be written")

// Row is an event as it is stored.
type Row struct {
	Tenant    tenant.ID
	Seq       int64
	KeyEpoch  uint32
	Canonical []byte
	Chain     Hash
	MAC       Hash
}

// Append writes an event in the caller's transaction, which has entered the
// context of the event's tenant and is READ COMMITTED. It holds the tenant's
// chain until the transaction ends, so it comes last. Every error matches
// ErrUnwritten: the caller rolls back.
func Append(ctx context.Context, tx postgres.Tx, keys Keys, ev Event) error {
	return AppendAll(ctx, tx, keys, ev.Tenant, []Event{ev})
}

// AppendAll is Append for several events of one tenant, in their order.
func AppendAll(ctx context.Context, tx postgres.Tx, keys Keys, id tenant.ID, events []Event) error {
	if id == "" {
		id = Installation
	}
	if len(events) == 0 {
		return nil
	}
	if err := appendAll(ctx, tx, keys, id, events); err != nil {
		return fmt.Errorf("%w: %w", ErrUnwritten, err)
	}
	return nil
}

func appendAll(ctx context.Context, tx postgres.Tx, keys Keys, id tenant.ID, events []Event) error {
	epoch := keys.Epoch(id, keyring.Audit)
	key, err := keys.Derive(id, keyring.Audit, epoch)
	if err != nil {
		return err
	}
	var last int64
	var hash []byte
	genesis := Genesis(id)
	// The row is locked by writing it, also when it is new.
	err = tx.QueryRow(ctx, `
		insert into audit.head as h (tenant_id, seq, chain) values ($1, 0, $2)
		on conflict (tenant_id) do update set seq = h.seq returning h.seq, h.chain`, string(id), genesis[:]).Scan(&last, &hash)
	if err != nil {
		return fmt.Errorf("lock the chain of %s: %w", id, err)
	}
	rows := seal(id, last, Hash(hash), epoch, key, events)
	return insert(ctx, tx, id, last, rows)
}

// sealed is the columns of new rows.
type sealed struct {
	seqs                    []int64
	at                      []time.Time
	epoch                   uint32
	canonicals, chains, mac [][]byte
}

// seal numbers, chains and authenticates events behind entry `last`.
func seal(id tenant.ID, last int64, prev Hash, epoch uint32, key [keyring.KeyBytes]byte, events []Event) sealed {
	s := sealed{epoch: epoch}
	for i := range events {
		ev := events[i]
		ev.Tenant = id
		ev.fit()
		if ev.At.IsZero() {
			ev.At = time.Now()
		}
		seq := last + int64(i) + 1
		canonical := ev.append(nil, seq)
		prev = Next(prev, Leaf(canonical))
		mac := MAC(key, epoch, seq, prev)
		s.seqs, s.at = append(s.seqs, seq), append(s.at, floorMicro(ev.At))
		s.canonicals = append(s.canonicals, canonical)
		s.chains = append(s.chains, append([]byte(nil), prev[:]...))
		s.mac = append(s.mac, mac[:])
	}
	return s
}

func insert(ctx context.Context, tx postgres.Tx, id tenant.ID, last int64, s sealed) error {
	n := len(s.seqs)
	tag, err := tx.Exec(ctx, `
		with written as (
		  insert into audit.event (tenant_id, seq, at, key_epoch, canonical, chain, mac)
		  select $1, r.seq, r.at, $4, r.canonical, r.chain, r.mac
		  from unnest($2::bigint[], $3::timestamptz[], $5::bytea[], $6::bytea[], $7::bytea[]) as r (seq, at, canonical, chain, mac))
		update audit.head set seq = $8, chain = $9 where tenant_id = $1 and seq = $10`,
		string(id), s.seqs, s.at, int32(s.epoch), s.canonicals, s.chains, s.mac, s.seqs[n-1], s.chains[n-1], last)
	if err != nil {
		return fmt.Errorf("append to the chain of %s: %w", id, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("append to the chain of %s: its head moved under a lock", id)
	}
	return nil
}

// Log appends events in transactions of its own. It is safe for concurrent use.
type Log struct {
	db   *postgres.DB
	keys Keys
}

// NewLog makes a Log over a role that may insert rows, such as postgres.RoleApp.
func NewLog(db *postgres.DB, keys Keys) *Log { return &Log{db, keys} }

// Keys are the keys that Append needs.
func (l *Log) Keys() Keys { return l.keys }

// Record writes one event; it is durable on return. Every error matches
// ErrUnwritten.
func (l *Log) Record(ctx context.Context, ev Event) error {
	return l.recordAll(ctx, ev.Tenant, []Event{ev})
}

func (l *Log) recordAll(ctx context.Context, id tenant.ID, events []Event) error {
	if id == "" {
		id = Installation
	}
	err := l.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		return AppendAll(ctx, tx, l.keys, id, events)
	})
	if err != nil && !errors.Is(err, ErrUnwritten) {
		err = fmt.Errorf("%w: %w", ErrUnwritten, err)
	}
	return err
}
