package ledger

import (
	"bytes"
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// importer writes back, from the topic `entries`, the batches that a restore
// took from the store: the very same entries under the same batch numbers, so
// that whoever read them from `entries` goes on. Nothing in a frame is taken on
// trust: each entry must follow the head, be canonical, and have the MAC of the
// tenant's key. What no entry holds comes from `events`, as far as that reaches:
// price books, sealed identities and counts of duplicates.
type importer struct {
	w         *Writer
	topic     Topic
	partition int32
	epoch     int64
	rec       *recovering

	restored int64 // the store's last batch when the import began
	last     int64 // the last batch that is committed
	next     int64 // the offset behind its records
	heads    map[string]*importHead
	books    importBooks
	events   eventsRange

	subjects subjects

	seen    bool // a frame of a batch that the store has, or the log from its start
	number  int64
	total   int
	batch   Batch
	records map[int64]importRecord // of the batch, by offset

	hasher *chain.Hasher
	entry  chain.Entry
}

// importHead is a chain's end while its entries are imported.
type importHead struct {
	head   Head
	exists bool // in the store, or in this batch
	stored bool // in the store
	mac    *chain.MACKey
	number uint32 // tells tenants apart in importer.subjects
}

// importRecord is what a batch has made of a record.
type importRecord struct {
	kind       chain.Kind
	pseudonym  string
	receivedAt int64
}

// partialBatch is a batch whose first frames were published before its writer
// died. It is made again from `events`, with the same end.
type partialBatch struct {
	number int64
	total  int
	chains []chain.Hash // of the entries that were published
}

// full reports whether the batch has all entries that it had.
func (p *partialBatch) full(b *builder) bool { return p != nil && len(b.rows) >= p.total }

// missing is the error of a batch that `events` no longer gives.
func (p *partialBatch) missing(got int) error {
	return fmt.Errorf("%w: batch %d had %d entries, %d of which were published; events give %d", ErrMissingRange, p.number, p.total, len(p.chains), got)
}

// same holds the batch that was built against what was published of it.
func (p *partialBatch) same(b *Batch) error {
	if p == nil {
		return nil
	}
	if len(b.Rows) < p.total {
		return p.missing(len(b.Rows))
	}
	if len(b.Rows) != p.total {
		return fmt.Errorf("%w: batch %d had %d entries, events give %d", ErrForked, p.number, p.total, len(b.Rows))
	}
	for i := range p.chains {
		if b.Rows[i].Chain != p.chains[i] {
			return fmt.Errorf("%w: batch %d, entry %d of it is another one than was published", ErrForked, p.number, i)
		}
	}
	return nil
}

// errNoTail says that `entries` does not go on where the restored store ends.
var errNoTail = errors.New("ledger: the topic entries does not follow the store")

// importTail imports what the partition of `entries` holds behind the store.
func (w *Writer) importTail(ctx context.Context, topic Topic, partition int32, src Source, st *State, rec *recovering, log *slog.Logger) (*partialBatch, error) {
	first, end, err := w.opts.Tail.Held(ctx, partition)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	im := &importer{
		w: w, topic: topic, partition: partition, epoch: st.Epoch, rec: rec,
		restored: st.LastBatch, last: st.LastBatch, next: st.NextOffset,
		heads: make(map[string]*importHead), books: newImportBooks(st.Controls), hasher: chain.NewHasher(),
		events:  eventsRange{src: src, topic: topic, first: first, end: end},
		records: make(map[int64]importRecord),
	}
	defer im.events.close()
	err = w.opts.Tail.Published(ctx, partition, func(recs []kafka.Record, whole bool) error {
		im.seen = im.seen || whole
		for i := range recs {
			if err := im.add(ctx, recs[i].Value); err != nil {
				return fmt.Errorf("offset %d of entries: %w", recs[i].Offset, err)
			}
		}
		return nil
	})
	if errors.Is(err, errNoTail) {
		log.LogAttrs(ctx, slog.LevelWarn, "the topic entries does not follow the restored ledger: everything is replayed from events, in other batches than before", slog.Any("err", err))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := im.books.check(); err != nil {
		return nil, err
	}
	log.LogAttrs(ctx, slog.LevelInfo, "ledger batches imported from entries", slog.Int64("from", im.restored+1), slog.Int64("to", im.last), slog.Int64("offset", im.next))
	if len(im.batch.Rows) == 0 {
		return nil, nil
	}
	p := &partialBatch{number: im.number, total: im.total}
	for i := range im.batch.Rows {
		p.chains = append(p.chains, im.batch.Rows[i].Chain)
	}
	return p, nil
}

// add takes a record of `entries`. One that is no frame of this partition was
// put there by somebody else; that something is missing shows in the next.
func (im *importer) add(ctx context.Context, value []byte) error {
	var f chain.Frame
	if f.Decode(value) != nil || f.Partition != im.partition {
		return nil
	}
	switch {
	case f.Batch <= im.last:
		im.seen = true
		return nil
	case len(im.batch.Rows) == 0:
		if f.Index != 0 || !im.seen && f.Batch != im.last+1 {
			return im.broken(&f, "does not follow it")
		}
		if err := im.skipTo(ctx, f.Batch); err != nil {
			return err
		}
		im.begin(&f)
	case f.Batch != im.number || int(f.Total) != im.total || int(f.Index) > len(im.batch.Rows):
		return im.broken(&f, fmt.Sprintf("comes with %d of %d entries of batch %d", len(im.batch.Rows), im.total, im.number))
	case int(f.Index) < len(im.batch.Rows):
		return nil // sent twice
	}
	// The record's memory is the reader's.
	if err := f.Decode(bytes.Clone(value)); err != nil {
		return err
	}
	if err := im.group(ctx, &f); err != nil {
		return err
	}
	if len(im.batch.Rows) < im.total {
		return nil
	}
	return im.commit(ctx)
}

// broken is the error of a frame that is not the next one.
func (im *importer) broken(f *chain.Frame, why string) error {
	err := ErrMissingRange
	if im.last == im.restored && len(im.batch.Rows) == 0 {
		err = errNoTail
	}
	return fmt.Errorf("%w: partition %d: batch %d index %d (tenant %s, entry %d) %s; imported is up to batch %d",
		err, im.partition, f.Batch, f.Index, f.Tenant, f.FirstSeq, why, im.last)
}

// skipTo commits the batches before the given one that made no entry and so have
// no frame: duplicates, and control records for all.
func (im *importer) skipTo(ctx context.Context, number int64) error {
	for im.last+1 < number {
		b := Batch{Topic: im.topic, Partition: im.partition, Epoch: im.epoch, Number: im.last + 1, FirstOffset: im.next, NextOffset: im.next, Published: im.last + 1}
		if err := im.w.store.Commit(ctx, &b); err != nil {
			return fmt.Errorf("import batch %d: %w", b.Number, err)
		}
		im.last++
	}
	return nil
}

func (im *importer) begin(f *chain.Frame) {
	im.number, im.total = f.Batch, int(f.Total)
	im.batch = Batch{Topic: im.topic, Partition: im.partition, Epoch: im.epoch, Number: f.Batch, Published: f.Batch, FirstOffset: im.next, NextOffset: im.next}
	clear(im.records)
}

// group adds the entries of a frame to the batch.
func (im *importer) group(ctx context.Context, f *chain.Frame) error {
	h, err := im.headOf(ctx, f.Tenant)
	if err != nil {
		return err
	}
	if f.FirstSeq != h.head.Seq+1 {
		return im.broken(f, fmt.Sprintf("does not follow entry %d", h.head.Seq))
	}
	n := len(im.batch.Groups)
	if n == 0 || im.batch.Groups[n-1].After.Tenant != f.Tenant {
		im.batch.Groups = append(im.batch.Groups, Group{Before: h.head, New: !h.stored, First: len(im.batch.Rows)})
		n++
	}
	for i := range f.Entries {
		if err := im.entryOf(h, f.Tenant, &f.Entries[i]); err != nil {
			return err
		}
	}
	h.exists, h.stored = true, true
	g := &im.batch.Groups[n-1]
	g.After, g.Count = h.head, len(im.batch.Rows)-g.First
	return nil
}

func (im *importer) headOf(ctx context.Context, id string) (*importHead, error) {
	if h, ok := im.heads[id]; ok {
		return h, nil
	}
	if !tenant.ValidID(id) && tenant.ID(id) != tenant.System(im.partition) || tenant.ID(id).Partition(im.topic.Partitions) != im.partition {
		return nil, fmt.Errorf("%w: tenant %q is not of partition %d", ErrForked, id, im.partition)
	}
	heads, err := im.w.store.Heads(ctx, []string{id})
	if err != nil {
		return nil, fmt.Errorf("read head: %w", err)
	}
	id = string([]byte(id))
	h := &importHead{head: Head{Tenant: id, Chain: chain.Genesis(id)}}
	switch {
	case len(heads) > 0:
		*h = importHead{head: heads[0], exists: true, stored: true}
	case id == string(tenant.System(im.partition)):
		h.head.KeyEpoch = 1
	}
	h.number = uint32(len(im.heads))
	im.heads[id] = h
	return h, nil
}

// entryOf checks an entry against its head and moves the head.
func (im *importer) entryOf(h *importHead, id string, s *chain.Sealed) error {
	e, head := &im.entry, &h.head
	fault := func(format string, args ...any) error {
		return fmt.Errorf("%w: tenant %s entry %d: "+format, append([]any{ErrForked, id, head.Seq + 1}, args...)...)
	}
	switch err := e.Decode(s.Canonical); {
	case errors.Is(err, chain.ErrVersion):
		return fmt.Errorf("%w: tenant %s entry %d: %w", ErrRuleVersion, id, head.Seq+1, err)
	case err != nil:
		return fault("%w", err)
	case e.Seq != head.Seq+1 || e.Event.Tenant != id:
		return fault("its bytes are of entry %d of tenant %s", e.Seq, e.Event.Tenant)
	case e.Position.TopicID != im.topic.ID || e.Position.Partition != im.partition:
		return fault("its record is of topic %x partition %d", e.Position.TopicID, e.Position.Partition)
	}
	leaf := im.hasher.Leaf(s.Canonical)
	if link := im.hasher.Next(&head.Chain, &leaf); link != s.Chain {
		return fault("its chain hash does not follow from the entry before")
	}
	epoch := head.KeyEpoch
	if e.Kind == chain.Control && e.ControlKind == event.ControlKeyEpoch {
		if epoch++; e.ControlVersion != strconv.FormatUint(uint64(epoch), 10) {
			return fault("it brings key epoch %q after %d", e.ControlVersion, head.KeyEpoch)
		}
	}
	if epoch == 0 || s.Epoch != epoch {
		return fault("its key epoch is %d, in force is %d", s.Epoch, epoch)
	}
	if h.mac == nil || h.mac.Epoch() != epoch {
		key, err := im.w.keys.MACKey(tenant.ID(id), epoch)
		if err != nil {
			return fmt.Errorf("MAC key of tenant %s epoch %d: %w", id, epoch, err)
		}
		h.mac = chain.NewMACKey(key, epoch)
	}
	if mac := h.mac.MAC(e.Seq, &s.Chain); !hmac.Equal(mac[:], s.MAC[:]) {
		return fault("its MAC is not of the tenant's key")
	}
	if named := e.Kind == chain.Control && e.ControlKind == event.ControlPriceBook; !named && e.Position.Offset < im.batch.FirstOffset {
		return fault("its record has offset %d, and the batch before ends before %d", e.Position.Offset, im.batch.FirstOffset)
	}
	head.Seq, head.Chain, head.KeyEpoch = e.Seq, s.Chain, epoch
	head.ReceivedAt = max(head.ReceivedAt, e.Event.ReceivedAt)
	im.place(head, s)
	return nil
}

// place adds the checked entry to the batch, and what it says of its record.
func (im *importer) place(head *Head, s *chain.Sealed) {
	e, b := &im.entry, &im.batch
	if e.Kind == chain.Control && e.ControlKind == event.ControlPriceBook {
		head.PriceBook = e.ControlHash
		im.books.name(e.Position.Offset, e.ControlHash, e.ControlVersion)
	} else {
		b.NextOffset = max(b.NextOffset, e.Position.Offset+1)
		r := importRecord{kind: e.Kind}
		if e.Kind == chain.Usage {
			r.pseudonym, r.receivedAt = e.Event.UserPseudonym, e.Event.ReceivedAt
		}
		im.records[e.Position.Offset] = r
	}
	switch {
	case e.Kind == chain.Usage || e.Kind == chain.Correction:
		im.books.used(e.Position.Offset)
	case e.Kind == chain.Rejected && e.RejectReason == chain.RejectConflict:
		countImported(b, head.Tenant, e.Event.ProducerID).Conflicts++
	case e.Kind == chain.Rejected:
		countImported(b, head.Tenant, "").Rejected++
	}
	b.Rows = append(b.Rows, Row{
		Sealed: *s, Seq: e.Seq, Kind: e.Kind, OccurredAt: e.Event.OccurredAt, Priced: e.Priced, Cost: e.Cost,
		Key: e.Key, Content: Content(e.Event.ContentMAC[:len(Content{})]), Corrects: e.Corrected.Seq,
	})
}

// commit writes the batch, with what `events` still says of its records.
func (im *importer) commit(ctx context.Context) error {
	b := &im.batch
	if err := im.fromEvents(ctx); err != nil {
		return err
	}
	if err := im.books.known(); err != nil {
		return err
	}
	if err := im.w.store.Commit(ctx, b); err != nil {
		return fmt.Errorf("import batch %d: %w", b.Number, err)
	}
	im.last, im.next = b.Number, b.NextOffset
	im.rec.committed(b)
	im.w.stats.partition(im.partition).committed(b)
	im.w.stats.partition(im.partition).published(b)
	im.batch = Batch{}
	return nil
}

// countImported is the counter row of a tenant's producer in the batch.
func countImported(b *Batch, id, producer string) *CounterRow {
	for i := range b.Counts {
		if b.Counts[i].Tenant == id && b.Counts[i].ProducerID == producer {
			return &b.Counts[i]
		}
	}
	b.Counts = append(b.Counts, CounterRow{Tenant: id, ProducerID: string([]byte(producer))})
	return &b.Counts[len(b.Counts)-1]
}
