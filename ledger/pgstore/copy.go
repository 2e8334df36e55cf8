package pgstore

import (
	"encoding/binary"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

type (
	commandTag  = pgconn.CommandTag
	timestamptz = time.Time
)

// The COPY statements and the column order of the encoders below.
const (
	copyEntries = `copy ledger.entry_0 (tenant_id, seq, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac) from stdin binary`
	copyKeys    = `copy ledger.event_key_0 (tenant_id, key, content, seq) from stdin binary`
)

// copySignature starts a binary COPY: the signature, no flags, no extension
// (PostgreSQL documentation, COPY, "Binary Format").
const copySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// postgresEpoch is 2000-01-01 in unix microseconds, the zero of timestamptz.
const postgresEpoch = 946_684_800_000_000

// copyPiece is how much of a stream is encoded at a time.
const copyPiece = 60 << 10

// copyStream encodes the rows of a batch as a binary COPY while it is read, so
// that no commit holds its megabytes a second time.
type copyStream struct {
	batch *ledger.Batch
	row   func(b []byte, tenant string, r *ledger.Row) []byte
	group int
	next  int // row of the group
	ended bool
	buf   []byte
	off   int
}

// begin starts the stream of a batch.
func (s *copyStream) begin(b *ledger.Batch, row func([]byte, string, *ledger.Row) []byte) *copyStream {
	*s = copyStream{batch: b, row: row, buf: append(s.buf[:0], copySignature...)}
	return s
}

// Read implements io.Reader.
func (s *copyStream) Read(p []byte) (int, error) {
	if s.off == len(s.buf) {
		if s.ended {
			return 0, io.EOF
		}
		s.fill()
	}
	n := copy(p, s.buf[s.off:])
	s.off += n
	return n, nil
}

// fill encodes the next piece.
func (s *copyStream) fill() {
	s.buf, s.off = s.buf[:0], 0
	for len(s.buf) < copyPiece {
		if s.group == len(s.batch.Groups) {
			s.buf, s.ended = append(s.buf, 0xff, 0xff), true
			return
		}
		g := &s.batch.Groups[s.group]
		if s.next == g.Count {
			s.group, s.next = s.group+1, 0
			continue
		}
		s.buf = s.row(s.buf, g.After.Tenant, &s.batch.Rows[g.First+s.next])
		s.next++
	}
}

// appendUsageKey appends the key of what is deduplicated. Other entries are
// unique by their place in the log, which the fence keeps; were their keys here
// too, a producer could choose an id that takes the room of a rejection to come.
func appendUsageKey(b []byte, tenant string, r *ledger.Row) []byte {
	if r.Kind != chain.Usage && r.Kind != chain.Correction {
		return b
	}
	return appendKey(b, tenant, r)
}

func appendEntry(b []byte, tenant string, r *ledger.Row) []byte {
	b = binary.BigEndian.AppendUint16(b, 9)
	b = appendText(b, tenant)
	b = appendInt64(b, r.Seq)
	b = append(b, 0, 0, 0, 2, 0, byte(r.Kind))
	b = append(b, 0, 0, 0, 4)
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	if r.OccurredAt == 0 {
		b = appendNull(b)
	} else {
		b = appendInt64(b, floorMicros(r.OccurredAt)-postgresEpoch)
	}
	if r.Priced {
		b = r.Cost.AppendPgField(b)
	} else {
		b = appendNull(b)
	}
	b = appendBytes(b, r.Canonical)
	b = appendBytes(b, r.Chain[:])
	return appendBytes(b, r.MAC[:])
}

func appendKey(b []byte, tenant string, r *ledger.Row) []byte {
	b = binary.BigEndian.AppendUint16(b, 4)
	b = appendText(b, tenant)
	b = appendBytes(b, r.Key[:])
	b = appendBytes(b, r.Content[:])
	return appendInt64(b, r.Seq)
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func appendBytes(b, v []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}

func appendInt64(b []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 8), uint64(v))
}

func appendNull(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff) }

// floorMicros is how a projection shortens nanoseconds: towards the past.
func floorMicros(ns int64) int64 {
	us := ns / 1000
	if ns%1000 < 0 {
		us--
	}
	return us
}

func micros(ns int64) time.Time { return time.UnixMicro(floorMicros(ns)) }

// EncodeCopy is what Commit sends for the batch's entries and keys: two binary
// COPY streams in the column order of ledger.entry and ledger.event_key. The
// COPY baseline of the benchmark sends the very same bytes to plain tables.
func EncodeCopy(b *ledger.Batch) (entries, keys []byte) {
	var c copyStream
	entries, _ = io.ReadAll(c.begin(b, appendEntry)) // a copyStream gives no error
	keys, _ = io.ReadAll(c.begin(b, appendUsageKey))
	return entries, keys
}
