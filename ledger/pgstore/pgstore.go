// Package pgstore keeps the ledger in Postgres.
//
// It promises that a batch is committed whole or not at all, together with the
// Kafka offset after it; that only the newest owner of a partition can commit
// (epoch, offset and every head are compared and set in the same transaction);
// and that every row it writes belongs to a tenant of the transaction's signed
// context, which the database checks. It never updates or deletes an entry or
// a key, and never retries a commit whose outcome it does not know.
//
// Entries and keys go in by binary COPY into leaf tables: COPY is refused on a
// table with a policy, so the leaf has a statement trigger in its place
// (docs/decisions/0002). Everything is read through the parents, under forced
// row-level security.
package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Store is a ledger.Store in Postgres.
type Store struct {
	db      *postgres.DB
	buffers sync.Pool // of *commitBuffers
}

var _ ledger.Store = (*Store)(nil)

// New makes a Store. The pool needs a connection for each partition that
// commits at once and one more for each that reads.
func New(db *postgres.DB) *Store {
	s := &Store{db: db}
	s.buffers.New = func() any { return &commitBuffers{} }
	return s
}

// Assign raises the partition's epoch and reads its state.
func (s *Store) Assign(ctx context.Context, topic ledger.Topic, partition int32) (ledger.State, error) {
	var st ledger.State
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		defer s.evictBlockers(ctx, tx.Conn().PgConn().PID())()
		if _, err := tx.Exec(ctx, `
			insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset)
			values ($1, $2, $3, 1, 0) on conflict (partition) do nothing`,
			partition, topic.ID, topic.Partitions); err != nil {
			return err
		}
		var id [16]byte
		var partitions int32
		err := tx.QueryRow(ctx, `
			update ledger.partition set epoch = epoch + 1 where partition = $1
			returning topic_id, partitions, epoch, next_offset, last_batch, published_batch`, partition).
			Scan(&id, &partitions, &st.Epoch, &st.NextOffset, &st.LastBatch, &st.PublishedBatch)
		if err != nil {
			return err
		}
		if id != topic.ID || partitions != topic.Partitions {
			return fmt.Errorf("%w: stored topic %x with %d partitions, found %x with %d",
				ledger.ErrTopicChanged, id, partitions, topic.ID, topic.Partitions)
		}
		if err := checkPosition(ctx, tx, partition, &st); err != nil {
			return err
		}
		if st.Quarantined, err = readQuarantine(ctx, tx, partition, st.NextOffset); err != nil {
			return err
		}
		st.Controls, err = readControls(ctx, tx, partition)
		return err
	})
	return st, classify(err)
}

// readControls reads the newest control record of each kind.
func readControls(ctx context.Context, tx postgres.Tx, partition int32) ([]ledger.ControlRow, error) {
	rows, err := tx.Query(ctx, `
		select distinct on (kind) kafka_offset, kind, version, content_hash, content, issued_at
		from ledger.control where partition = $1 order by kind, kafka_offset desc`, partition)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c ledger.ControlRow, err error) {
		var hash []byte
		err = row.Scan(&c.Offset, &c.Kind, &c.Version, &hash, &c.Content, &c.IssuedAt)
		copy(c.Hash[:], hash)
		return c, err
	})
}

// Heads reads the heads of those tenants that have one.
func (s *Store) Heads(ctx context.Context, tenants []string) ([]ledger.Head, error) {
	var heads []ledger.Head
	err := s.db.InTenants(ctx, tenants, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select tenant_id, seq, chain, key_epoch, price_book, received_at from ledger.head
			where tenant_id = any($1)`, tenants)
		if err != nil {
			return err
		}
		heads, err = pgx.CollectRows(rows, scanHead)
		return err
	})
	return heads, classify(err)
}

func scanHead(row pgx.CollectableRow) (h ledger.Head, err error) {
	var chainHash, book []byte
	var received time.Time
	err = row.Scan(&h.Tenant, &h.Seq, &chainHash, &h.KeyEpoch, &book, &received)
	copy(h.Chain[:], chainHash)
	copy(h.PriceBook[:], book)
	h.ReceivedAt = received.UnixNano()
	return h, err
}

// Known reads those of the keys that the ledger holds.
func (s *Store) Known(ctx context.Context, refs []ledger.KeyRef) ([]ledger.KnownKey, error) {
	tenants, ids, keys := refColumns(refs)
	var known []ledger.KnownKey
	err := s.db.InTenants(ctx, tenants, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select k.tenant_id, k.key, k.content, k.seq
			from unnest($1::text[], $2::uuid[]) as u(tenant_id, key)
			join ledger.event_key k on k.tenant_id = u.tenant_id and k.key = u.key`, ids, keys)
		if err != nil {
			return err
		}
		known, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (k ledger.KnownKey, err error) {
			err = row.Scan(&k.Tenant, (*[16]byte)(&k.Key), (*[16]byte)(&k.Content), &k.Seq)
			return k, err
		})
		return err
	})
	return known, classify(err)
}

// keysPerCall is how many keys of a tenant Keys passes on at a time.
const keysPerCall = 8192

// Keys streams every key of the tenants.
func (s *Store) Keys(ctx context.Context, tenants []string, fn func(string, []event.Key)) error {
	err := s.db.InTenants(ctx, tenants, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select tenant_id, key from ledger.event_key where tenant_id = any($1)`, tenants)
		if err != nil {
			return err
		}
		defer rows.Close()
		var current string
		keys := make([]event.Key, 0, keysPerCall)
		for rows.Next() {
			raw := rows.RawValues()
			if string(raw[0]) != current || len(keys) == keysPerCall {
				if len(keys) > 0 {
					fn(current, keys)
				}
				current, keys = string(raw[0]), keys[:0]
			}
			keys = append(keys, event.Key(raw[1]))
		}
		if len(keys) > 0 && rows.Err() == nil {
			fn(current, keys)
		}
		return rows.Err()
	})
	return classify(err)
}

// Published moves the published cursor. It never moves it back.
func (s *Store) Published(ctx context.Context, partition int32, epoch, batch int64) error {
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			update ledger.partition set published_batch = greatest(published_batch, $3)
			where partition = $1 and epoch = $2 and last_batch >= $3`, partition, epoch, batch)
		if err == nil && tag.RowsAffected() != 1 {
			err = ledger.ErrFenced
		}
		return err
	})
	return classify(err)
}

// Batch reads a committed batch back, as it was published.
func (s *Store) Batch(ctx context.Context, partition int32, number int64) (*ledger.Batch, error) {
	b := &ledger.Batch{Partition: partition, Number: number}
	var tenants []string
	var firsts []int64
	var counts []int32
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			select first_offset, next_offset, tenants, first_seqs, counts from ledger.batch
			where partition = $1 and batch = $2`, partition, number).
			Scan(&b.FirstOffset, &b.NextOffset, &tenants, &firsts, &counts)
	})
	if err != nil {
		return nil, classify(fmt.Errorf("read batch %d of partition %d: %w", number, partition, err))
	}
	for i, id := range tenants {
		b.Groups = append(b.Groups, ledger.Group{After: ledger.Head{Tenant: id}, First: len(b.Rows), Count: int(counts[i])})
		if b.Rows, err = s.readRows(ctx, b.Rows, id, firsts[i], int64(counts[i])); err != nil {
			return nil, classify(err)
		}
	}
	return b, nil
}

// readRows appends a tenant's entries [first, first+count).
func (s *Store) readRows(ctx context.Context, out []ledger.Row, tenantID string, first, count int64) ([]ledger.Row, error) {
	if count == 0 {
		return out, nil
	}
	want := len(out) + int(count)
	err := s.db.InTenants(ctx, []string{tenantID}, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select seq, kind, key_epoch, canonical, chain, mac from ledger.entry
			where tenant_id = $1 and seq >= $2 and seq < $3 order by seq`, tenantID, first, first+count)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r ledger.Row
			var chainHash, mac []byte
			if err := rows.Scan(&r.Seq, (*uint8)(&r.Kind), &r.Epoch, &r.Canonical, &chainHash, &mac); err != nil {
				return err
			}
			r.Chain, r.MAC = chain.Hash(chainHash), chain.Hash(mac)
			out = append(out, r)
		}
		return rows.Err()
	})
	if err == nil && len(out) != want {
		err = fmt.Errorf("%w: entries %d to %d of tenant %s are not all there", ledger.ErrRefused, first, first+count-1, tenantID)
	}
	return out, err
}

// classify turns what the server says into the stage's errors.
func classify(err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, ledger.ErrFenced), errors.Is(err, ledger.ErrRefused), errors.Is(err, ledger.ErrTopicChanged), errors.Is(err, ledger.ErrPosition):
		return err
	case errors.As(err, &pg) && pg.Code == "23505":
		// The unique index is the backstop behind the dedupe read. That it spoke
		// means that somebody else wrote, or that we are wrong: read anew.
		return fmt.Errorf("%w: %w", ledger.ErrExists, err)
	case postgres.Permanent(err), postgres.IsNoRows(err):
		return fmt.Errorf("%w: %w", ledger.ErrRefused, err)
	default:
		return err
	}
}

// Books is the hash of the newest price book in force in each partition.
func (s *Store) Books(ctx context.Context) (map[int32]chain.Hash, error) {
	books := make(map[int32]chain.Hash)
	err := s.db.Tx(ctx, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select distinct on (partition) partition, content_hash from ledger.control
			where kind = $1 order by partition, kafka_offset desc`, event.ControlPriceBook)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var p int32
			var hash []byte
			if err := rows.Scan(&p, &hash); err != nil {
				return err
			}
			books[p] = chain.Hash(hash)
		}
		return rows.Err()
	})
	return books, classify(err)
}

// Totals are what the ledger holds of a set of tenants.
type Totals struct {
	Entries    int64
	Duplicates int64
	Conflicts  int64
	Rejected   int64 // for other reasons than a conflict
}

// Totals sums the heads and counters of the tenants.
func (s *Store) Totals(ctx context.Context, tenants []string) (t Totals, err error) {
	if len(tenants) == 0 {
		return t, nil
	}
	err = s.db.InTenants(ctx, tenants, func(tx postgres.Tx) error {
		if err := tx.QueryRow(ctx, `select coalesce(sum(seq), 0)::bigint from ledger.head where tenant_id = any($1)`, tenants).Scan(&t.Entries); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			select coalesce(sum(duplicates), 0)::bigint, coalesce(sum(conflicts), 0)::bigint, coalesce(sum(rejected), 0)::bigint
			from ledger.counter where tenant_id = any($1)`, tenants).Scan(&t.Duplicates, &t.Conflicts, &t.Rejected)
	})
	return t, classify(err)
}
