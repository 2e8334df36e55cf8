// Package candidate keeps price books that wait for a human's yes.
//
// A list of prices becomes a candidate: the next version of the book in force,
// whole. Somebody looks at what it would change and approves or rejects it; what
// is approved is published by the ledger's writer, which marks it so. Each step
// is a row of the installation's audit log in the same transaction.
//
// It promises that what is approved is to the byte what was looked at: a candidate
// never changes, and one that was made of another book than the one in force by
// then cannot be approved. It publishes nothing itself.
package candidate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing"
)

// Errors of the store. What the database says comes beside them.
var (
	// ErrNotFound: there is no such candidate or book.
	ErrNotFound = errors.New("candidate: there is no such price book")
	// ErrDecided: it is approved or rejected already, or another one is approved
	// and not published yet.
	ErrDecided = errors.New("candidate: it is decided, or another one is being published")
	// ErrStale: it was made of another book than the one in force now. Propose the
	// list anew and look at what it changes.
	ErrStale = errors.New("candidate: the price book in force is another one by now")
	// ErrFourEyes: whoever proposed it may not approve it.
	ErrFourEyes = errors.New("candidate: somebody else than who proposed it must approve it")
	// ErrInvalid: a note or reason is too long, or the book says nothing new.
	ErrInvalid = errors.New("candidate: refused")
)

// MaxNoteBytes bounds a note and a reason.
const MaxNoteBytes = 500

// States of a candidate.
const (
	Proposed  = "proposed"
	Approved  = "approved"
	Rejected  = "rejected"
	Published = "published"
)

// Hash is the hash of a book.
type Hash = [32]byte

// Candidate is what is told of one.
type Candidate struct {
	ID      string // a UUID
	Version string
	Hash    Hash
	Bytes   int64
	// Base is the book in force that it was made of; zero when there was none.
	Base        Hash
	Note        string
	ProposedBy  string
	ProposedAt  time.Time
	State       string
	DecidedBy   string
	DecidedAt   time.Time
	Reason      string
	PublishedAt time.Time
}

// Proposal is a list of prices that should be in force.
type Proposal struct {
	List *pricing.Book
	// ValidFrom is when its prices begin; zero is now.
	ValidFrom time.Time
	// Whole puts the list in the place of the book in force, history and all, and
	// does not continue that one.
	Whole bool
	Note  string
}

// Store keeps candidates, as the role postgres.RoleApp.
type Store struct {
	db       *postgres.DB
	keys     audit.Keys
	fourEyes bool
}

// New makes a Store; the caller closes db. fourEyes wants another credential to
// approve than proposed.
func New(db *postgres.DB, keys audit.Keys, fourEyes bool) *Store { return &Store{db, keys, fourEyes} }

// Propose makes a candidate. row is the audit row of it, complete but for action,
// resource and outcome. Errors: ErrInvalid, those of pricing.Revise.
func (s *Store) Propose(ctx context.Context, row audit.Event, p *Proposal) (c Candidate, changes pricing.Changes, err error) {
	if len(p.Note) > MaxNoteBytes {
		return c, changes, fmt.Errorf("%w: a note has at most %d bytes", ErrInvalid, MaxNoteBytes)
	}
	base, err := s.InForce(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return c, changes, err
	}
	book := p.List
	if base != nil && !p.Whole {
		if book, changes, err = revise(base, p); err != nil {
			return c, changes, err
		}
	}
	c = Candidate{ID: uuid.NewString(), Version: book.Version(), Hash: book.Hash(), Note: p.Note, ProposedBy: row.Actor}
	var baseHash []byte
	if base != nil {
		if c.Base = base.Hash(); c.Base == c.Hash {
			return c, changes, fmt.Errorf("%w: it is the book in force", ErrInvalid)
		}
		baseHash = c.Base[:]
	}
	err = s.write(ctx, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into ledger.price_candidate (candidate_id, version, content_hash, content, base_hash, note, proposed_by)
			values ($1, $2, $3, $4, coalesce($5, ''::bytea), $6, left($7, 200))`, c.ID, c.Version, c.Hash[:], book.Marshal(), baseHash, p.Note, row.Actor)
		if err != nil {
			return err
		}
		if c, err = one(ctx, tx, c.ID); err != nil {
			return err
		}
		return s.append(ctx, tx, row, "prices.propose", &c, p.Note)
	})
	return c, changes, err
}

// revise continues the book in force with the list.
func revise(base *pricing.Book, p *Proposal) (*pricing.Book, pricing.Changes, error) {
	now := time.Now().UTC().Truncate(time.Second)
	rev := pricing.Revision{Header: p.List.Header(), ValidFrom: p.ValidFrom.UTC().Truncate(time.Second), KnownFrom: now}
	if p.ValidFrom.IsZero() {
		rev.ValidFrom = now
	}
	book, changes, err := base.Revise(p.List, rev)
	if err == nil && changes.Added+changes.Changed == 0 {
		err = fmt.Errorf("%w: no price differs from the book in force", ErrInvalid)
	}
	return book, changes, err
}

// Decide approves or rejects a candidate, as of the audit row. Errors:
// ErrNotFound, ErrDecided, ErrStale, ErrFourEyes, ErrInvalid.
func (s *Store) Decide(ctx context.Context, row audit.Event, id string, approve bool, reason string) (c Candidate, err error) {
	if len(reason) > MaxNoteBytes {
		return c, fmt.Errorf("%w: a reason has at most %d bytes", ErrInvalid, MaxNoteBytes)
	}
	state, action := Rejected, "prices.reject"
	if approve {
		state, action = Approved, "prices.approve"
	}
	err = s.write(ctx, func(tx postgres.Tx) error {
		// One decision after the other: each sees what the one before did.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('tallystick price candidates', 0))`); err != nil {
			return err
		}
		if c, err = one(ctx, tx, id); err != nil {
			return err
		}
		if c.State != Proposed {
			return fmt.Errorf("%w: it is %s", ErrDecided, c.State)
		}
		if approve {
			if err := s.approvable(ctx, tx, row, &c); err != nil {
				return err
			}
		}
		tag, err := tx.Exec(ctx, `
			update ledger.price_candidate set state = $2, decided_by = left($3, 200), decided_at = clock_timestamp(), reason = $4
			where candidate_id = $1 and state = 'proposed'`, id, state, row.Actor, reason)
		switch {
		case postgres.SQLState(err) == "23505":
			return ErrDecided
		case err != nil:
			return err
		case tag.RowsAffected() != 1:
			return ErrDecided // by somebody else, just now
		}
		if c, err = one(ctx, tx, id); err != nil {
			return err
		}
		return s.append(ctx, tx, row, action, &c, reason)
	})
	return c, err
}

// approvable holds a candidate against what is in force.
func (s *Store) approvable(ctx context.Context, tx postgres.Tx, row audit.Event, c *Candidate) error {
	if s.fourEyes && row.Actor == c.ProposedBy {
		return ErrFourEyes
	}
	// What was approved since may be on its way to the ledger.
	var overtaken bool
	err := tx.QueryRow(ctx, `
		select exists (select from ledger.price_candidate where state in ('approved', 'published') and decided_at > $1)`, c.ProposedAt).Scan(&overtaken)
	if err != nil {
		return err
	}
	if overtaken {
		return fmt.Errorf("%w: another one was approved since it was proposed", ErrStale)
	}
	have, _, err := inForce(ctx, tx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if have != c.Base {
		return fmt.Errorf("%w: it was made of %x, in force is %x", ErrStale, c.Base[:6], have[:6])
	}
	return nil
}

func (s *Store) append(ctx context.Context, tx postgres.Tx, row audit.Event, action string, c *Candidate, reason string) error {
	row.Tenant, row.Action, row.Outcome, row.Reason = audit.Installation, action, audit.OK, reason
	row.Resource = fmt.Sprintf("prices/%s %s %x", c.ID, c.Version, c.Hash)
	return audit.Append(ctx, tx, s.keys, row)
}

// write runs fn where the installation's audit log can be written.
func (s *Store) write(ctx context.Context, fn func(postgres.Tx) error) error {
	return s.db.InTenantsWrite(ctx, []string{string(audit.Installation)}, fn)
}
