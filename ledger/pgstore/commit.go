package pgstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// commitBuffers is the memory of one commit, reused.
type commitBuffers struct {
	stream copyStream
	heads  heads
}

// Commit writes the batch in one transaction of four round trips: begin,
// everything that compares and sets, two COPYs, commit.
func (s *Store) Commit(ctx context.Context, b *ledger.Batch) error {
	buf := s.buffers.Get().(*commitBuffers)
	defer s.buffers.Put(buf)
	conn, release, err := s.db.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	tx, err := s.db.Begin(ctx, conn)
	if err != nil {
		return classify(err)
	}
	if err := s.write(ctx, tx, b, buf); err != nil {
		// The transaction is gone with the connection if it cannot be rolled back.
		_ = tx.Rollback(context.WithoutCancel(ctx))
		return classify(err)
	}
	return classify(tx.Commit(ctx))
}

func (s *Store) write(ctx context.Context, tx *postgres.Bound, b *ledger.Batch, buf *commitBuffers) error {
	if err := s.compareAndSet(ctx, tx, b, buf); err != nil {
		return err
	}
	if len(b.Rows) == 0 {
		return nil
	}
	pg := tx.Conn().PgConn()
	if _, err := pg.CopyFrom(ctx, buf.stream.begin(b, appendEntry), copyEntries); err != nil {
		return fmt.Errorf("copy entries: %w", err)
	}
	if _, err := pg.CopyFrom(ctx, buf.stream.begin(b, appendUsageKey), copyKeys); err != nil {
		return fmt.Errorf("copy keys: %w", err)
	}
	return nil
}

// compareAndSet fences the partition and moves the heads, in one round trip.
// Locks are taken in the order partition, then tenants by id (the groups are
// sorted), so that two writers can never wait for each other.
func (s *Store) compareAndSet(ctx context.Context, tx *postgres.Bound, b *ledger.Batch, buf *commitBuffers) error {
	h := &buf.heads
	h.fill(b)
	var batch pgx.Batch
	if len(h.tenants) > 0 {
		batch.Queue("select sec.enter($1)", s.db.Token(tx, h.tenants))
	}
	expect(&batch, 1, "partition", `
		update ledger.partition set next_offset = $5, last_batch = $6, published_batch = greatest(published_batch, $7)
		where partition = $1 and epoch = $2 and next_offset = $3 and last_batch = $4`,
		b.Partition, b.Epoch, b.FirstOffset, b.Number-1, b.NextOffset, b.Number, b.Published)
	if len(h.tenants) > 0 {
		batch.Queue(`select pg_advisory_xact_lock(hashtextextended(t, 0)) from unnest($1::text[]) t`, h.tenants)
	}
	if n := len(h.moved.tenants); n > 0 {
		expect(&batch, n, "head", `
			update ledger.head h set seq = u.seq, chain = u.chain, key_epoch = u.key_epoch, price_book = u.price_book,
			       received_at = u.received_at
			from unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::int[], $7::bytea[], $8::timestamptz[])
			     as u(tenant_id, old_seq, old_chain, seq, chain, key_epoch, price_book, received_at)
			where h.tenant_id = u.tenant_id and h.seq = u.old_seq and h.chain = u.old_chain`, h.moved.args()...)
	}
	if n := len(h.made.tenants); n > 0 {
		expect(&batch, n, "head", `
			insert into ledger.head (tenant_id, partition, seq, chain, key_epoch, price_book, received_at)
			select u.tenant_id, $9, u.seq, u.chain, u.key_epoch, u.price_book, u.received_at
			from unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::int[], $7::bytea[], $8::timestamptz[])
			     as u(tenant_id, old_seq, old_chain, seq, chain, key_epoch, price_book, received_at)`,
			append(h.made.args(), b.Partition)...)
	}
	queueControls(&batch, b)
	queueCounts(&batch, b)
	queueSubjects(&batch, b)
	queueCorrections(&batch, b)
	batch.Queue(`
		insert into ledger.batch (partition, batch, first_offset, next_offset, tenants, first_seqs, counts)
		values ($1, $2, $3, $4, $5, $6, $7)`,
		b.Partition, b.Number, b.FirstOffset, b.NextOffset, h.tenants, h.firstSeqs, h.counts)
	return tx.SendBatch(ctx, &batch).Close()
}

// expect queues a statement that must change exactly n rows: any other number
// means that somebody else moved the partition or a head.
func expect(batch *pgx.Batch, n int, what, sql string, args ...any) {
	batch.Queue(sql, args...).Exec(func(tag commandTag) error {
		if tag.RowsAffected() != int64(n) {
			return fmt.Errorf("%w: %s: %d of %d rows are where the batch expects them", ledger.ErrFenced, what, tag.RowsAffected(), n)
		}
		return nil
	})
}

func queueControls(batch *pgx.Batch, b *ledger.Batch) {
	for i := range b.Controls {
		c := &b.Controls[i]
		batch.Queue(`
			insert into ledger.control (partition, kafka_offset, kind, version, content_hash, content, issued_at)
			values ($1, $2, $3, $4, $5, $6, $7)`,
			b.Partition, c.Offset, c.Kind, c.Version, c.Hash[:], c.Content, c.IssuedAt)
	}
}

func queueCounts(batch *pgx.Batch, b *ledger.Batch) {
	if len(b.Counts) == 0 {
		return
	}
	n := len(b.Counts)
	tenants, producers := make([]string, n), make([]string, n)
	var nums [3][]int64
	for i := range b.Counts {
		c := &b.Counts[i]
		tenants[i], producers[i] = c.Tenant, c.ProducerID
		nums[0] = append(nums[0], c.Duplicates)
		nums[1] = append(nums[1], c.Conflicts)
		nums[2] = append(nums[2], c.Rejected)
	}
	batch.Queue(`
		insert into ledger.counter as k (tenant_id, producer_id, partition, duplicates, conflicts, rejected)
		select t, p, $1, d, c, r from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[]) as u(t, p, d, c, r)
		on conflict (tenant_id, producer_id) do update set
		  duplicates = k.duplicates + excluded.duplicates, conflicts = k.conflicts + excluded.conflicts,
		  rejected = k.rejected + excluded.rejected`,
		b.Partition, tenants, producers, nums[0], nums[1], nums[2])
}

// headArrays are the parameters that move or make heads, one array a column.
type headArrays struct {
	tenants   []string
	oldSeqs   []int64
	oldChains [][]byte
	seqs      []int64
	chains    [][]byte
	epochs    []int32
	books     [][]byte
	received  []timestamptz
}

func (a *headArrays) reset() {
	*a = headArrays{a.tenants[:0], a.oldSeqs[:0], a.oldChains[:0], a.seqs[:0], a.chains[:0], a.epochs[:0], a.books[:0], a.received[:0]}
}

func (a *headArrays) add(g *ledger.Group) {
	a.tenants = append(a.tenants, g.After.Tenant)
	a.oldSeqs = append(a.oldSeqs, g.Before.Seq)
	a.oldChains = append(a.oldChains, g.Before.Chain[:])
	a.seqs = append(a.seqs, g.After.Seq)
	a.chains = append(a.chains, g.After.Chain[:])
	a.epochs = append(a.epochs, int32(g.After.KeyEpoch))
	var book []byte // null until the chain names a book
	if g.After.PriceBook != (chain.Hash{}) {
		book = g.After.PriceBook[:]
	}
	a.books = append(a.books, book)
	a.received = append(a.received, micros(g.After.ReceivedAt))
}

func (a *headArrays) args() []any {
	return []any{a.tenants, a.oldSeqs, a.oldChains, a.seqs, a.chains, a.epochs, a.books, a.received}
}

// heads are the columns of a batch's groups.
type heads struct {
	moved, made headArrays
	tenants     []string
	firstSeqs   []int64
	counts      []int32
}

func (h *heads) fill(b *ledger.Batch) {
	h.moved.reset()
	h.made.reset()
	// Empty, never nil: the driver sends a nil slice as null.
	h.tenants, h.firstSeqs, h.counts = slices.Grow(h.tenants[:0], 1), slices.Grow(h.firstSeqs[:0], 1), slices.Grow(h.counts[:0], 1)
	for i := range b.Groups {
		g := &b.Groups[i]
		h.tenants = append(h.tenants, g.After.Tenant)
		h.firstSeqs = append(h.firstSeqs, g.Before.Seq+1)
		h.counts = append(h.counts, int32(g.Count))
		switch {
		case g.New:
			h.made.add(g)
		case g.Count > 0:
			h.moved.add(g)
		}
	}
}
