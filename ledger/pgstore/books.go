package pgstore

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Books keeps approved price books, each change with its audit row in the same
// transaction. It is a ledger.BookStore.
type Books struct {
	store *Store
	keys  audit.Keys
}

var _ ledger.BookStore = (*Books)(nil)

// NewBooks makes a Books over the writer's store.
func NewBooks(store *Store, keys audit.Keys) *Books { return &Books{store, keys} }

// Books implements ledger.BookStore.
func (b *Books) Books(ctx context.Context) (map[int32]chain.Hash, error) { return b.store.Books(ctx) }

// ApprovedBook implements ledger.BookStore.
func (b *Books) ApprovedBook(ctx context.Context) (id string, content []byte, err error) {
	err = b.store.db.Tx(ctx, func(tx postgres.Tx) error {
		err := tx.QueryRow(ctx, `select candidate_id::text, content from ledger.price_candidate where state = 'approved'`).Scan(&id, &content)
		if postgres.IsNoRows(err) {
			return nil
		}
		return err
	})
	return id, content, classify(err)
}

// BookPublished implements ledger.BookStore. Said twice, it does no harm.
func (b *Books) BookPublished(ctx context.Context, id string) error {
	err := b.store.db.InTenantsWrite(ctx, []string{string(audit.Installation)}, func(tx postgres.Tx) error {
		var version string
		var hash []byte
		err := tx.QueryRow(ctx, `
			update ledger.price_candidate set state = 'published', published_at = clock_timestamp()
			where candidate_id::text = $1 and state = 'approved' returning version, content_hash`, id).Scan(&version, &hash)
		if postgres.IsNoRows(err) {
			return nil // another process was faster
		}
		if err != nil {
			return err
		}
		return audit.Append(ctx, tx, b.keys, audit.Event{
			Tenant: audit.Installation, Actor: "ledger", Action: "prices.publish", Resource: fmt.Sprintf("prices/%s %s %x", id, version, hash), Outcome: audit.OK,
		})
	})
	return classify(err)
}

// Approved is the newest book that a human's yes put in force, nil without one.
func (b *Books) Approved(ctx context.Context) (content []byte, err error) {
	err = b.store.db.Tx(ctx, func(tx postgres.Tx) error {
		err := tx.QueryRow(ctx, `
			select content from ledger.price_candidate where state = 'published' order by decided_at desc limit 1`).Scan(&content)
		if postgres.IsNoRows(err) {
			return nil
		}
		return err
	})
	return content, classify(err)
}

// CandidateBook implements ledger.RerateStore.
func (s *Store) CandidateBook(ctx context.Context, id string) (content []byte, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select content from ledger.price_candidate where candidate_id::text = $1`, id).Scan(&content)
	})
	return content, classify(err)
}
