package ingest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// nullLog makes everything durable at once and keeps nothing, so that what is
// measured is the edge.
type nullLog struct{}

func (nullLog) ProduceBatch(_ context.Context, _ []kafka.Record, _ []kafka.Result) error { return nil }

func benchMessages(n int) []*tallystickv1.UsageEvent {
	var out []*tallystickv1.UsageEvent
	for i := range n {
		ev := usage(fmt.Sprintf("0193a1b2-c3d4-7e5f-8a9b-%012x", i), "acme")
		ev.ProducerId, ev.ProducerEpoch, ev.ProducerSeq = "proxy-eu-1", 3, int64(i+1)
		ev.Operation, ev.Region, ev.Status, ev.HttpStatus = "chat", "eu-west-1", "ok", 200
		ev.Tokens.CacheRead, ev.LatencyUs, ev.TtftUs, ev.Streamed = 1024, 1_234_567, 234_567, true
		ev.Team, ev.Service, ev.Environment = "search", "ranker", "production"
		ev.Tags = map[string]string{"cost_center": "4711"}
		out = append(out, ev)
	}
	return out
}

// perEvent reports wall and CPU time per event: on a shared machine only the
// second means anything.
func perEvent(b *testing.B, events int, f func()) {
	b.Helper()
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		f()
	}
	used := cpu() - before
	n := float64(b.N * events)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/event")
	b.ReportMetric(float64(used.Nanoseconds())/n, "cpu-ns/event")
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchHTTP(b *testing.B, mediaType string, body []byte, events int) {
	h := newEdge(b, nullLog{}).Handler()
	perEvent(b, events, func() {
		r := httptest.NewRequest(http.MethodPost, ingest.EventsPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", mediaType)
		r.Header.Set("Authorization", "Bearer admin")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusAccepted {
			b.Fatal(w.Body)
		}
	})
}

// BenchmarkHTTP is the handler without a network.
func BenchmarkHTTP(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		batch, err := proto.Marshal(&tallystickv1.EventBatch{Events: benchMessages(n)})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("protobuf/%d", n), func(b *testing.B) { benchHTTP(b, "application/x-protobuf", batch, n) })
		b.Run(fmt.Sprintf("json/%d", n), func(b *testing.B) { benchHTTP(b, "application/json", benchJSON(b, n), n) })
	}
}

// sealingKeys are the fake's keys, and seal with those of a real keyring.
type sealingKeys struct {
	fakeKeys
	ring *keyring.Ring
}

func (k sealingKeys) Epoch(id tenant.ID, p keyring.Purpose) uint32 { return k.ring.Epoch(id, p) }

func (k sealingKeys) Seal(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error) {
	return k.ring.Seal(dst, id, p, at, plaintext)
}

// BenchmarkSealing is what a person and a confidential tag add to an event:
// 400 persons who call again and again, persons who never do, and a tag.
func BenchmarkSealing(b *testing.B) {
	const n = 1000
	ring, err := keyring.Open(filepath.Join(b.TempDir(), "keys"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer ring.Close()
	if _, err := ring.Create("acme"); err != nil {
		b.Fatal(err)
	}
	run := func(name string, user func(i int) string, confidential ...string) {
		b.Run(name, func(b *testing.B) {
			opts := ingest.Options{Topic: "events", EdgeID: "edge-1", EdgeEpoch: 7, Now: func() time.Time { return noon }}
			opts.Confidential = &fakeConfidential{version: 1, tags: map[tenant.ID][]string{"acme": confidential}}
			edge, err := ingest.New(nullLog{}, sealingKeys{ring: ring}, fakeAuth{}, opts)
			if err != nil {
				b.Fatal(err)
			}
			bodies := make([][]byte, 40)
			for j := range bodies {
				events := benchMessages(n)
				for i, ev := range events {
					ev.User = user(j*n + i)
				}
				if bodies[j], err = proto.Marshal(&tallystickv1.EventBatch{Events: events}); err != nil {
					b.Fatal(err)
				}
			}
			h, next := edge.Handler(), 0
			perEvent(b, n, func() {
				r := httptest.NewRequest(http.MethodPost, ingest.EventsPath, bytes.NewReader(bodies[next%len(bodies)]))
				next++
				r.Header.Set("Content-Type", "application/x-protobuf")
				r.Header.Set("Authorization", "Bearer admin")
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != http.StatusAccepted {
					b.Fatal(w.Body)
				}
			})
		})
	}
	run("nobody", func(int) string { return "" })
	run("known persons", func(i int) string { return fmt.Sprintf("user-%d@example.com", i%400) })
	run("new persons", func(i int) string { return fmt.Sprintf("user-%d@example.com", i) })
	run("confidential tag", func(int) string { return "" }, "cost_center")
}

func benchJSON(b *testing.B, n int) []byte {
	var parts []string
	for _, ev := range benchMessages(n) {
		parts = append(parts, fmt.Sprintf(`{"event_id":%q,"tenant_id":"acme","occurred_at":"2026-11-22T11:59:59.123456Z","producer_id":%q,"producer_epoch":%d,"producer_seq":%d,`+
			`"provider":"openai","model":"gpt-5","operation":"chat","region":"eu-west-1","status":"ok","http_status":200,"tokens":{"input":100,"cache_read":1024,"output":10},`+
			`"latency_us":1234567,"ttft_us":234567,"streamed":true,"team":"search","service":"ranker","environment":"production","tags":{"cost_center":"4711"}}`,
			ev.EventId, ev.ProducerId, ev.ProducerEpoch, ev.ProducerSeq))
	}
	return []byte("[" + strings.Join(parts, ",") + "]")
}

// BenchmarkHTTPServer is a real server and client on the loopback interface,
// both counted.
func BenchmarkHTTPServer(b *testing.B) {
	server := httptest.NewServer(newEdge(b, nullLog{}).Handler())
	defer server.Close()
	for _, n := range []int{1, 100} {
		body := benchJSON(b, n)
		b.Run(fmt.Sprintf("json/%d", n), func(b *testing.B) {
			perEvent(b, n, func() {
				r, err := http.NewRequest(http.MethodPost, server.URL, bytes.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Authorization", "Bearer admin")
				res, err := server.Client().Do(r)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != http.StatusAccepted {
					b.Fatal(res.Status)
				}
			})
		})
	}
}

// BenchmarkGRPCStream is frames of 100 events, client and server counted.
func BenchmarkGRPCStream(b *testing.B) {
	const n = 100
	stream, err := newClient(b, newEdge(b, nullLog{})).StreamEvents(as("admin"))
	if err != nil {
		b.Fatal(err)
	}
	req := &tallystickv1.SendEventsRequest{Events: benchMessages(n)}
	perEvent(b, n, func() {
		if err := stream.Send(req); err != nil {
			b.Fatal(err)
		}
	})
	if _, err := stream.CloseAndRecv(); err != nil {
		b.Fatal(err)
	}
}
