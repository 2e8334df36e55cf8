package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// fullJSON is the event of full as a client would write it.
func fullJSON(t testing.TB) []byte {
	t.Helper()
	e := full(t)
	m := map[string]any{
		"event_id": e.ID, "tenant_id": e.Tenant, "occurred_at": time.Unix(0, e.OccurredAt).UTC().Format(time.RFC3339Nano),
		"producer_id": e.ProducerID, "producer_epoch": e.ProducerEpoch, "producer_seq": e.ProducerSeq,
		"provider": e.Provider, "model": e.Model, "requested_model": e.RequestedModel, "operation": e.Operation,
		"region": e.Region, "service_tier": e.ServiceTier, "status": e.Status, "http_status": e.HTTPStatus,
		"tokens":     map[string]int64{"input": e.Tokens[tokens.Input], "cache_read": e.Tokens[tokens.CacheRead], "output": e.Tokens[tokens.Output], "reasoning": e.Tokens[tokens.Reasoning]},
		"latency_us": e.LatencyMicros, "ttft_us": e.TTFTMicros, "streamed": e.Streamed, "provider_request_id": e.ProviderRequestID,
		"team": e.Team, "service": e.Service, "feature": e.Feature, "agent": e.Agent, "user": e.User, "environment": e.Environment,
		"tags": map[string]string{e.Tags[0].Key: e.Tags[0].Value, e.Tags[1].Key: e.Tags[1].Value},
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What protobuf's own JSON writer writes is read as the same event.
func TestDecodeJSONReadsProtoJSON(t *testing.T) {
	var got event.Event // reused
	rapid.Check(t, func(t *rapid.T) {
		want := events.Draw(t, "event")
		b, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: rapid.Bool().Draw(t, "multiline")}.Marshal(toMessage(&want))
		if err != nil {
			t.Fatal(err)
		}
		if err := got.DecodeJSON(b, event.Strict); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		mustEqual(t, &got, &want)
		if !bytes.Equal(got.AppendProducer(nil), want.AppendProducer(nil)) {
			t.Fatal("one event, two encodings")
		}
	})
}

// And what encoding/json writes, with its escapes, numbers being numbers.
func TestDecodeJSONReadsEncodingJSON(t *testing.T) {
	want := full(t)
	var got event.Event
	if err := got.DecodeJSON(fullJSON(t), event.Strict); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, &got, &want)
}

func TestDecodeJSONForms(t *testing.T) {
	for _, tc := range []struct{ in, field, rule string }{
		{`{}`, "", ""},
		{` {"tokens":{},"tags":{},"team":""} `, "", ""},
		{`{"team":null,"tokens":null,"tags":null,"occurred_at":null,"streamed":null,"http_status":null}`, "", ""},
		{`{"tokens":{"input":null}}`, "", ""},
		{`{"http_status":-0}`, "", ""},
		{`{"http_status":"200"}`, "", ""},
		{`{"producer_seq":9223372036854775807}`, "", ""},
		{`{"producer_seq":-9223372036854775808}`, "", ""},
		{`{"producer_seq":9223372036854775808}`, "producer_seq", event.RuleRange},
		{`{"producer_seq":-9223372036854775809}`, "producer_seq", event.RuleRange},
		{`{"producer_seq":18446744073709551616}`, "producer_seq", event.RuleRange},
		{`{"producer_seq":1.0}`, "producer_seq", event.RuleType},
		{`{"producer_seq":1e3}`, "producer_seq", event.RuleType},
		{`{"producer_seq":"+1"}`, "producer_seq", event.RuleType},
		{`{"producer_seq":"01"}`, "producer_seq", event.RuleType},
		{`{"producer_seq":""}`, "producer_seq", event.RuleType},
		{`{"producer_seq":"-"}`, "producer_seq", event.RuleType},
		{`{"producer_seq":{}}`, "producer_seq", event.RuleType},
		{`{"producer_seq":01}`, "event", event.RuleMalformed},
		{`{"producer_seq":+1}`, "event", event.RuleMalformed},
		{`{"producer_seq":1.}`, "event", event.RuleMalformed},
		{`{"team":"\ud83d\ude00\u00e9\"\\\/\b"}`, "", ""},
		{`{"team":"\ud83d"}`, "team", event.RuleUTF8},
		{`{"team":"\ude00\ud83d"}`, "team", event.RuleUTF8},
		{`{"team":"\ud83d\u0041"}`, "team", event.RuleUTF8},
		{"{\"team\":\"\xc3\"}", "team", event.RuleUTF8},
		{"{\"team\":\"\\u0041\xc3\"}", "team", event.RuleUTF8},
		{"{\"\xc3\":1}", "event", event.RuleUTF8},
		{`{"team":"\x"}`, "event", event.RuleMalformed},
		{`{"team":"\u12g4"}`, "event", event.RuleMalformed},
		{"{\"team\":\"a\nb\"}", "event", event.RuleMalformed},
		{"{\"team\":\"\\n\x01\"}", "event", event.RuleMalformed},
		{`{"team":"a"`, "event", event.RuleMalformed},
		{`{"team":"a"}}`, "event", event.RuleMalformed},
		{`{"team":"a",}`, "event", event.RuleMalformed},
		{`{"team" "a"}`, "event", event.RuleMalformed},
		{`{team:"a"}`, "event", event.RuleMalformed},
		{`{"team":tru}`, "event", event.RuleMalformed},
		{`{"x":nul}`, "event", event.RuleMalformed},
		{``, "event", event.RuleMalformed},
		{`[]`, "event", event.RuleType},
		{`"a"`, "event", event.RuleType},
		{`{"nosuch":[1,{"a":[true,false,null,"x",-1.5e+3]}]}`, "nosuch", event.RuleUnknown},
		{`{"nosuch":[1,{"a":[}]}`, "event", event.RuleMalformed},
		{`{"team":"a","team":"a"}`, "team", event.RuleDuplicate},
		{`{"team":null,"team":"a"}`, "team", event.RuleDuplicate},
		{`{"team":"a","te\u0061m":"a"}`, "team", event.RuleDuplicate},
		{`{"tokens":{"input":1,"input":null}}`, "tokens.input", event.RuleDuplicate},
		{`{"tokens":{"inputs":1}}`, "tokens.inputs", event.RuleUnknown},
		{`{"tags":{"a":"1","b":"2","a":"3"}}`, "tags", event.RuleDuplicate},
		{`{"tags":{"a":null}}`, "tags", event.RuleType},
		{`{"received_at":"2026-11-22T11:00:00Z"}`, "received_at", event.RuleEdgeOnly},
		// the first thing wrong is named, and reading goes on to the end
		{`{"http_status":true,"team":1}`, "http_status", event.RuleType},
		{`{"http_status":true,"team":1`, "event", event.RuleMalformed},
		{`{"deep":` + strings.Repeat("[", 60) + strings.Repeat("]", 60) + `}`, "deep", event.RuleUnknown},
		{`{"deep":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `}`, "event", event.RuleMalformed},
	} {
		var e event.Event
		err := e.DecodeJSON([]byte(tc.in), event.Strict)
		var fe *event.FieldError
		if tc.rule == "" && err != nil || tc.rule != "" && (!errors.As(err, &fe) || fe.Field != tc.field || fe.Rule != tc.rule) {
			t.Errorf("%s: %v, want %s: %s", tc.in, err, tc.field, tc.rule)
		}
	}
}

func TestDecodeJSONTimes(t *testing.T) {
	for _, in := range []string{
		"2026-11-22T11:00:00Z", "2026-11-22t11:00:00z", "2026-11-22T11:00:00.1Z", "2026-11-22T11:00:00.123456789+05:30",
		"2024-02-29T23:59:59-12:00", "2000-02-29T00:00:00Z", "1970-01-01T00:00:01Z", "2262-04-11T23:47:15Z",
		"2026-11-22T11:00:00+23:59", "1972-12-31T00:00:00Z", "2100-12-31T23:59:59.999999999Z",
	} {
		want, err := time.Parse(time.RFC3339Nano, strings.ToUpper(in))
		if err != nil {
			t.Fatal(err)
		}
		var e event.Event
		if err := e.DecodeJSON([]byte(`{"occurred_at":"`+in+`"}`), event.Strict); err != nil || e.OccurredAt != want.UnixNano() {
			t.Errorf("%s: %d, %v, want %d", in, e.OccurredAt, err, want.UnixNano())
		}
	}
	for in, rule := range map[string]string{
		"1970-01-01T00:00:00Z": event.RuleRange, "1969-12-31T23:59:59Z": event.RuleRange, "2262-04-11T23:47:16Z": event.RuleRange,
		"9999-01-01T00:00:00Z": event.RuleRange, "0000-01-01T00:00:00Z": event.RuleRange,
		"2026-11-22T23:59:60Z": event.RuleType, "2026-11-22T24:00:00Z": event.RuleType, "2026-02-29T00:00:00Z": event.RuleType,
		"2100-02-29T00:00:00Z": event.RuleType, "2026-13-01T00:00:00Z": event.RuleType, "2026-00-01T00:00:00Z": event.RuleType,
		"2026-01-00T00:00:00Z": event.RuleType, "2026-04-31T00:00:00Z": event.RuleType, "2026-11-22T11:00:00": event.RuleType,
		"2026-11-22 11:00:00Z": event.RuleType, "2026-11-22T11:00:00.Z": event.RuleType, "2026-11-22T11:00:00.1234567890Z": event.RuleType,
		"2026-11-22T11:00:00,5Z": event.RuleType, "2026-11-22T11:00:00+0100": event.RuleType, "2026-11-22T11:00:00+24:00": event.RuleType,
		"2026-11-22T11:00:00+01:60": event.RuleType, "2026-11-22T11:00:00ZZ": event.RuleType, "26-11-22T11:00:00Z": event.RuleType,
		"2026-11-22T1a:00:00Z": event.RuleType, "": event.RuleType,
	} {
		var e event.Event
		var fe *event.FieldError
		if err := e.DecodeJSON([]byte(`{"occurred_at":"`+in+`"}`), event.Strict); !errors.As(err, &fe) || fe.Rule != rule || fe.Field != "occurred_at" {
			t.Errorf("%q: %v, want %s", in, err, rule)
		}
	}
}

// Whatever time.Time writes is read back exactly.
func TestDecodeJSONTimesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(1, 9_223_372_035).Draw(t, "sec"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanos"))
		zone := rapid.IntRange(-23*60, 23*60).Draw(t, "zone")
		text := at.In(time.FixedZone("", zone*60)).Format(time.RFC3339Nano)
		var e event.Event
		if err := e.DecodeJSON([]byte(`{"occurred_at":`+strconv.Quote(text)+`}`), event.Strict); err != nil || e.OccurredAt != at.UnixNano() {
			t.Fatalf("%s: %d, %v, want %d", text, e.OccurredAt, err, at.UnixNano())
		}
	})
}

func TestErrorsNeverRepeatValues(t *testing.T) {
	const secret = "SECRET plan"
	for _, in := range []string{
		`{"SECRET plan":1}`, `{"team":"SECRET plan` + strings.Repeat("x", 300) + `"}`, `{"status":"SECRET plan"}`,
		`{"occurred_at":"SECRET plan"}`, `{"tokens":{"SECRET plan":1}}`, `{"http_status":"SECRET plan"}`,
		`{"tags":{"SECRET plan":1}}`, `{"provider_cost_usd":"SECRET plan"}`, `{"tenant_id":"SECRET plan"}`, `SECRET plan`,
		`{"team":"SECRET plan\u0000"}`,
	} {
		var e event.Event
		err := e.DecodeJSON([]byte(in), event.Strict)
		if err == nil {
			e.ID, e.OccurredAt, e.Provider, e.Model = "e", 1, "p", "m"
			if e.Tenant == "" {
				e.Tenant = "acme"
			}
			err = e.Validate(false)
		}
		if err == nil || strings.Contains(err.Error(), secret[:6]) {
			t.Errorf("%.60s: %v", in, err)
		}
	}
}

func TestJSONBatch(t *testing.T) {
	for _, tc := range []struct {
		in     string
		ids    string
		refuse string
		rule   string // of the body
	}{
		{`{"event_id":"a"}`, "a", "", ""},
		{`[{"event_id":"a"},{"event_id":"b"}]`, "a b", "", ""},
		{`{"events":[{"event_id":"a"}]}`, "a", "", ""},
		{` { "events" : [ ] } `, "", "", ""},
		{`{"events":null}`, "", "", ""},
		{`[]`, "", "", ""},
		{`[{"event_id":"a"},7,{"event_id":"b"}]`, "a b", "type", ""},
		{`[{"event_id":"a"},{"event_id":1},{"event_id":"b"}]`, "a b", "type", ""},
		{`{"event_id":"a","events":[]}`, "", "unknown", ""},
		{`{"events":[{"event_id":"a"}],"x":1}`, "a", "", event.RuleUnknown},
		{`[{"event_id":"a"}`, "a", "", event.RuleMalformed},
		{`[{"event_id":"a"},]`, "a", "", event.RuleMalformed},
		{`[{"event_id":"a"} {"event_id":"b"}]`, "a", "", event.RuleMalformed},
		{`{"event_id":"a"}{"event_id":"b"}`, "a", "", event.RuleMalformed},
		{`{"events":{"event_id":"a"}}`, "", "", event.RuleMalformed},
		{`{"events":[]`, "", "", event.RuleMalformed},
		{`7`, "", "", event.RuleMalformed},
		{``, "", "", event.RuleMalformed},
		{`[[]]`, "", "type", ""},
	} {
		j := event.NewJSONBatch([]byte(tc.in))
		var e event.Event
		var ids []string
		var refused *event.FieldError
		var err error
		for {
			var ok bool
			var refusal error
			if ok, refusal, err = j.Next(&e, event.Strict); !ok {
				break
			}
			if refusal != nil {
				errors.As(refusal, &refused)
				continue
			}
			ids = append(ids, strings.Clone(e.ID))
		}
		var fe *event.FieldError
		errors.As(err, &fe)
		if got := strings.Join(ids, " "); got != tc.ids || (fe == nil) != (tc.rule == "") || fe != nil && fe.Rule != tc.rule {
			t.Errorf("%s: %q, %v", tc.in, got, err)
		}
		if (refused == nil) != (tc.refuse == "") || refused != nil && refused.Rule != tc.refuse {
			t.Errorf("%s: refusal %v, want %q", tc.in, refused, tc.refuse)
		}
		if ok, _, again := j.Next(&e, event.Strict); ok || again != nil {
			t.Errorf("%s: something came after the end", tc.in)
		}
	}
}

func BenchmarkDecodeJSON(b *testing.B) {
	js := fullJSON(b)
	buf := make([]byte, len(js))
	var e event.Event
	b.ReportAllocs()
	b.SetBytes(int64(len(js)))
	for b.Loop() {
		copy(buf, js)
		if err := e.DecodeJSON(buf, event.Strict); err != nil {
			b.Fatal(err)
		}
	}
}

// The baseline of BenchmarkDecodeJSON.
func BenchmarkDecodeEncodingJSON(b *testing.B) {
	js := fullJSON(b)
	var m struct {
		EventID    string           `json:"event_id"`
		TenantID   string           `json:"tenant_id"`
		OccurredAt time.Time        `json:"occurred_at"`
		Provider   string           `json:"provider"`
		Model      string           `json:"model"`
		Tokens     map[string]int64 `json:"tokens"`
		Tags       map[string]string
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(js)))
	for b.Loop() {
		if err := json.Unmarshal(js, &m); err != nil {
			b.Fatal(err)
		}
	}
}
