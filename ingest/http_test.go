package ingest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/kafka"
)

var rewrite = flag.Bool("rewrite", false, "write what the edge answers into testdata")

// TestHTTP runs testdata/*.txt. A file is a list of cases
//
//	=== what it shows
//	directives
//	body lines
//	----
//	answer
//
// with the directives
//
//	token T              the bearer token; admin when there is none, - for none
//	header NAME: VALUE
//	method M
//	edge lenient         an edge that drops unknown fields
//	kafka full|slow|away|second|mute
//	transform T…         gzip, zstd, cut N (keep N bytes), drop N (from the end)
//	body                 the lines up to ---- as they are, <FF> being the byte 0xff
//	prototext            the lines are a tallystick.v1.EventBatch
//	events N             a JSON array of N good events
//	spaces N             N bytes of white space
//
// The answer is the status, the headers that matter, the body, and what went
// into the log, producer counters last.
func TestHTTP(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { runFile(t, file) })
	}
}

func runFile(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), "=== ")
	if !ok {
		t.Fatal("no cases")
	}
	out := head
	for _, text := range strings.Split(rest, "\n=== ") {
		name, script, _ := strings.Cut(text, "\n")
		input, want, ok := strings.Cut(script, "----\n")
		if !ok {
			t.Fatalf("case %q has no ----", name)
		}
		t.Run(name, func(t *testing.T) {
			got := runCase(t, input)
			if want = strings.TrimRight(want, "\n") + "\n"; got != want && !*rewrite {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			out += "=== " + name + "\n" + input + "----\n" + got + "\n"
		})
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(strings.TrimRight(out, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// script is a case's input.
type script struct {
	method, token string
	headers       http.Header
	lenient       bool
	kafka         string
	transforms    []string
	body          []byte
}

func runCase(t *testing.T, input string) string {
	s := parseScript(t, input)
	log := &fakeLog{answer: kafkaAnswers[s.kafka]}
	var messages bytes.Buffer
	e := newEdge(t, log, func(o *ingest.Options) {
		o.Lenient = s.lenient
		o.Logger = slog.New(slog.NewTextHandler(&messages, nil))
	})
	server := httptest.NewServer(e.Handler())
	defer server.Close()
	r, err := http.NewRequest(s.method, server.URL+ingest.EventsPath, bytes.NewReader(s.body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = s.headers
	if s.token != "-" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	r.Header.Set("X-Request-Id", "r1")
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	log.become(nil)
	if !e.FlushCounters(context.Background()) {
		t.Error("counters were not sent")
	}
	recs := log.take()
	for _, where := range []string{string(answer), messages.String(), fmt.Sprint(recs)} {
		if strings.Contains(where, "SECRET") {
			t.Errorf("what a client put into the wrong place came out: %s", where)
		}
	}
	checkStats(t, e.Stats(), recs)
	return strings.Join(append([]string{formatAnswer(res, answer)}, describe(t, recs)...), "\n") + "\n"
}

// The totals of Stats and the counters in the log are two ways of counting.
func checkStats(t *testing.T, s ingest.Stats, recs []kafka.Record) {
	t.Helper()
	var accepted, refused int64
	number := regexp.MustCompile(`accepted=(\d+) refused=(\d+)`)
	for _, line := range describe(t, recs) {
		if m := number.FindStringSubmatch(line); m != nil {
			a, _ := strconv.ParseInt(m[1], 10, 64)
			r, _ := strconv.ParseInt(m[2], 10, 64)
			accepted, refused = accepted+a, refused+r
		}
	}
	if s.Accepted != accepted || s.Refused+s.Unavailable != refused || s.InFlight != 0 {
		t.Errorf("Stats %+v, counters accepted %d refused %d", s, accepted, refused)
	}
}

func formatAnswer(res *http.Response, body []byte) string {
	out := strconv.Itoa(res.StatusCode)
	for _, name := range []string{"Content-Type", "Retry-After", "WWW-Authenticate"} {
		if v := res.Header.Get(name); v != "" {
			out += "\n" + name + ": " + v
		}
	}
	return out + "\n" + strings.TrimRight(strings.ReplaceAll(string(body), `,{"index"`, ",\n  "+`{"index"`), "\n")
}

// kafkaAnswers are the ways in which the log can fail.
var kafkaAnswers = map[string]func(context.Context, []kafka.Record, []kafka.Result) error{
	"full": func(_ context.Context, _ []kafka.Record, res []kafka.Result) error {
		return failAll(res, kafka.ErrFull)
	},
	"slow": func(_ context.Context, _ []kafka.Record, res []kafka.Result) error {
		return failAll(res, kafka.ErrUnacked)
	},
	"away": func(_ context.Context, _ []kafka.Record, res []kafka.Result) error {
		return failAll(res, fmt.Errorf("dial tcp: %w", kafka.ErrUnacked))
	},
	// second: the second record of the request fails, the others are durable.
	"second": func(_ context.Context, _ []kafka.Record, res []kafka.Result) error {
		res[1] = kafka.Result{Offset: -1, Err: kafka.ErrUnacked}
		return kafka.ErrUnacked
	},
	// mute: an error, but of no record; it must not look like success.
	"mute": func(context.Context, []kafka.Record, []kafka.Result) error { return kafka.ErrClosed },
}

func parseScript(t *testing.T, input string) script {
	s := script{method: http.MethodPost, token: "admin", headers: http.Header{}}
	lines := strings.Split(strings.TrimSuffix(input, "\n"), "\n")
	for i, line := range lines {
		word, arg, _ := strings.Cut(line, " ")
		rest := []byte(strings.Join(lines[i+1:], "\n"))
		switch word {
		case "token":
			s.token = arg
		case "method":
			s.method = arg
		case "header":
			name, value, _ := strings.Cut(arg, ": ")
			s.headers.Add(name, unescape(t, []byte(value)))
		case "edge":
			s.lenient = true
		case "kafka":
			if s.kafka = arg; kafkaAnswers[arg] == nil {
				t.Fatalf("no such way to fail: %s", arg)
			}
		case "transform":
			s.transforms = append(s.transforms, arg)
		case "body", "prototext", "events", "spaces":
			s.body = transform(t, makeBody(t, word, arg, rest), s.transforms)
			return s
		default:
			t.Fatalf("no such directive: %q", line)
		}
	}
	return s
}

func makeBody(t *testing.T, word, arg string, rest []byte) []byte {
	n, _ := strconv.Atoi(arg)
	switch word {
	case "prototext":
		var batch tallystickv1.EventBatch
		if err := prototext.Unmarshal(rest, &batch); err != nil {
			t.Fatal(err)
		}
		b, err := proto.Marshal(&batch)
		if err != nil {
			t.Fatal(err)
		}
		return b
	case "events":
		var b bytes.Buffer
		for i := range n {
			fmt.Fprintf(&b, `,{"event_id":"e%d","tenant_id":"acme","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"}`, i)
		}
		return append(append([]byte{'['}, bytes.TrimPrefix(b.Bytes(), []byte{','})...), ']')
	case "spaces":
		return bytes.Repeat([]byte{' '}, n)
	default:
		return []byte(unescape(t, rest))
	}
}

var escapedByte = regexp.MustCompile(`<[0-9A-F]{2}>`)

// unescape puts the bytes in that a text file cannot hold.
func unescape(t *testing.T, b []byte) string {
	return string(escapedByte.ReplaceAllFunc(b, func(m []byte) []byte {
		c, err := hex.DecodeString(string(m[1:3]))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}))
}

func transform(t *testing.T, b []byte, steps []string) []byte {
	for _, step := range steps {
		name, arg, _ := strings.Cut(step, " ")
		n, _ := strconv.Atoi(arg)
		var out bytes.Buffer
		switch name {
		case "gzip":
			w := gzip.NewWriter(&out)
			w.Write(b)
			w.Close()
			b = out.Bytes()
		case "zstd":
			w, err := zstd.NewWriter(&out)
			if err != nil {
				t.Fatal(err)
			}
			w.Write(b)
			w.Close()
			b = out.Bytes()
		case "cut":
			b = b[:n]
		case "drop":
			b = b[:len(b)-n]
		default:
			t.Fatalf("no such transform: %s", step)
		}
	}
	return b
}
