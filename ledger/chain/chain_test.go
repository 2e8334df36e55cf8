package chain

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// drawEntry draws an entry of any kind with any subset of its fields.
func drawEntry(t *rapid.T) *Entry {
	text := rapid.StringN(0, 12, 40)
	n := rapid.Int64Range(0, 1<<62)
	e := &Entry{
		Kind:     Kind(rapid.IntRange(1, int(DeclaredLoss)).Draw(t, "kind")),
		Seq:      rapid.Int64Range(1, 1<<62).Draw(t, "seq"),
		Position: Position{Partition: int32(rapid.IntRange(0, 1<<20).Draw(t, "partition")), Offset: n.Draw(t, "offset")},
	}
	copy(e.Position.TopicID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "topic"))
	copy(e.Key[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key"))
	for i := range event.Fields {
		f := &event.Fields[i]
		switch f.Kind {
		case event.String:
			*e.Event.StringPtr(f.Num) = text.Draw(t, f.Name)
		case event.Int:
			*e.Event.IntPtr(f.Num) = n.Draw(t, f.Name)
		case event.Bool:
			*e.Event.BoolPtr(f.Num) = rapid.Bool().Draw(t, f.Name)
		case event.Time:
			*e.Event.TimePtr(f.Num) = n.Draw(t, f.Name)
		case event.Bytes:
			e.Event.HasContentMAC = rapid.Bool().Draw(t, f.Name)
			if e.Event.HasContentMAC {
				e.Event.ContentMAC[0] = rapid.Byte().Draw(t, "mac")
			}
		case event.Blob:
			e.Event.SealedTags = rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 1, 300)).Draw(t, f.Name)
		case event.TokenMap:
			for c := range e.Event.Tokens {
				e.Event.Tokens[c] = n.Draw(t, "tokens")
			}
		case event.TagMap:
			for k, v := range rapid.MapOfN(rapid.StringN(1, 8, 20), text, 0, 4).Draw(t, "tags") {
				if err := e.Event.AddTag(k, v); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Event.SortTags(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var h Hash
	copy(h[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
	switch e.Kind {
	case Usage, Correction:
		e.Priced = rapid.Bool().Draw(t, "priced")
		if e.Priced {
			e.Cost = money.Pico(rapid.Int64().Draw(t, "cost"))
		}
		e.PriceBook, e.PriceRow, e.UnpricedReason, e.PricingVersion = h, text.Draw(t, "row"), text.Draw(t, "why"), 1
		if e.Kind == Correction {
			e.Corrected = drawCorrected(t)
		}
	case Rejected:
		e.RejectReason, e.RejectField, e.BodyHash, e.BodySize = text.Draw(t, "reason"), text.Draw(t, "field"), h, n.Draw(t, "size")
	case Control:
		e.ControlKind, e.ControlVersion, e.ControlHash = text.Draw(t, "ckind"), text.Draw(t, "cver"), h
	case Counters:
		e.EdgeID, e.EdgeEpoch, e.Accepted, e.Refused = text.Draw(t, "edge"), n.Draw(t, "epoch"), n.Draw(t, "acc"), n.Draw(t, "ref")
		if rapid.Bool().Draw(t, "reasons") {
			e.Reasons = []event.ReasonCount{{Reason: "a", N: n.Draw(t, "ra")}, {Reason: "b.c", N: n.Draw(t, "rb")}}
		}
	}
	return e
}

func TestEntryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t)
		b := e.Append(nil)
		var got Entry
		if err := got.Decode(b); err != nil {
			t.Fatalf("decode: %v\n% x", err, b)
		}
		if again := got.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("encoding is not stable\n% x\n% x", b, again)
		}
		if len(got.Event.Tags) == 0 {
			got.Event.Tags = nil
		}
		if len(e.Event.Tags) == 0 {
			e.Event.Tags = nil
		}
		if !reflect.DeepEqual(&got, e) {
			t.Fatalf("decoded entry differs\n got %+v\nwant %+v", &got, e)
		}
	})
}

// Whatever bytes Decode accepts must be the one encoding of what it read.
func FuzzDecode(f *testing.F) {
	e := Entry{Kind: Usage, Seq: 1, Priced: true, Cost: 5, PriceRow: "x"}
	e.Event.Tenant, e.Event.Tokens[tokens.Output] = "acme", 7
	e.Event.Tags = []event.Tag{{Key: "a", Value: "b"}}
	f.Add(e.Append(nil))
	e = Entry{Kind: Counters, Seq: 2, Reasons: []event.ReasonCount{{Reason: "x", N: 3}}}
	f.Add(e.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if err := e.Decode(b); err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) {
				t.Fatalf("unclassified error %v", err)
			}
			return
		}
		if again := e.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("accepted bytes that are not canonical\n% x\n% x", b, again)
		}
	})
}

// Flipping any bit of an entry must change the leaf, the chain and the MAC.
func TestEveryBitCounts(t *testing.T) {
	e := Entry{Kind: Usage, Seq: 3, Priced: true, Cost: -1}
	e.Event.Tenant, e.Event.ID = "acme", "e-1"
	b := e.Append(nil)
	h, prev := NewHasher(), Genesis("acme")
	key := NewMACKey([32]byte{1}, 1)
	leaf := h.Leaf(b)
	chain := h.Next(&prev, &leaf)
	mac := key.MAC(3, &chain)
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			l := h.Leaf(b)
			c := h.Next(&prev, &l)
			if l == leaf || c == chain || key.MAC(3, &c) == mac {
				t.Fatalf("bit %d of byte %d does not count", bit, i)
			}
			b[i] ^= 1 << bit
		}
	}
	if key.MAC(4, &chain) == mac || NewMACKey([32]byte{1}, 2).MAC(3, &chain) == mac {
		t.Error("the MAC does not cover seq and epoch")
	}
}

// The reused hash states must give what the formulas say, written out plainly.
func TestFormulas(t *testing.T) {
	body := []byte("canonical")
	h := NewHasher()
	leaf := h.Leaf(body)
	if want := sha256.Sum256(append([]byte{0}, body...)); leaf != want {
		t.Errorf("leaf = %x, want %x", leaf, want)
	}
	prev := Genesis("acme")
	if want := sha256.Sum256([]byte("tallystick/genesis/v1\x00acme")); prev != want {
		t.Errorf("genesis = %x, want %x", prev, want)
	}
	chain := h.Next(&prev, &leaf)
	plain := append([]byte("tallystick/chain/v1\x00"), prev[:]...)
	if want := sha256.Sum256(append(plain, leaf[:]...)); chain != want {
		t.Errorf("chain = %x, want %x", chain, want)
	}
	key := [32]byte{7, 7}
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("tallystick/mac/v1\x00"))
	m.Write(binary.BigEndian.AppendUint32(nil, 9))
	m.Write(binary.BigEndian.AppendUint64(nil, 11))
	m.Write(chain[:])
	mk := NewMACKey(key, 9)
	for range 2 { // twice: the state must be reset
		if got := mk.MAC(11, &chain); !bytes.Equal(got[:], m.Sum(nil)) {
			t.Errorf("mac = %x, want %x", got, m.Sum(nil))
		}
	}
}

func TestFrameRoundTrip(t *testing.T) {
	f := Frame{Tenant: "acme", Partition: 3, Batch: 9, Index: 2, Total: 4, FirstSeq: 17}
	want := []Sealed{{Canonical: []byte("one"), Chain: Hash{1}, MAC: Hash{2}, Epoch: 3}, {Canonical: []byte("two"), Chain: Hash{4}}}
	var w FrameWriter
	w.Begin(nil, &f)
	for i := range want {
		w.Add(&want[i])
	}
	b := w.Finish()
	var got Frame
	if err := got.Decode(b); err != nil {
		t.Fatal(err)
	}
	f.Entries = want
	if !reflect.DeepEqual(got, f) {
		t.Errorf("got %+v\nwant %+v", got, f)
	}
	for n := range b {
		if err := got.Decode(b[:n]); !errors.Is(err, ErrFrame) {
			t.Fatalf("a frame cut at %d decodes: %v", n, err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	e := Entry{Kind: Usage, Seq: 1, Priced: true, Cost: 123456, PriceRow: "openai/gpt-4o@2024-08-06", PriceBook: Hash{1}, PricingVersion: 1}
	e.Event = event.Event{ID: "0192f0c1-2345-7abc-8def-0123456789ab", Tenant: "acme", OccurredAt: 1, ReceivedAt: 2, Provider: "openai", Model: "gpt-4o", Status: "ok", ServiceTier: "standard", Team: "search", Service: "api", Environment: "prod", HasContentMAC: true}
	e.Event.Tokens[tokens.Input], e.Event.Tokens[tokens.Output] = 1234, 567
	buf, h, prev, key := make([]byte, 0, 1024), NewHasher(), Genesis("acme"), NewMACKey([32]byte{1}, 1)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.Append(buf[:0])
		leaf := h.Leaf(buf)
		prev = h.Next(&prev, &leaf)
		key.MAC(e.Seq, &prev)
	}
	b.ReportMetric(float64(len(buf)), "canonical-bytes")
}
