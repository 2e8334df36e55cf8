package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
)

// maxFrameBytes is when a record of the topic `entries` is full. With one more
// entry it is far below what a broker takes by default (1 MiB).
const maxFrameBytes = 120 << 10

// Sizes beside the canonical bytes: of a frame's header with its tenant, and of
// what an entry has in a frame.
const (
	frameHeaderBytes = 128
	frameEntryBytes  = 2*chain.HashSize + 4 + 3
)

// frameBuffer is the memory of one publication, reused.
type frameBuffer struct {
	arena arena.Arena
	recs  []kafka.Record
}

func (f *frameBuffer) reset() {
	f.arena.Reset()
	clear(f.recs)
	f.recs = f.recs[:0]
}

// publish writes a committed batch to `entries`, and its undecodable records'
// notices to `deadletter`, and returns when Kafka has acknowledged all of it.
// Frames of one partition stay in order: the producer is idempotent, and the
// next batch is not sent before this one is acknowledged.
func (w *Writer) publish(ctx context.Context, b *Batch, f *frameBuffer) error {
	f.reset()
	now := time.Now().UnixMilli() // the record's own time, for Kafka's retention
	for i := range b.Groups {
		f.addGroup(w.topics.Entries, b, &b.Groups[i], now)
	}
	if err := f.addDeadLetters(w.topics.DeadLetter, b, now); err != nil {
		return err
	}
	if len(f.recs) == 0 {
		return nil
	}
	return w.pub.ProduceBatch(ctx, f.recs, nil)
}

// addGroup cuts a tenant's entries into frames.
func (f *frameBuffer) addGroup(topic string, b *Batch, g *Group, now int64) {
	rows := b.Rows[g.First : g.First+g.Count]
	for i := 0; i < len(rows); {
		n, size := 0, frameHeaderBytes
		for ; i+n < len(rows) && size < maxFrameBytes; n++ {
			size += len(rows[i+n].Canonical) + frameEntryBytes
		}
		var w chain.FrameWriter
		w.Begin(f.arena.Open(size), &chain.Frame{
			Tenant: g.After.Tenant, Partition: b.Partition, Batch: b.Number,
			Index: int32(g.First + i), Total: int32(len(b.Rows)), FirstSeq: rows[i].Seq,
		})
		for ; n > 0; i, n = i+1, n-1 {
			w.Add(&rows[i].Sealed)
		}
		f.recs = append(f.recs, kafka.Record{
			Topic: topic, Partition: b.Partition, Key: []byte(g.After.Tenant), Value: f.arena.Close(w.Finish()), TimestampMs: now,
		})
	}
}

// deadLetter is the value of a record in `deadletter`: never a body.
type deadLetter struct {
	Tenant   string `json:"tenant_id"`
	Seq      int64  `json:"seq,string"`
	Position string `json:"position"`
	Reason   string `json:"reason"`
	Field    string `json:"field,omitempty"`
	Hash     string `json:"body_sha256"`
	Size     int64  `json:"body_bytes"`
}

func (f *frameBuffer) addDeadLetters(topic string, b *Batch, now int64) error {
	var e chain.Entry
	for i := range b.Rows {
		if b.Rows[i].Kind != chain.Rejected {
			continue
		}
		if err := e.Decode(b.Rows[i].Canonical); err != nil {
			return fmt.Errorf("decode our own entry %d: %w", b.Rows[i].Seq, err)
		}
		value, err := json.Marshal(deadLetter{
			Tenant: e.Event.Tenant, Seq: e.Seq,
			Position: fmt.Sprintf("%x/%d/%d", e.Position.TopicID, e.Position.Partition, e.Position.Offset),
			Reason:   e.RejectReason, Field: e.RejectField, Hash: fmt.Sprintf("%x", e.BodyHash), Size: e.BodySize,
		})
		if err != nil {
			return err
		}
		f.recs = append(f.recs, kafka.Record{
			Topic: topic, Partition: b.Partition, Key: []byte(e.Event.Tenant), Value: value, TimestampMs: now,
		})
	}
	return nil
}
