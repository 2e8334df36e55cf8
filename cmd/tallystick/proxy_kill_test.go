package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/spool"
)

// The proxy is killed so many times, each in the middle of this many clients' calls.
const (
	proxyKills   = 6
	proxyClients = 24
	callsAKill   = 600
)

// TestProxyKilled kills the proxy's process under load, again and again on one
// spool, and wants each call that a client saw finish there, with its tokens.
func TestProxyKilled(t *testing.T) {
	provider := httptest.NewServer(benchProvider())
	defer provider.Close()
	dir := t.TempDir()
	t.Setenv(runsTheProgram, "1")
	finished := map[string]bool{}
	for range proxyKills {
		for _, id := range killedProxy(t, provider.URL, dir) {
			finished[id] = true
		}
	}
	kept := spooledCalls(t, dir)
	lost := 0
	for id := range finished {
		if kept[id] != 105 {
			lost++
			t.Errorf("call %s finished, and the spool has %d tokens of it", id, kept[id])
		}
	}
	if len(finished) < proxyKills*callsAKill {
		t.Errorf("%d calls finished, want at least %d", len(finished), proxyKills*callsAKill)
	}
	fmt.Printf("edge: spool_lost=%d\n", lost)
}

// killedProxy runs the proxy until enough calls have finished, kills it in the middle
// of others, and gives the events' ids of those that finished.
func killedProxy(t *testing.T, upstream, dir string) (finished []string) {
	t.Helper()
	p, err := startProxyPart(t.Context(), "metering", upstream, dir, "--away")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // protects finished
	var n atomic.Int64
	var wg sync.WaitGroup
	transport := &http.Transport{MaxIdleConnsPerHost: proxyClients}
	defer transport.CloseIdleConnections()
	killed := make(chan struct{})
	for i := range proxyClients {
		wg.Go(func() {
			for {
				id, err := oneCall(t.Context(), transport, p.url, i%2 == 0)
				if err != nil {
					select {
					case <-killed:
					case <-time.After(30 * time.Second):
						t.Errorf("a call failed while the proxy was up: %v", err)
					}
					return
				}
				mu.Lock()
				finished = append(finished, id)
				mu.Unlock()
				if n.Add(1) == callsAKill {
					_ = p.cmd.Process.Kill() // the test sees whether it ended
					close(killed)
				}
			}
		})
	}
	wg.Wait()
	_ = p.stop() // its error says that it was killed
	return finished
}

// oneCall makes a call, streamed or not, and reads the answer to its end.
func oneCall(ctx context.Context, transport http.RoundTripper, url string, stream bool) (id string, err error) {
	url += "/openai/v1/chat/completions"
	if stream {
		url += "?stream"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(benchChatRequest))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+benchToken)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	id = resp.Header.Get(proxy.EventIDHeader)
	// A client of a stream takes its last event for the end.
	if stream && bytes.HasSuffix(body, []byte("data: [DONE]\n\n")) {
		err = nil
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return id, err
}

// keeper is a broker that keeps what it gets.
type keeper struct {
	mu    sync.Mutex // protects calls
	calls map[string]int64
	errs  []error
}

func (k *keeper) ProduceBatch(_ context.Context, recs []kafka.Record, _ []kafka.Result) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range recs {
		rec, err := event.SplitRecord(recs[i].Value)
		if err != nil {
			k.errs = append(k.errs, err)
			continue
		}
		if rec.Kind != event.UsageRecord {
			continue
		}
		var ev event.Event
		if err := ev.DecodeProto(rec.Body, event.Log); err != nil {
			k.errs = append(k.errs, err)
			continue
		}
		k.calls[strings.Clone(ev.ID)] = ev.Tokens.Total()
	}
	return nil
}

// spooledCalls is the tokens of each event in the spool.
func spooledCalls(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	s, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{Key: benchSpoolKey(), SyncLate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := &keeper{calls: map[string]int64{}}
	log := spool.NewLog(s, k, spool.LogOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() { _ = log.Run(ctx) }() // its end shows in Drain
	if left, err := log.Drain(ctx); err != nil {
		t.Fatalf("%d records stay: %v", left, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, err := range k.errs {
		t.Error(err)
	}
	return k.calls
}
