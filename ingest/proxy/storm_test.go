package proxy_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// moody is a provider that streams with pauses, answers in one piece, refuses or breaks.
func moody(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	switch rand.IntN(8) {
	case 0:
		panic(http.ErrAbortHandler)
	case 1:
		http.Error(rw, `{"error":{"message":"busy"}}`, http.StatusTooManyRequests)
		return
	case 2:
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, `{"id":"r","model":"gpt-4o","choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}`)
		return
	}
	rw.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(rw).Flush
	breaks := rand.IntN(3) == 0
	for i, chunk := range streams[0].chunks {
		select {
		case <-time.After(time.Duration(rand.IntN(500)) * time.Millisecond):
		case <-r.Context().Done():
			return
		}
		if breaks && i == 2 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(rw, chunk)
		_ = flush()
	}
}

// visit is a client that calls once or twice on a connection, and may leave at any time.
func visit(addr, raw string) {
	c, err := net.Dial("tcp", addr) //nolint:noctx // it has a deadline
	if err != nil {
		return // the proxy is closed
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, strings.Repeat(raw, 1+rand.IntN(2)))
	switch rand.IntN(3) {
	case 0:
		_ = c.SetReadDeadline(time.Now().Add(4 * time.Second))
		_, _ = io.Copy(io.Discard, c)
	case 1:
		_, _ = io.ReadFull(c, make([]byte, rand.IntN(600)))
	case 2:
		time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond)
	}
}

// Whatever clients and providers do, also when the server is closed meanwhile, every call
// makes one event, and nothing is left of it.
func TestStormOfStreams(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("storm", func(t *testing.T) {
		w := newWorld(t, moody, nil)
		keepRunning(t, w.proxy)
		var calls, parked atomic.Int64
		w.front = newFront(t, w.proxy, nil, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			parked.Add(w.proxy.Stats().Parked)
			w.proxy.ServeHTTP(rw, r)
		}))
		addr := strings.TrimPrefix(w.front.URL, "http://")
		raw := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
			streams[0].path, token, len(streams[0].request), streams[0].request)
		end := time.Now().Add(4 * time.Second)
		var clients sync.WaitGroup
		for range 60 {
			clients.Go(func() {
				for time.Now().Before(end) {
					visit(addr, raw)
				}
			})
		}
		time.Sleep(time.Until(end))
		if err := w.front.Close(); err != nil {
			t.Error(err)
		}
		clients.Wait()
		events, ids := w.sink.take(), map[string]bool{}
		for i := range events {
			ids[events[i].ID] = true
		}
		if s := w.proxy.Stats(); int64(len(events)) != calls.Load() || len(ids) != len(events) || s.InFlight != 0 || s.Parked != 0 || s.Gap != 0 {
			t.Errorf("%d calls made %d events of %d ids; %+v", calls.Load(), len(events), len(ids), s)
		}
		if parked.Load() == 0 {
			t.Error("nothing was parked")
		}
		t.Logf("%d calls", calls.Load())
	})
	left := 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = runtime.NumGoroutine() - before; left <= 0 {
			return
		}
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines are left\n%s", left, buf[:runtime.Stack(buf, true)])
}
