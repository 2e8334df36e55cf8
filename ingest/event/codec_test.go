package event_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// The table and the .proto file must say the same: numbers, names and kinds.
func TestTableIsTheProtoFile(t *testing.T) {
	fields := (&tallystickv1.UsageEvent{}).ProtoReflect().Descriptor().Fields()
	if fields.Len() != len(event.Fields) {
		t.Errorf("the table has %d fields, the message %d", len(event.Fields), fields.Len())
	}
	last := uint8(0)
	for _, f := range event.Fields {
		if f.Num <= last {
			t.Errorf("field %d (%s) does not ascend", f.Num, f.Name)
		}
		last = f.Num
		d := fields.ByNumber(protoreflect.FieldNumber(f.Num))
		if d == nil || string(d.Name()) != f.Name {
			t.Errorf("field %d is %q in the table and %v in the message", f.Num, f.Name, d)
			continue
		}
		if got := kindOf(d); got != f.Kind {
			t.Errorf("%s has kind %d in the table and %d in the message", f.Name, f.Kind, got)
		}
		if (f.Num >= 50) != f.Edge {
			t.Errorf("%s: numbers from 50 on are the edge's", f.Name)
		}
		var e event.Event
		if places := place(f.Kind == event.String, e.StringPtr(f.Num) != nil) && place(f.Kind == event.Int, e.IntPtr(f.Num) != nil) &&
			place(f.Kind == event.Bool, e.BoolPtr(f.Num) != nil) && place(f.Kind == event.Time, e.TimePtr(f.Num) != nil); !places {
			t.Errorf("%s has no place of its kind in Event", f.Name)
		}
	}
	for c := tokens.Class(0); c < tokens.NumClasses; c++ {
		d := (&tallystickv1.TokenCounts{}).ProtoReflect().Descriptor().Fields().ByNumber(protoreflect.FieldNumber(c + 1))
		if d == nil || string(d.Name()) != c.String() {
			t.Errorf("token class %v is %v in the message", c, d)
		}
	}
}

func place(want, have bool) bool { return want == have }

func kindOf(d protoreflect.FieldDescriptor) event.Kind {
	switch {
	case d.IsMap():
		return event.TagMap
	case d.Kind() == protoreflect.StringKind:
		return event.String
	case d.Kind() == protoreflect.Int64Kind:
		return event.Int
	case d.Kind() == protoreflect.BoolKind:
		return event.Bool
	case d.Name() == "sealed_tags":
		return event.Blob
	case d.Kind() == protoreflect.BytesKind:
		return event.Bytes
	case d.Message() != nil && d.Message().FullName() == "google.protobuf.Timestamp":
		return event.Time
	case d.Message() != nil && d.Message().FullName() == "tallystick.v1.TokenCounts":
		return event.TokenMap
	}
	return 255
}

func TestAppendProducerIsTheGeneratedEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events.Draw(t, "event")
		if err := e.Validate(false); err != nil {
			t.Fatalf("the generator draws what is not valid: %v", err)
		}
		var got tallystickv1.UsageEvent
		if err := proto.Unmarshal(e.AppendProducer(nil), &got); err != nil {
			t.Fatal(err)
		}
		if want := toMessage(&e); !proto.Equal(&got, want) {
			t.Fatalf("got  %v\nwant %v", &got, want)
		}
	})
}

func TestAppendLogIsTheGeneratedEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := stamped.Draw(t, "event")
		if err := e.Validate(true); err != nil {
			t.Fatalf("the generator draws what is not valid: %v", err)
		}
		want := toRecord(&e)
		e.User = "jane@example.com" // never in the log
		b := event.AppendUsageRecord(nil, &e)
		producer, person := e.AppendProducerMarked(nil)
		if !bytes.Equal(event.AppendUsageRecordOf(nil, &e, producer, person, nil), b) {
			t.Fatal("AppendUsageRecordOf writes other bytes than AppendUsageRecord")
		}
		var got tallystickv1.LogRecord
		if err := proto.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&got, want) {
			t.Fatalf("got  %v\nwant %v", &got, want)
		}
		if len(b) > event.MaxEncodedSize {
			t.Fatalf("a valid event takes %d bytes", len(b))
		}
	})
}

// The subject stands behind the event, for readers of the message and for ours,
// and changes no byte of the event.
func TestSubjectStandsBesideTheEvent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := stamped.Draw(t, "event")
		e.Corrects = "" // the person of a correction is the original's
		subject := rapid.SliceOfN(rapid.Byte(), 1, event.MaxSealedSubject).Draw(t, "subject")
		producer, person := e.AppendProducerMarked(nil)
		b := event.AppendUsageRecordOf(nil, &e, producer, person, subject)
		var got tallystickv1.LogRecord
		if err := proto.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		want := toRecord(&e)
		if e.Corrects != "" {
			subject = nil // the person is the original's
		}
		want.SealedSubject = subject
		if !proto.Equal(&got, want) {
			t.Fatalf("got  %v\nwant %v", &got, want)
		}
		rec, err := event.SplitRecord(b)
		if err != nil || !bytes.Equal(rec.Subject, subject) || !bytes.Equal(rec.Body, e.AppendLog(nil)) {
			t.Fatalf("SplitRecord: %+v, %v", rec, err)
		}
	})
}

func TestSplitRecordRefuses(t *testing.T) {
	e := full(t)
	usage := event.AppendUsageRecord(nil, &e)
	subject := func(n int) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), make([]byte, n))
	}
	control := event.AppendControlRecord(nil, &event.Control{Kind: event.ControlKeyEpoch})
	for what, b := range map[string][]byte{
		"nothing":                 nil,
		"a subject alone":         subject(1),
		"an empty subject":        slices.Concat(usage, subject(0)),
		"a subject too long":      slices.Concat(usage, subject(event.MaxSealedSubject+1)),
		"two subjects":            slices.Concat(usage, subject(1), subject(1)),
		"a subject before":        slices.Concat(subject(1), usage),
		"a subject of a control":  slices.Concat(control, subject(1)),
		"two bodies":              slices.Concat(usage, usage),
		"an unknown field behind": slices.Concat(usage, protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), []byte("x"))),
		"a cut subject":           slices.Concat(usage, subject(9)[:5]),
	} {
		if _, err := event.SplitRecord(b); !errors.Is(err, event.ErrNotARecord) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := event.SplitRecord(slices.Concat(usage, subject(event.MaxSealedSubject))); err != nil {
		t.Errorf("a subject at the limit: %v", err)
	}
}

// What is sealed of tags comes back, and nothing else is taken for it.
func TestTagPairs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events.Draw(t, "event")
		if len(e.Tags) == 0 {
			return
		}
		b := event.AppendTagPairs(nil, e.Tags)
		got, err := event.DecodeTagPairs(b)
		if err != nil || !slices.Equal(got, e.Tags) {
			t.Fatalf("%v, %v", got, err)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if got, err := event.DecodeTagPairs(b[:cut]); err == nil && len(got) >= len(e.Tags) {
			t.Fatalf("the first %d of %d bytes are %v", cut, len(b), got)
		}
	})
}

func TestDecodeReadsAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := events.Draw(t, "event")
		var got event.Event
		if err := got.DecodeProto(shuffled(t, toMessage(&want)), event.Strict); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, &got, &want)
		if !bytes.Equal(got.AppendProducer(nil), want.AppendProducer(nil)) {
			t.Fatal("one event, two encodings")
		}
	})
}

func TestLogRoundTrip(t *testing.T) {
	var got event.Event // reused, as hop 3 does
	rapid.Check(t, func(t *rapid.T) {
		want := stamped.Draw(t, "event")
		rec := event.AppendUsageRecord([]byte("before"), &want)[len("before"):]
		parts, err := event.SplitRecord(rec)
		kind := event.UsageRecord
		if want.Corrects != "" {
			kind = event.CorrectionRecord
		}
		if err != nil || parts.Kind != kind || parts.Subject != nil {
			t.Fatalf("SplitRecord: %+v, %v", parts, err)
		}
		if err := got.DecodeProto(parts.Body, event.Log); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, &got, &want)
		if again := event.AppendUsageRecord(nil, &got); !bytes.Equal(again, rec) {
			t.Fatal("decoding and encoding changed the bytes")
		}
		if id, ok := event.PeekID(parts.Body); !ok || id != want.ID {
			t.Fatalf("PeekID = %q, %v", id, ok)
		}
	})
}

// mustEqual compares events; a nil and an empty list of tags are equal.
func mustEqual(t interface{ Fatalf(string, ...any) }, got, want *event.Event) {
	a, b := *got, *want
	if !slices.Equal(a.Tags, b.Tags) {
		t.Fatalf("tags %v, want %v", a.Tags, b.Tags)
	}
	a.Tags, b.Tags = nil, nil
	if !equalFlat(&a, &b) {
		t.Fatalf("got  %+v\nwant %+v", a, b)
	}
}

func equalFlat(a, b *event.Event) bool {
	for i := range event.Fields {
		f := &event.Fields[i]
		same := true
		switch f.Kind {
		case event.String:
			same = *a.StringPtr(f.Num) == *b.StringPtr(f.Num)
		case event.Int:
			same = *a.IntPtr(f.Num) == *b.IntPtr(f.Num)
		case event.Bool:
			same = *a.BoolPtr(f.Num) == *b.BoolPtr(f.Num)
		case event.Time:
			same = *a.TimePtr(f.Num) == *b.TimePtr(f.Num)
		case event.Bytes:
			same = a.ContentMAC == b.ContentMAC && a.HasContentMAC == b.HasContentMAC
		case event.TokenMap:
			same = a.Tokens == b.Tokens
		case event.Blob:
			same = bytes.Equal(a.SealedTags, b.SealedTags)
		}
		if !same {
			return false
		}
	}
	return true
}

func TestDecodeRefuses(t *testing.T) {
	ok := toMessage(ptr(full(t)))
	base, err := proto.Marshal(ok)
	if err != nil {
		t.Fatal(err)
	}
	field := func(num protowire.Number, body ...byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), body)
	}
	varint := func(num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
	}
	var tags []byte
	for i := range event.MaxTags + 1 {
		tags = append(tags, field(37, append(field(1, byte('A'+i)), field(2, 'v')...)...)...)
	}
	stamp, err := proto.Marshal(&tallystickv1.UsageEvent{ReceivedAt: &timestamppb.Timestamp{Seconds: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		more        []byte
		mode        event.Mode
		field, rule string
	}{
		{"unknown field", varint(60, 1), event.Strict, "#60", event.RuleUnknown},
		{"unknown field in the log", varint(60, 1), event.Log, "user", event.RuleEdgeOnly},
		{"number between fields", field(46, 'x'), event.Strict, "#46", event.RuleUnknown},
		{"a field twice", field(10, 'x'), event.Strict, "provider", event.RuleDuplicate},
		{"a field twice, leniently", field(10, 'x'), event.Lenient, "provider", event.RuleDuplicate},
		{"tokens twice", field(20), event.Strict, "tokens", event.RuleDuplicate},
		{"edge field", stamp, event.Strict, "received_at", event.RuleEdgeOnly},
		{"edge field, leniently", stamp, event.Lenient, "received_at", event.RuleEdgeOnly},
		{"wrong wire type", varint(18, 1), event.Strict, "error_type", event.RuleType},
		{"wrong wire type of an integer", field(21, 1), event.Strict, "context_tokens", event.RuleType},
		{"group", protowire.AppendTag(nil, 60, protowire.StartGroupType), event.Lenient, "event", event.RuleMalformed},
		{"cut short", []byte{0x92, 0x01}, event.Strict, "error_type", event.RuleMalformed},
		{"33 tags", tags, event.Strict, "tags", event.RuleMaxItems},
		{"a key twice", field(37, append(field(1, []byte("experiment")...), field(2, 'v')...)...), event.Strict, "tags", event.RuleDuplicate},
		{"two keys in a pair", field(37, append(field(1, 'a'), field(1, 'b')...)...), event.Strict, "tags", event.RuleDuplicate},
		{"a third member of a pair", field(37, field(3, 'a')...), event.Strict, "tags", event.RuleType},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var e event.Event
			err := e.DecodeProto(append(bytes.Clone(base), tc.more...), tc.mode)
			var fe *event.FieldError
			if !errors.As(err, &fe) || fe.Rule != tc.rule || fe.Field != tc.field && tc.rule != event.RuleMalformed {
				t.Errorf("got %v, want %s: %s", err, tc.field, tc.rule)
			}
		})
	}
	for _, tc := range []struct {
		name        string
		bytes       []byte
		field, rule string
	}{
		{"unknown token class", field(20, varint(11, 1)...), "tokens.#11", event.RuleUnknown},
		{"token class twice", field(20, append(varint(1, 1), varint(1, 1)...)...), "tokens.input", event.RuleDuplicate},
		{"token class as bytes", field(20, field(1, 'x')...), "tokens.input", event.RuleType},
		{"time before 1970", field(3, varint(1, 1<<64-1)...), "occurred_at", event.RuleRange},
		{"time after 2262", field(3, varint(1, 1<<62)...), "occurred_at", event.RuleRange},
		{"too many nanoseconds", field(3, append(varint(1, 1), varint(2, 1e9)...)...), "occurred_at", event.RuleRange},
		{"seconds twice", field(3, append(varint(1, 1), varint(1, 1)...)...), "occurred_at", event.RuleDuplicate},
		{"a third field in a time", field(3, varint(3, 1)...), "occurred_at", event.RuleType},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var e event.Event
			var fe *event.FieldError
			if err := e.DecodeProto(tc.bytes, event.Lenient); !errors.As(err, &fe) || fe.Rule != tc.rule || fe.Field != tc.field {
				t.Errorf("got %v, want %s: %s", err, tc.field, tc.rule)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestLenientDropsUnknownFields(t *testing.T) {
	want := full(t)
	b := want.AppendProducer(nil)
	b = protowire.AppendTag(b, 99, protowire.BytesType)
	b = protowire.AppendString(b, "a prompt")
	b = protowire.AppendFixed64(protowire.AppendTag(b, 100, protowire.Fixed64Type), 1)
	b = protowire.AppendFixed32(protowire.AppendTag(b, 101, protowire.Fixed32Type), 1)
	b = protowire.AppendVarint(protowire.AppendTag(b, 102, protowire.VarintType), 1)
	var got event.Event
	if err := got.DecodeProto(b, event.Lenient); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, &got, &want)
	if strings.Contains(string(got.AppendProducer(nil)), "prompt") {
		t.Error("an unknown field was stored")
	}
}

func TestValidateHoldsTheLimits(t *testing.T) {
	for i := range event.Fields {
		f := &event.Fields[i]
		check := func(what, rule string, change func(*event.Event)) {
			t.Helper()
			e := full(t)
			e.ReceivedAt, e.HasContentMAC = 1, true
			if strings.HasPrefix(f.Name, "gpu_") || f.Name == "purchase_option" {
				e.Tokens, e.GPUMicros, e.GPUState = tokens.Vector{}, 1, event.GPUIdle
			}
			if f.Name == "gpu_state" {
				e.GPUMicros = 0 // an event of tokens may have none
			}
			change(&e)
			var fe *event.FieldError
			err := e.Validate(true)
			if rule == "" && err != nil || rule != "" && (!errors.As(err, &fe) || fe.Field != f.Name || fe.Rule != rule) {
				t.Errorf("%s %s: %v, want rule %q", f.Name, what, err, rule)
			}
			if f.Edge && e.Validate(false) != nil {
				t.Errorf("%s %s: the edge's field is checked before it is set", f.Name, what)
			}
		}
		switch f.Kind {
		case event.String:
			set := func(s string) func(*event.Event) { return func(e *event.Event) { *e.StringPtr(f.Num) = s } }
			check("too long", event.RuleMaxBytes, set(strings.Repeat("a", int(f.Max)+1)))
			check("not UTF-8", event.RuleUTF8, set("a\xff"))
			check("with a control character", event.RuleControl, set("a\x00"))
			check("with DEL", event.RuleControl, set("a\x7f"))
			check("with a C1 control", event.RuleControl, set("a\u0085"))
			if f.Required {
				check("empty", event.RuleRequired, set(""))
			} else {
				check("empty", "", set(""))
			}
			if f.OneOf != nil {
				check("out of its vocabulary", event.RuleOneOf, set("nonsense"))
				for _, w := range f.OneOf {
					check("being "+w, "", set(w))
				}
			}
		case event.Int:
			check("negative", event.RuleRange, func(e *event.Event) { *e.IntPtr(f.Num) = -1 })
			check("greatest", "", func(e *event.Event) { *e.IntPtr(f.Num) = f.Max })
			if f.Max < 1<<63-1 {
				check("too great", event.RuleRange, func(e *event.Event) { *e.IntPtr(f.Num) = f.Max + 1 })
			}
		case event.Time:
			check("missing", event.RuleRequired, func(e *event.Event) { *e.TimePtr(f.Num) = 0 })
			check("negative", event.RuleRange, func(e *event.Event) { *e.TimePtr(f.Num) = -1 })
		case event.Blob:
			check("too long", event.RuleMaxBytes, func(e *event.Event) { e.SealedTags = make([]byte, f.Max+1) })
			check("missing", "", func(e *event.Event) { e.SealedTags = nil })
		case event.Bytes:
			check("missing", event.RuleRequired, func(e *event.Event) { e.HasContentMAC = false })
		case event.TagMap:
			check("with an empty key", event.RuleRequired, func(e *event.Event) { e.Tags = []event.Tag{{Value: "v"}} })
			check("with a long value", event.RuleMaxBytes, func(e *event.Event) {
				e.Tags = []event.Tag{{Key: "k", Value: strings.Repeat("v", event.MaxValueBytes+1)}}
			})
			check("with too many pairs", event.RuleMaxItems, func(e *event.Event) { e.Tags = make([]event.Tag, event.MaxTags+1) })
		}
	}
	for c := range tokens.NumClasses {
		for _, n := range []int64{-1, event.MaxTokens + 1} {
			e := full(t)
			e.Tokens[c] = n
			var fe *event.FieldError
			if err := e.Validate(false); !errors.As(err, &fe) || fe.Field != "tokens."+c.String() || fe.Rule != event.RuleRange {
				t.Errorf("%d tokens of class %v: %v", n, c, err)
			}
		}
	}
}

func TestNormalizeMakesOneFormOfEqualEvents(t *testing.T) {
	a, b := full(t), full(t)
	a.Status, a.ServiceTier, a.ProviderCost = "", "", "0.5"
	b.Status, b.ServiceTier, b.ProviderCost = "ok", "standard", "0.500000000000"
	for _, e := range []*event.Event{&a, &b} {
		if err := e.Normalize(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.AppendProducer(nil), b.AppendProducer(nil)) {
		t.Error("two spellings of one event have different content")
	}
	before := a.AppendProducer(nil)
	if err := a.Normalize(); err != nil || !bytes.Equal(a.AppendProducer(nil), before) {
		t.Error("normalising twice changes an event")
	}
}

func TestKeyOf(t *testing.T) {
	uuid := event.KeyOf("0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")
	if uuid.String() != "0193a1b2c3d47e5f8a9b0c1d2e3f4a5b" {
		t.Errorf("the key of a UUID is %s", uuid)
	}
	// printf 'tallystick/event-id/v1\0e1' | sha256sum
	if got := event.KeyOf("e1").String(); got != "b7b205ea78931247ac0a4dc78a0578e8" {
		t.Errorf("the key of e1 is %s", got)
	}
	seen := map[event.Key]string{}
	for _, id := range []string{
		"0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "0193A1B2-C3D4-7E5F-8A9B-0C1D2E3F4A5B", "0193a1b2c3d47e5f8a9b0c1d2e3f4a5b",
		"0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5g", "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b ", "e1", "e2", strings.Repeat("e", 128),
	} {
		if other, ok := seen[event.KeyOf(id)]; ok {
			t.Errorf("%q and %q have one key", id, other)
		}
		seen[event.KeyOf(id)] = id
	}
}

// The codec is on the path of every event: with reuse it allocates nothing.
func TestCodecDoesNotAllocate(t *testing.T) {
	e := full(t)
	b := e.AppendProducer(nil)
	js := fullJSON(t)
	e.ReceivedAt, e.HasContentMAC = 1, true
	rec := event.AppendUsageRecord(nil, &e)
	var d event.Event
	scratch := make([]byte, 0, 4096)
	buf := make([]byte, len(js))
	for name, f := range map[string]func(){
		"DecodeProto": func() { must(t, d.DecodeProto(b, event.Strict)) },
		"DecodeJSON":  func() { copy(buf, js); must(t, d.DecodeJSON(buf, event.Strict)) },
		"Validate":    func() { must(t, e.Validate(true)) },
		"Normalize":   func() { must(t, e.Normalize()) },
		"Append":      func() { scratch = e.AppendProducer(scratch[:0]) },
		"AppendUsage": func() { scratch = event.AppendUsageRecord(scratch[:0], &e) },
		"SplitRecord": func() { _, err := event.SplitRecord(rec); must(t, err) },
		"KeyOf":       func() { event.KeyOf(e.ID) },
		"KeyOf text":  func() { event.KeyOf("some other id") },
		"AppendLog":   func() { scratch = e.AppendLog(scratch[:0]) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func must(t testing.TB, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkDecodeProto(b *testing.B) {
	e := full(b)
	buf := e.AppendProducer(nil)
	b.ReportAllocs()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if err := e.DecodeProto(buf, event.Strict); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	e := full(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Validate(false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendProducer(b *testing.B) {
	e := full(b)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = e.AppendProducer(buf[:0])
	}
}

func TestFieldByName(t *testing.T) {
	for i := range event.Fields {
		f := &event.Fields[i]
		if got, ok := event.FieldByName(f.Name); !ok || got != f {
			t.Errorf("FieldByName(%q) = %v, %v", f.Name, got, ok)
		}
		for _, other := range []string{"", f.Name[1:], f.Name + "x", strings.ToUpper(f.Name)} {
			if got, ok := event.FieldByName(other); ok && got.Name != other {
				t.Errorf("FieldByName(%q) = %s", other, got.Name)
			}
		}
	}
}
