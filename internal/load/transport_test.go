package load

import (
	"net"
	"net/http"
	"sync"
	"testing"
)

// countingTransport calls then after some failed round trips.
type countingTransport struct {
	after int
	then  func()

	mu     sync.Mutex
	failed int
}

func (c *countingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		return resp, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed++; c.failed == c.after {
		c.then()
	}
	return resp, err
}

func listenOn(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
