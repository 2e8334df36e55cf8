package candidate

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing"
)

// Book is a book that was in force, or is.
type Book struct {
	Version string
	Hash    Hash
	Bytes   int64
	// IssuedAt is when it was published; it counts from its place in the log on.
	IssuedAt time.Time
	// CandidateID and DecidedBy say who approved it; "" for one that came with the
	// program or the configuration.
	CandidateID, DecidedBy string
}

// InForce is the newest book in the log. ErrNotFound before the first.
func (s *Store) InForce(ctx context.Context) (book *pricing.Book, err error) {
	var content []byte
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		_, content, err = inForce(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return pricing.ParseBook(content)
}

// inForce reads the newest book. All partitions have the same ones; the first
// speaks for all.
func inForce(ctx context.Context, tx postgres.Tx) (hash Hash, content []byte, err error) {
	var stored []byte
	err = tx.QueryRow(ctx, `
		select content_hash, content from ledger.control where kind = 'price_book' order by partition, kafka_offset desc limit 1`).Scan(&stored, &content)
	if postgres.IsNoRows(err) {
		return hash, nil, ErrNotFound
	}
	if err != nil {
		return hash, nil, fmt.Errorf("read the price book in force: %w", err)
	}
	copy(hash[:], stored)
	return hash, content, nil
}

// Content is a book, as it was published or proposed, by its hash.
func (s *Store) Content(ctx context.Context, hash Hash) (content []byte, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			(select content from ledger.price_candidate where content_hash = $1 limit 1) union all
			(select content from ledger.control where kind = 'price_book' and content_hash = $1 limit 1) limit 1`, hash[:]).Scan(&content)
	})
	if postgres.IsNoRows(err) {
		return nil, ErrNotFound
	}
	return content, err
}

// MaxList is the most that a list holds.
const MaxList = 1000

// History are the books that were published, the newest first.
func (s *Store) History(ctx context.Context) (list []Book, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select b.version, b.content_hash, octet_length(b.content), b.issued_at, coalesce(c.candidate_id::text, ''), coalesce(c.decided_by, '')
			from ledger.control b
			left join lateral (select candidate_id, decided_by from ledger.price_candidate p
			                   where p.content_hash = b.content_hash and p.state = 'published' order by decided_at desc limit 1) c on true
			where b.kind = 'price_book' and b.partition = (select min(partition) from ledger.control where kind = 'price_book')
			order by b.kafka_offset desc limit $1`, MaxList)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var b Book
			var hash []byte
			var issued int64
			if err := rows.Scan(&b.Version, &hash, &b.Bytes, &issued, &b.CandidateID, &b.DecidedBy); err != nil {
				return err
			}
			copy(b.Hash[:], hash)
			b.IssuedAt = time.Unix(0, issued).UTC()
			list = append(list, b)
		}
		return rows.Err()
	})
	return list, err
}

const columns = `candidate_id::text, version, content_hash, octet_length(content), base_hash, note, proposed_by, proposed_at, state,
	coalesce(decided_by, ''), coalesce(decided_at, 'epoch'), reason, coalesce(published_at, 'epoch')`

const (
	selectOne  = `select ` + columns + ` from ledger.price_candidate where candidate_id::text = $1`
	selectList = `select ` + columns + ` from ledger.price_candidate where ($1 = '' or state = $1) order by proposed_at desc limit $2`
)

// Get is one candidate. ErrNotFound.
func (s *Store) Get(ctx context.Context, id string) (c Candidate, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		c, err = one(ctx, tx, id)
		return err
	})
	return c, err
}

// List are the newest candidates in a state, or in any with "".
func (s *Store) List(ctx context.Context, state string) (list []Candidate, err error) {
	err = s.db.Tx(ctx, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, selectList, state, MaxList)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			c, err := scan(rows)
			if err != nil {
				return err
			}
			list = append(list, c)
		}
		return rows.Err()
	})
	return list, err
}

func one(ctx context.Context, tx postgres.Tx, id string) (Candidate, error) {
	c, err := scan(tx.QueryRow(ctx, selectOne, id))
	if postgres.IsNoRows(err) {
		return c, ErrNotFound
	}
	return c, err
}

func scan(row interface{ Scan(...any) error }) (c Candidate, err error) {
	var hash, base []byte
	err = row.Scan(&c.ID, &c.Version, &hash, &c.Bytes, &base, &c.Note, &c.ProposedBy, &c.ProposedAt, &c.State, &c.DecidedBy, &c.DecidedAt, &c.Reason, &c.PublishedAt)
	copy(c.Hash[:], hash)
	copy(c.Base[:], base)
	for _, t := range []*time.Time{&c.DecidedAt, &c.PublishedAt} {
		if t.Unix() == 0 {
			*t = time.Time{}
		}
	}
	return c, err
}
