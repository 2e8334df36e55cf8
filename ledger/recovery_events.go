package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
)

// eventsRange reads what `events` still holds, in order of offset, beside the
// import. It never waits for a record that is not there.
type eventsRange struct {
	src        Source
	topic      Topic
	first, end int64 // what the partition holds
	reader     Reader
	recs       []kafka.Record // read and not passed on
}

// read passes the records in [from, to) that the partition holds to fn. Ranges
// must come in order. The records' memory is the reader's.
func (r *eventsRange) read(ctx context.Context, from, to int64, fn func(*kafka.Record) error) error {
	from, to = max(from, r.first), min(to, r.end)
	if from >= to {
		return nil
	}
	if r.reader == nil {
		reader, err := r.src.Open(ctx, kafka.Position{Offset: from, Topic: r.topic.ID})
		if err != nil {
			return fmt.Errorf("open partition: %w", err)
		}
		r.reader = reader
	}
	for {
		if len(r.recs) == 0 {
			recs, err := r.reader.Next(ctx)
			if err != nil {
				return err
			}
			r.recs = recs
			continue
		}
		rec := &r.recs[0]
		if rec.Offset >= to {
			return nil
		}
		r.recs = r.recs[1:]
		if rec.Offset >= from {
			if err := fn(rec); err != nil {
				return err
			}
		}
		if rec.Offset == to-1 {
			return nil
		}
	}
}

func (r *eventsRange) close() {
	if r.reader != nil {
		r.reader.Close()
	}
}

// fromEvents adds what the records of the batch say and no entry holds.
func (im *importer) fromEvents(ctx context.Context) error {
	b := &im.batch
	for offset := b.FirstOffset; offset < min(b.NextOffset, im.events.first); offset++ {
		if _, ok := im.records[offset]; !ok {
			im.books.lost(offset)
		}
	}
	err := im.events.read(ctx, b.FirstOffset, b.NextOffset, func(r *kafka.Record) error {
		rec, err := event.SplitRecord(r.Value)
		if err != nil {
			return nil // its entry is a rejection
		}
		entry, ledgered := im.records[r.Offset]
		switch {
		case rec.Kind == event.ControlRecord && !ledgered:
			im.control(r.Offset, rec.Body)
		case !ledgered:
			return im.duplicate(ctx, &rec)
		case entry.kind == chain.Usage && len(rec.Subject) > 0 && isPseudonym(entry.pseudonym):
			return im.subject(ctx, r.Key, &entry, rec.Subject)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("events of batch %d: %w", b.Number, err)
	}
	slices.SortFunc(b.Groups, func(x, y Group) int { return cmp.Compare(x.After.Tenant, y.After.Tenant) })
	return nil
}

// subject adds the sealed identity of a person, once a day as the core does: the
// first one is kept.
func (im *importer) subject(ctx context.Context, key []byte, entry *importRecord, sealed []byte) error {
	h, err := im.headOf(ctx, string(key))
	if err != nil {
		return err
	}
	k := subjectKey{tenant: h.number}
	copy(k.pseudonym[:], entry.pseudonym)
	day := int32(entry.receivedAt / int64(time.Second) / secondsPerDay)
	if im.subjects.told(k, day) {
		return nil
	}
	im.subjects.remember(k, day)
	im.batch.Subjects = append(im.batch.Subjects, SubjectRow{
		Tenant: h.head.Tenant, Pseudonym: strings.Clone(entry.pseudonym), Identity: bytes.Clone(sealed), Day: day,
	})
	return nil
}

// control notes a control record for all that is in force: a refused one has an
// entry, and a key epoch that was said twice is nobody's.
func (im *importer) control(offset int64, body []byte) {
	ctl, err := event.DecodeControl(body)
	if err != nil || ctl.Tenant != "" {
		return
	}
	row := ControlRow{
		Offset: offset, Kind: strings.Clone(ctl.Kind), Version: strings.Clone(ctl.Version),
		Hash: chain.Hash(sha256.Sum256(ctl.Content)), Content: bytes.Clone(ctl.Content), IssuedAt: ctl.IssuedAt,
	}
	im.batch.Controls = append(im.batch.Controls, row)
	im.books.note(&row)
}

// duplicate counts a record that has no entry.
func (im *importer) duplicate(ctx context.Context, rec *event.Record) error {
	id, producer := "", ""
	if rec.Kind == event.RerateRecord {
		r, err := event.DecodeRerate(rec.Body)
		if err != nil {
			return nil
		}
		id = r.Tenant
	} else {
		var ev event.Event
		if ev.DecodeProto(rec.Body, event.Log) != nil {
			return nil
		}
		id, producer = ev.Tenant, ev.ProducerID
	}
	h, err := im.headOf(ctx, id)
	if err != nil || !h.exists {
		return err
	}
	countImported(&im.batch, h.head.Tenant, producer).Duplicates++
	groups := im.batch.Groups
	if !slices.ContainsFunc(groups, func(g Group) bool { return g.After.Tenant == id }) {
		im.batch.Groups = append(groups, Group{Before: h.head, After: h.head})
	}
	return nil
}

// importBooks says whether every price book that the imported entries name is at
// hand, and whether one may have been lost that nobody names.
type importBooks struct {
	at       map[int64]chain.Hash // the books at hand, by offset
	named    []ControlRow         // by entries of the batch in hand
	lastUsed int64                // offset of the newest entry that was priced, -1
	lastLost int64                // newest lost offset that may have been a control record, -1
}

func newImportBooks(controls []ControlRow) importBooks {
	b := importBooks{at: make(map[int64]chain.Hash), lastUsed: -1, lastLost: -1}
	for i := range controls {
		b.note(&controls[i])
	}
	return b
}

func (b *importBooks) note(row *ControlRow) {
	if row.Kind == event.ControlPriceBook {
		b.at[row.Offset] = row.Hash
	}
}

func (b *importBooks) name(offset int64, hash chain.Hash, version string) {
	b.named = append(b.named, ControlRow{Offset: offset, Hash: hash, Version: strings.Clone(version)})
}

func (b *importBooks) used(offset int64) { b.lastUsed = max(b.lastUsed, offset) }
func (b *importBooks) lost(offset int64) { b.lastLost = max(b.lastLost, offset) }

// known holds what the batch's entries name against what is at hand.
func (b *importBooks) known() error {
	for i := range b.named {
		n := &b.named[i]
		if b.at[n.Offset] != n.Hash {
			return fmt.Errorf("%w: price book %q (%x) at offset %d, which entries name, is gone from events and not in the backup",
				ErrMissingRange, n.Version, n.Hash, n.Offset)
		}
	}
	b.named = b.named[:0]
	return nil
}

// check is asked at the end. A lost record without an entry may have been a price
// book, unless a later entry was priced: it would have named it.
func (b *importBooks) check() error {
	if b.lastLost > b.lastUsed {
		return fmt.Errorf("%w: the record at offset %d is gone from events and has no entry: it may have been a price book", ErrMissingRange, b.lastLost)
	}
	return nil
}
