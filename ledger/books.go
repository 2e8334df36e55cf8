package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/ledger/chain"
)

// BookStore keeps price books that a human has approved.
type BookStore interface {
	// ApprovedBook is the one that waits for publication; content is nil without
	// one.
	ApprovedBook(ctx context.Context) (id string, content []byte, err error)
	// BookPublished notes that it stands in every partition of the log.
	BookPublished(ctx context.Context, id string) error
	// Books is the hash of the newest book in force in each partition.
	Books(ctx context.Context) (map[int32]chain.Hash, error)
}

// bookPoll is how long an approved book may wait for its publication.
const bookPoll = time.Second

// BookPublisher publishes price books that were approved. Killed between the log
// and the note of it, it publishes what is missing, and a book that is said twice
// to a partition counts once.
type BookPublisher struct {
	registrar *Registrar
	store     BookStore
	log       *slog.Logger
}

// NewBookPublisher makes a BookPublisher.
func NewBookPublisher(registrar *Registrar, store BookStore, log *slog.Logger) *BookPublisher {
	return &BookPublisher{registrar, store, log}
}

// Run publishes until ctx ends.
func (p *BookPublisher) Run(ctx context.Context) error {
	for {
		if err := p.publish(ctx); err != nil && ctx.Err() == nil {
			p.log.LogAttrs(ctx, slog.LevelWarn, "an approved price book waits for its publication", slog.Any("err", err))
		}
		if !sleep(ctx, bookPoll) {
			return nil
		}
	}
}

// publish publishes the book that waits, if there is one.
func (p *BookPublisher) publish(ctx context.Context) error {
	id, content, err := p.store.ApprovedBook(ctx)
	if err != nil || content == nil {
		return err
	}
	book, err := pricing.ParseBook(content)
	if err != nil {
		return fmt.Errorf("the approved price book %s: %w", id, err)
	}
	inForce, err := p.store.Books(ctx)
	if err != nil {
		return err
	}
	if err := p.registrar.PublishBook(ctx, book, inForce); err != nil {
		return err
	}
	p.log.LogAttrs(ctx, slog.LevelInfo, "price book published", slog.String("candidate", id), slog.String("version", book.Version()))
	return p.store.BookPublished(ctx, id)
}
