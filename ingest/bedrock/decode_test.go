package bedrock

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

const prose = "Tell me the secret recipe of grandmother's plum cake, please"

// line is a record as Bedrock writes one.
func line(change func(r map[string]any)) []byte {
	r := map[string]any{
		"schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": "2026-11-20T10:00:00Z", "accountId": "111122223333",
		"region": "us-east-1", "requestId": "6f0c8d9e-0001", "operation": "Converse", "modelId": "anthropic.claude-3-haiku-20240307-v1:0",
		"identity":        map[string]any{"arn": "arn:aws:sts::111122223333:assumed-role/checkout/i-0abc"},
		"requestMetadata": map[string]any{"team": "search", "project": "atlas"},
		"input":           map[string]any{"inputContentType": "application/json", "inputTokenCount": 9, "inputBodyJson": map[string]any{"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"text": prose}}}}}},
		"output": map[string]any{"outputContentType": "application/json", "outputTokenCount": 5, "outputBodyJson": map[string]any{
			"output":  map[string]any{"message": map[string]any{"content": []any{map[string]any{"text": "No. " + prose}}}},
			"metrics": map[string]any{"latencyMs": 321}, "usage": map[string]any{"inputTokens": 9, "outputTokens": 5, "totalTokens": 14}, "stopReason": "end_turn",
		}},
	}
	if change != nil {
		change(r)
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // maps of strings and numbers
	}
	return append(b, '\n')
}

func one(t testing.TB, b []byte) Record {
	t.Helper()
	recs, malformed := decodeAll(t, bytes.NewReader(b))
	if len(recs) != 1 || malformed != 0 {
		t.Fatalf("%d records, %d malformed", len(recs), malformed)
	}
	return recs[0]
}

func eventOf(t testing.TB, r *Record, metadata bool) event.Event {
	t.Helper()
	e, err := r.Event("acme", Place{}, metadata)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(false); err != nil {
		t.Fatal(err)
	}
	return e
}

func tags(e *event.Event) map[string]string {
	m := map[string]string{}
	for _, tag := range e.Tags {
		m[tag.Key] = tag.Value
	}
	return m
}

func TestEventOfARecord(t *testing.T) {
	r := one(t, line(nil))
	e := eventOf(t, &r, true)
	got := fmt.Sprint(e.Provider, " ", e.Model, " ", e.Operation, " ", e.Region, " ", e.Status, " ", e.LatencyMicros, " ", e.Tokens[tokens.Input], " ", e.Tokens[tokens.Output],
		" ", e.Team, " ", e.Service, " ", e.User, " ", tags(&e)["project"], " ", tags(&e)[TagAccount])
	want := "bedrock anthropic.claude-3-haiku-20240307-v1:0 chat us-east-1 ok 321000 9 5 search checkout arn:aws:sts::111122223333:assumed-role/checkout/i-0abc atlas 111122223333"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// The digest is the HMAC of the body without white space, under the key.
	mac := hmac.New(sha256.New, testKey[:])
	mac.Write([]byte("bedrock/prompt\x00" + `{"messages":[{"content":[{"text":"Tell me the secret recipe of grandmother's plum cake, please"}],"role":"user"}]}`))
	if got, want := tags(&e)[TagPrompt], fmt.Sprintf("%x", mac.Sum(nil)); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	e = eventOf(t, &r, false)
	if len(e.Tags) != 0 || e.Team+e.User+e.Service != "" || e.Tokens[tokens.Input] != 9 || e.LatencyMicros != 321_000 || e.Model == "" {
		t.Errorf("without metadata: %+v", e)
	}
}

func TestEvents(t *testing.T) {
	body := func(r map[string]any) map[string]any {
		return r["output"].(map[string]any)["outputBodyJson"].(map[string]any)
	}
	for _, c := range []struct {
		name   string
		change func(r map[string]any)
		want   string // status http estimated input output cache_read write_5m write_1h reasons
	}{
		{"usage of the body", nil, "ok 0 false 9 5 0 0 0 -"},
		{"throttled", func(r map[string]any) {
			r["errorCode"], r["input"], r["output"] = "ThrottlingException", nil, nil
		}, "error 429 false 0 0 0 0 0 -"},
		{"an error without a name", func(r map[string]any) {
			r["errorCode"], r["input"], r["output"] = prose, nil, nil
		}, "error 0 false 0 0 0 0 0 -"},
		{"cache counts have two names", func(r map[string]any) {
			body(r)["usage"] = map[string]any{"inputTokens": 3, "outputTokens": 5, "cacheReadInputTokens": 100, "cacheReadInputTokenCount": 100,
				"cacheWriteInputTokens": 20, "cacheWriteInputTokenCount": 20, "totalTokens": 128,
				"cacheDetails": []any{map[string]any{"ttl": "1h", "inputTokens": 15}, map[string]any{"ttl": "5m", "inputTokens": 5}}}
			in := r["input"].(map[string]any)
			in["inputTokenCount"], in["cacheReadInputTokenCount"], in["cacheWriteInputTokenCount"] = 3, 100, 20
		}, "ok 0 false 3 5 100 5 15 -"},
		{"the record's counts where the body has none", func(r map[string]any) {
			delete(body(r), "usage")
			r["input"].(map[string]any)["cacheReadInputTokenCount"] = 7
		}, "ok 0 false 9 5 7 0 0 -"},
		{"counts without a body", func(r map[string]any) { delete(r["output"].(map[string]any), "outputBodyJson") }, "ok 0 false 9 5 0 0 0 -"},
		{"nothing states usage", func(r map[string]any) {
			delete(body(r), "usage")
			delete(r["input"].(map[string]any), "inputTokenCount")
			delete(r["output"].(map[string]any), "outputTokenCount")
		}, "ok 0 true 15 16 0 0 0 no_usage"},
		{"a total that differs", func(r map[string]any) { body(r)["usage"].(map[string]any)["totalTokens"] = 99 }, "ok 0 false 9 5 0 0 0 total_differs"},
		{"a guardrail", func(r map[string]any) { body(r)["stopReason"] = "guardrail_intervened" }, "blocked 0 false 9 5 0 0 0 -"},
		{"a stream of Anthropic's", func(r map[string]any) {
			r["operation"] = "InvokeModelWithResponseStream"
			r["output"] = map[string]any{"outputBodyJson": []any{
				map[string]any{"type": "message_start", "message": map[string]any{"id": "msg_1", "usage": map[string]any{"input_tokens": 30, "cache_read_input_tokens": 4, "output_tokens": 1}}},
				map[string]any{"type": "content_block_delta", "delta": map[string]any{"type": "text_delta", "text": prose}},
				map[string]any{"type": "message_delta", "delta": map[string]any{"stop_reason": "end_turn"}, "usage": map[string]any{"output_tokens": 12}},
				map[string]any{"type": "message_stop", "amazon-bedrock-invocationMetrics": map[string]any{"inputTokenCount": 30, "outputTokenCount": 12, "invocationLatency": 800, "firstByteLatency": 200}},
			}}
		}, "ok 0 false 30 12 4 0 0 -"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := one(t, line(c.change))
			e := eventOf(t, &r, true)
			got := fmt.Sprintf("%s %d %t %d %d %d %d %d %s", e.Status, e.HTTPStatus, e.Estimated, e.Tokens[tokens.Input], e.Tokens[tokens.Output], e.Tokens[tokens.CacheRead],
				e.Tokens[tokens.CacheWrite5m], e.Tokens[tokens.CacheWrite1h], doubt(&e))
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// A record's members may come in any order, its bytes in any pieces, and white
// space means nothing: the event is the same.
func TestOrderPiecesAndWhiteSpaceMeanNothing(t *testing.T) {
	all := logs(t, files[0].name)
	for _, raw := range bytes.Split(bytes.TrimSpace(all), []byte("\n"))[:3] {
		r := one(t, raw)
		want := eventOf(t, &r, true)
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, raw, "", "  "); err != nil {
			t.Fatal(err)
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(raw, &members); err != nil {
			t.Fatal(err)
		}
		sorted, err := json.Marshal(members) // in order of names: input before modelId before output
		if err != nil {
			t.Fatal(err)
		}
		var last bytes.Buffer // the operation after the bodies
		operation := members["operation"]
		delete(members, "operation")
		rest, err := json.Marshal(members)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&last, `%s,"operation":%s}`, rest[:len(rest)-1], operation)
		for name, src := range map[string]io.Reader{
			"pretty": &pretty, "sorted": bytes.NewReader(sorted), "operation last": &last,
			"byte by byte": iotest.OneByteReader(bytes.NewReader(raw)), "in halves": iotest.HalfReader(bytes.NewReader(raw)),
		} {
			recs, malformed := decodeAll(t, src)
			if len(recs) != 1 || malformed != 0 {
				t.Fatalf("%s: %d records, %d malformed", name, len(recs), malformed)
			}
			if got := eventOf(t, &recs[0], true); !reflect.DeepEqual(got, want) {
				t.Errorf("%s:\n got  %+v\n want %+v", name, got, want)
			}
		}
	}
}

// What is no record is counted, and stops no other one.
func TestMalformedLinesStopNoOther(t *testing.T) {
	good := string(line(nil))
	for _, bad := range []string{
		"garbage\n", "{\"timestamp\": \n", `{"timestamp":"2026-11-20T10:00:00Z","input":{"inputBodyJson":{"a":"` + "\n", `{"a":1}` + "\n", `{"timestamp":1,}` + "\n",
		"{\"output\":{\"outputBodyJson\":" + strings.Repeat("[", maxDepth+1) + "\n", "\"text\"\n", "12\n", "{\"timestamp\":nul}\n", "\x00\n",
	} {
		recs, malformed := decodeAll(t, strings.NewReader(good+bad+good))
		if len(recs) != 2 || malformed != 1 {
			t.Errorf("%.40q: %d records, %d malformed; want 2 and 1", bad, len(recs), malformed)
		}
		if recs, malformed = decodeAll(t, strings.NewReader(good+strings.TrimSuffix(bad, "\n"))); len(recs) != 1 || malformed != 1 {
			t.Errorf("%.40q at the end: %d records, %d malformed; want 1 and 1", bad, len(recs), malformed)
		}
	}
	if recs, malformed := decodeAll(t, strings.NewReader("["+strings.TrimSpace(good)+","+good+"]")); len(recs) != 2 || malformed != 0 {
		t.Errorf("a list: %d records, %d malformed", len(recs), malformed)
	}
	broken := errors.New("the connection broke")
	d := NewDecoder(io.MultiReader(strings.NewReader(good[:len(good)/2]), iotest.ErrReader(broken)), testKey)
	if err := d.Next(new(Record)); !errors.Is(err, broken) {
		t.Errorf("a broken stream: %v", err)
	}
}

// Ids tell apart what differs, and nothing else.
func TestEventIDs(t *testing.T) {
	id := func(at Place, change func(map[string]any)) string {
		r := one(t, line(change))
		e, err := r.Event("acme", at, true)
		if err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	same := id(Place{Object: "a"}, nil)
	if got := id(Place{Object: "b", Index: 7}, nil); got != same {
		t.Error("one record in two places has two ids")
	}
	seen := map[string]string{same: "the same"}
	for name, change := range map[string]func(map[string]any){
		"request id": func(r map[string]any) { r["requestId"] = "another" },
		"time":       func(r map[string]any) { r["timestamp"] = "2026-11-20T10:00:01Z" },
		"model":      func(r map[string]any) { r["modelId"] = "amazon.nova-lite-v1:0" },
		"tokens":     func(r map[string]any) { r["input"].(map[string]any)["inputTokenCount"] = 10 },
		"total": func(r map[string]any) {
			r["output"].(map[string]any)["outputBodyJson"].(map[string]any)["usage"].(map[string]any)["totalTokens"] = 15
		},
		"prompt": func(r map[string]any) { r["input"].(map[string]any)["inputBodyJson"] = "other" },
		"answer": func(r map[string]any) {
			r["output"].(map[string]any)["outputBodyJson"].(map[string]any)["output"] = "other"
		},
		"account": func(r map[string]any) { r["accountId"] = "222" },
	} {
		got := id(Place{Object: "a"}, change)
		if other := seen[got]; other != "" {
			t.Errorf("%s and %s have one id", name, other)
		}
		seen[got] = name
	}
	nameless := func(r map[string]any) { r["requestId"] = "" }
	if id(Place{Object: "a", Index: 1}, nameless) == id(Place{Object: "a", Index: 2}, nameless) {
		t.Error("two records without a request id have one id")
	}
	if again := id(Place{Object: "a", Index: 1}, nameless); again != id(Place{Object: "a", Index: 1}, nameless) {
		t.Error("a record without a request id has two ids")
	}
	if k := event.KeyOf(same); k == event.KeyOf("x"+same) {
		t.Error("an id is no UUID")
	}
}

// The pack's records are so many events.
func TestIDsOfThePack(t *testing.T) {
	ids, records := map[string]string{}, 0
	for _, f := range files {
		recs, _ := decodeAll(t, bytes.NewReader(logs(t, f.name)))
		for i := range recs {
			e, err := recs[i].Event("acme", Place{Object: f.name, Index: int64(i)}, true)
			if err != nil {
				t.Fatal(err)
			}
			records++
			ids[e.ID] = f.name
		}
	}
	// Of the samples two are there twice, byte for byte and with one request id.
	if records != 278 || len(ids) != 276 {
		t.Errorf("%d records have %d ids, want 278 and 276", records, len(ids))
	}
}

// Values of 100 MB in a record need no memory, in a prompt and in an answer.
func TestMemoryIsBounded(t *testing.T) {
	const size = 100 << 20
	head, tail := `{"timestamp":"2026-11-20T10:00:00Z","modelId":"m","operation":"Converse","input":{"inputBodyJson":{"messages":[{"content":"`, `"}]}},"output":{"outputBodyJson":{"usage":{"inputTokens":1,"outputTokens":2},"output":[`
	huge := io.MultiReader(strings.NewReader(head), io.LimitReader(repeated("lorem ipsum \\u00e9 "), size/2/17*17), strings.NewReader(tail),
		io.LimitReader(repeated("0.0625,"), size/2/7*7), strings.NewReader("1]}}}\n"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	recs, malformed := decodeAll(t, huge)
	runtime.ReadMemStats(&after)
	if len(recs) != 1 || malformed != 0 || recs[0].Usage.Tokens.Total() != 3 {
		t.Fatalf("%d records, %d malformed, %+v", len(recs), malformed, recs)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

// repeated is the text without end.
type repeated string

func (s repeated) Read(p []byte) (int, error) {
	n := 0
	for n+len(s) <= len(p) {
		n += copy(p[n:], s)
	}
	if n == 0 {
		n = copy(p, s)
	}
	return n, nil
}

// No field of a Record or an Event can hold what a prompt says: text planted in
// every value of a record that may hold some is in nothing that is kept.
func TestPlantedTextIsInNoRecord(t *testing.T) {
	planted := []string{prose, strings.ReplaceAll(prose, " ", "\\u0020"), strings.Repeat("plum ", 400), prose + `"quoted"`, "line one\nline two of the cake"}
	for _, text := range planted {
		b := line(func(r map[string]any) {
			r["unknown"] = text
			r["schemaType"] = text
			r["errorMessage"] = text
			r["identity"].(map[string]any)["name"] = text
			r["requestMetadata"] = map[string]any{"note": text, text: "x", "team": text}
			r["input"] = map[string]any{"inputBodyJson": text, "inputContentType": text, "inputBodyS3Path": text, "inputTokenCount": text}
			r["output"] = map[string]any{"outputBodyJson": []any{text, map[string]any{"output": text, "usage": map[string]any{"inputTokens": text}, "stopReason": text, "metrics": text}}, "outputBodyS3Path": text}
			for _, key := range []string{"operation", "errorCode", "region", "requestId", "accountId"} {
				r[key] = text
			}
			r["identity"].(map[string]any)["arn"] = text
		})
		recs, _ := decodeAll(t, bytes.NewReader(b))
		if len(recs) != 1 {
			t.Fatalf("%.30q: %d records", text, len(recs))
		}
		e := eventOf(t, &recs[0], true)
		kept := fmt.Sprintf("%+v %+v", recs[0], e)
		for _, word := range []string{"recipe", "grandmother", "plum", "line one", "cake"} {
			if strings.Contains(kept, word) {
				t.Errorf("%.30q: %q is kept in %s", text, word, kept)
			}
		}
	}
}

// The scanner agrees with encoding/json about what is JSON, as far as it matters:
// whatever is JSON is read to its end, and nothing makes it run away.
func TestScannerReadsWhatIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.Custom(func(t *rapid.T) any { return draw(t, 4) }).Draw(t, "value")
		raw, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		var indented bytes.Buffer
		if err := json.Indent(&indented, raw, " ", "\t"); err != nil {
			t.Fatal(err)
		}
		s := newScanner(iotest.OneByteReader(io.MultiReader(&indented, strings.NewReader(" 7"))))
		var out bytes.Buffer
		s.begin(&out)
		s.value()
		s.end()
		if s.err != nil || out.String() != string(raw) {
			t.Fatalf("%v: %s of %s", s.err, out.Bytes(), raw)
		}
		if n, ok := s.integer(); n != 7 || !ok {
			t.Fatalf("after it: %d %t", n, ok)
		}
	})
}

// A word is one where encoding/json thinks so.
func TestWords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`-?[0-9]{0,3}(\.[0-9]{0,3})?([eE][+-]?[0-9]{0,2})?|true|false|null|[0-9a-z.+E-]{0,6}`).Draw(t, "word")
		if got, want := validWord([]byte(word)), json.Valid([]byte(word)); got != want {
			t.Fatalf("%q: %t, want %t", word, got, want)
		}
	})
}

func draw(t *rapid.T, depth int) any {
	kind := rapid.IntRange(0, 6).Draw(t, "kind")
	if depth == 0 {
		kind %= 4
	}
	switch kind {
	case 0:
		return rapid.String().Draw(t, "text")
	case 1:
		return rapid.Int64().Draw(t, "number")
	case 2:
		return rapid.Bool().Draw(t, "flag")
	case 3:
		return nil
	case 4:
		return rapid.Float64().Filter(func(f float64) bool { return f == f && f < 1e300 && f > -1e300 }).Draw(t, "float")
	case 5:
		list := []any{}
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			list = append(list, draw(t, depth-1))
		}
		return list
	default:
		object := map[string]any{}
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			object[rapid.String().Draw(t, "key")] = draw(t, depth-1)
		}
		return object
	}
}

// FuzzDecoder: no bytes make the decoder crash, hang or keep a long text, and what
// is fed in pieces gives what is fed at once.
func FuzzDecoder(f *testing.F) {
	f.Add(line(nil))
	f.Add([]byte(`{"timestamp":"2025-05-15 14:17:22.000000000","modelId":"m","output":{"outputBodyJson":[{"usage":{"inputTokens":1}}]}}` + "\n{"))
	f.Add([]byte("[{},{}]\n{\"a\":\"\\u12\"}"))
	f.Add(bytes.Repeat([]byte("{\"a\":["), 300))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, bad := decodeAll(t, bytes.NewReader(b))
		pieces, alsoBad := decodeAll(t, iotest.OneByteReader(bytes.NewReader(b)))
		if bad != alsoBad || !reflect.DeepEqual(whole, pieces) {
			t.Fatalf("%d records and %d malformed at once, %d and %d in pieces", len(whole), bad, len(pieces), alsoBad)
		}
		for i := range whole {
			e, err := whole[i].Event("acme", Place{Object: "o", Index: int64(i)}, true)
			if err != nil {
				continue
			}
			if err := e.Normalize(); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			for _, s := range []string{e.Model, e.Operation, e.Region, e.ErrorType, e.ProviderRequestID, e.User} {
				if len(s) > event.MaxValueBytes {
					t.Fatalf("%d bytes are kept of %+v", len(s), e)
				}
			}
		}
	})
}

func BenchmarkDecoder(b *testing.B) {
	all := logs(b, files[2].name)
	b.SetBytes(int64(len(all)))
	b.ReportAllocs()
	for b.Loop() {
		if recs, _ := decodeAll(b, bytes.NewReader(all)); len(recs) != files[2].records {
			b.Fatal(len(recs))
		}
	}
}
