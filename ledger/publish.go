package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
)

// maxFrameBytes bounds a record of the topic `entries`, far below what a broker
// takes by default (1 MiB).
const maxFrameBytes = 256 << 10

// frameBuffer is the memory of one publication, reused.
type frameBuffer struct {
	arena []byte
	recs  []kafka.Record
}

// publish writes a committed batch to `entries`, and its undecodable records'
// notices to `deadletter`, and returns when Kafka has acknowledged all of it.
// Frames of one partition stay in order: the producer is idempotent, and the
// next batch is not sent before this one is acknowledged.
func (w *Writer) publish(ctx context.Context, b *Batch, f *frameBuffer) error {
	f.arena, f.recs = f.arena[:0], f.recs[:0]
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
	for i := 0; i < g.Count; {
		from := len(f.arena)
		var w chain.FrameWriter
		w.Begin(f.arena, &chain.Frame{
			Tenant: g.After.Tenant, Partition: b.Partition, Batch: b.Number,
			Index: int32(g.First + i), Total: int32(len(b.Rows)), FirstSeq: b.Rows[g.First+i].Seq,
		})
		for ; i < g.Count && w.Size()-from < maxFrameBytes; i++ {
			w.Add(&b.Rows[g.First+i].Sealed)
		}
		f.arena = w.Finish()
		f.recs = append(f.recs, kafka.Record{
			Topic: topic, Partition: b.Partition, Key: []byte(g.After.Tenant),
			Value: f.arena[from:len(f.arena):len(f.arena)], TimestampMs: now,
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
