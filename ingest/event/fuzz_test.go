package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// mustBeFieldError: every error of this package names a field and a rule, in
// text that may be shown.
func mustBeFieldError(t *testing.T, err error) {
	t.Helper()
	var fe *event.FieldError
	if !errors.As(err, &fe) || fe.Field == "" || fe.Rule == "" || !utf8.ValidString(fe.Error()) || len(fe.Error()) > 300 {
		t.Fatalf("%#v", err)
	}
}

func FuzzDecodeProto(f *testing.F) {
	e := full(f)
	f.Add(e.AppendProducer(nil))
	e.ReceivedAt, e.HasContentMAC = 1, true
	f.Add(e.AppendLog(nil))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0xba, 0x02, 0x00, 0xba, 0x02, 0x04, 0x0a, 0x00, 0x12, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, mode := range []event.Mode{event.Strict, event.Lenient, event.Log} {
			var e event.Event
			if err := e.DecodeProto(b, mode); err != nil {
				mustBeFieldError(t, err)
				continue
			}
			log := mode == event.Log
			if err := e.Validate(log); err != nil {
				mustBeFieldError(t, err)
				continue
			}
			// The generated code reads the same event from the same bytes.
			var m tallystickv1.UsageEvent
			if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &m); err != nil {
				t.Fatalf("mode %d: taken here, refused by protobuf: %v", mode, err)
			}
			if want := toMessage(&e); !proto.Equal(dropEmpty(&m), want) {
				t.Fatalf("mode %d\ngot  %v\nwant %v", mode, want, &m)
			}
			again := e.AppendProducer(nil)
			if log {
				again = e.AppendLog(nil)
			}
			var back event.Event
			if err := back.DecodeProto(again, mode); err != nil {
				t.Fatalf("mode %d: does not read what it wrote: %v", mode, err)
			}
			mustEqual(t, &back, &e)
		}
		event.PeekID(b)
	})
}

// dropEmpty takes sub-messages out that say nothing, which the table does not
// tell from missing ones.
func dropEmpty(m *tallystickv1.UsageEvent) *tallystickv1.UsageEvent {
	if proto.Equal(m.Tokens, &tallystickv1.TokenCounts{}) {
		m.Tokens = nil
	}
	return m
}

func FuzzSplitRecord(f *testing.F) {
	e := full(f)
	f.Add(event.AppendUsageRecord(nil, &e))
	f.Add(event.AppendControlRecord(nil, &event.Control{Kind: event.ControlPriceBook, Version: "1", Content: []byte("x"), IssuedAt: 1}))
	f.Add(event.AppendCountersRecord(nil, &event.Counters{Tenant: "acme", ProducerID: "p", Accepted: 1}))
	f.Add([]byte{0x0a, 0x00, 0x0a, 0x00})
	f.Add(event.AppendUsageRecordOf(nil, &e, nil, event.Span{}, []byte("sealed")))
	f.Add([]byte{0x12, 0x00, 0x22, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := event.SplitRecord(b)
		if err != nil {
			if !errors.Is(err, event.ErrNotARecord) {
				t.Fatal(err)
			}
			return
		}
		if rec.Kind < event.UsageRecord || rec.Kind > event.RerateRecord || len(rec.Body)+len(rec.Subject) > len(b) {
			t.Fatalf("kind %d, %d and %d of %d bytes", rec.Kind, len(rec.Body), len(rec.Subject), len(b))
		}
		if len(rec.Subject) > event.MaxSealedSubject || len(rec.Subject) > 0 && rec.Kind != event.UsageRecord {
			t.Fatalf("a subject of %d bytes in a record of kind %d", len(rec.Subject), rec.Kind)
		}
		var m tallystickv1.LogRecord // the generated code reads the same envelope
		if err := proto.Unmarshal(b, &m); err == nil && !bytes.Equal(m.SealedSubject, rec.Subject) {
			t.Fatalf("subject %x, want %x", rec.Subject, m.SealedSubject)
		}
	})
}

func FuzzDecodeTagPairs(f *testing.F) {
	e := full(f)
	f.Add(event.AppendTagPairs(nil, e.Tags))
	f.Add([]byte{1, 'k', 0, 0, 0})
	f.Add([]byte{0x80, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		tags, err := event.DecodeTagPairs(b)
		if err != nil {
			mustBeFieldError(t, err)
			return
		}
		if len(tags) == 0 || len(tags) > event.MaxTags {
			t.Fatalf("%d tags", len(tags))
		}
		again, err := event.DecodeTagPairs(event.AppendTagPairs(nil, tags))
		if err != nil || !slices.Equal(again, tags) {
			t.Fatalf("%v became %v, %v", tags, again, err)
		}
	})
}

func FuzzDecodeControl(f *testing.F) {
	rec, err := event.SplitRecord(event.AppendControlRecord(nil, &event.Control{
		Kind: event.ControlKeyEpoch, Tenant: "acme", Version: "2", Content: []byte("content"), IssuedAt: 1_795_345_198_000_000_000,
	}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec.Body)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := event.DecodeControl(b)
		if err != nil {
			mustBeFieldError(t, err)
			return
		}
		again, err := event.SplitRecord(event.AppendControlRecord(nil, &c))
		if err != nil {
			t.Fatal(err)
		}
		d, err := event.DecodeControl(again.Body)
		if err != nil || d.Kind != c.Kind || d.Tenant != c.Tenant || d.Version != c.Version || !bytes.Equal(d.Content, c.Content) || d.IssuedAt != c.IssuedAt {
			t.Fatalf("%+v became %+v, %v", c, d, err)
		}
	})
}

func FuzzDecodeCounters(f *testing.F) {
	rec, err := event.SplitRecord(event.AppendCountersRecord(nil, &event.Counters{
		Tenant: "acme", ProducerID: "p", EdgeID: "e", EdgeEpoch: 7, Accepted: 3, Refused: 2,
		Reasons: []event.ReasonCount{{Reason: "required.model", N: 2}}, CountedAt: 1_795_345_198_000_000_000,
	}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec.Body)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := event.DecodeCounters(b)
		if err != nil {
			mustBeFieldError(t, err)
			return
		}
		var m tallystickv1.ProducerCounters
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatalf("taken here, refused by protobuf: %v", err)
		}
		if m.TenantId != c.Tenant || m.ProducerId != c.ProducerID || m.EdgeId != c.EdgeID || m.EdgeEpoch != c.EdgeEpoch ||
			m.Accepted != c.Accepted || m.Refused != c.Refused || len(m.RefusedByReason) > len(c.Reasons) {
			t.Fatalf("got %+v, want %v", c, &m)
		}
	})
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add(fullJSON(f))
	for _, s := range []string{
		`{"event_id":"a","tags":{"k":"\u00e9\ud83d\ude00"},"tokens":{"input":"7"}}`, `{"x":[1,{"y":null}],"x":-1.5e3}`,
		`{"occurred_at":"2026-11-22T11:00:00.5+01:00","team":null}`, `{"team":"\ud83d"}`, `[]`, `{"streamed":true,"http_status":01}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, mode := range []event.Mode{event.Strict, event.Lenient} {
			var e event.Event
			err := e.DecodeJSON(bytes.Clone(in), mode)
			if err == nil && !json.Valid(in) {
				t.Fatalf("mode %d: taken, but it is no JSON", mode)
			}
			if err != nil {
				mustBeFieldError(t, err)
				continue
			}
			agreesWithEncodingJSON(t, in, &e)
			if e.Validate(false) != nil {
				continue
			}
			var back event.Event
			if err := back.DecodeProto(e.AppendProducer(nil), event.Strict); err != nil {
				t.Fatalf("valid from JSON, but its protobuf is refused: %v", err)
			}
			mustEqual(t, &back, &e)
		}
	})
}

// agreesWithEncodingJSON decodes with the standard library and compares field
// by field.
func agreesWithEncodingJSON(t *testing.T, in []byte, e *event.Event) {
	dec := json.NewDecoder(bytes.NewReader(in))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		t.Fatal(err)
	}
	for i := range event.Fields {
		f := &event.Fields[i]
		v := m[f.Name]
		same := true
		switch f.Kind {
		case event.String:
			want, _ := v.(string)
			same = *e.StringPtr(f.Num) == want
		case event.Int:
			same = *e.IntPtr(f.Num) == integer(t, v)
		case event.Bool:
			want, _ := v.(bool)
			same = *e.BoolPtr(f.Num) == want
		case event.Time:
			same = *e.TimePtr(f.Num) == instant(t, v)
		case event.TokenMap:
			counts, _ := v.(map[string]any)
			for c := range tokens.NumClasses {
				same = same && e.Tokens[c] == integer(t, counts[c.String()])
			}
		case event.TagMap:
			pairs, _ := v.(map[string]any)
			same = len(pairs) == len(e.Tags)
			for _, tag := range e.Tags {
				same = same && pairs[tag.Key] == tag.Value
			}
		}
		if !same {
			t.Fatalf("%s differs from what encoding/json reads: %v", f.Name, v)
		}
	}
}

func integer(t *testing.T, v any) int64 {
	var n json.Number
	switch v := v.(type) {
	case nil:
		return 0
	case json.Number:
		n = v
	case string:
		n = json.Number(v)
	}
	i, err := n.Int64()
	if err != nil {
		t.Fatalf("taken as an integer: %v", v)
	}
	return i
}

func instant(t *testing.T, v any) int64 {
	if v == nil {
		return 0
	}
	s, _ := v.(string)
	at, err := time.Parse(time.RFC3339Nano, string(bytes.ToUpper([]byte(s))))
	if err != nil {
		t.Fatalf("taken as a time: %v", err)
	}
	return at.UnixNano()
}

func FuzzJSONBatch(f *testing.F) {
	f.Add([]byte(`[{"event_id":"a"},{"event_id":"b"}]`))
	f.Add([]byte(`{"events":[{"event_id":"a"},7]}`))
	f.Add([]byte(`{"event_id":"a"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		j := event.NewJSONBatch(bytes.Clone(in))
		var e event.Event
		n := 0
		for {
			ok, _, err := j.Next(&e, event.Lenient)
			if err != nil {
				mustBeFieldError(t, err)
				return
			}
			if !ok {
				break
			}
			n++
		}
		if !json.Valid(in) {
			t.Fatalf("%d events from what is no JSON", n)
		}
		if want := countEvents(in); n != want {
			t.Fatalf("%d events, want %d", n, want)
		}
	})
}

func countEvents(in []byte) int {
	var list []json.RawMessage
	if json.Unmarshal(in, &list) == nil {
		return len(list)
	}
	var wrapped map[string]json.RawMessage
	if json.Unmarshal(in, &wrapped) == nil && len(wrapped) == 1 && bytes.HasPrefix(bytes.TrimLeft(bytes.TrimLeft(in, " \t\r\n")[1:], " \t\r\n"), []byte(`"events"`)) {
		if json.Unmarshal(wrapped["events"], &list) == nil {
			return len(list)
		}
	}
	return 1
}

func FuzzNextProto(f *testing.F) {
	e := full(f)
	m := &tallystickv1.EventBatch{Events: []*tallystickv1.UsageEvent{toMessage(&e), {}}}
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, mode := range []event.Mode{event.Strict, event.Lenient} {
			rest, n := b, 0
			for {
				_, next, ok, err := event.NextProto(rest, mode)
				if err != nil {
					mustBeFieldError(t, err)
					break
				}
				if !ok {
					break
				}
				if len(next) >= len(rest) {
					t.Fatal("the walk does not advance")
				}
				rest = next
				n++
			}
		}
	})
}
