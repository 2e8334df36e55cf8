// Package doortest gives the tests of front doors a whole edge: real validation,
// stamping, pseudonyms and counters over a log in memory and keys that are not
// secret. Only tests import it.
package doortest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Log is an ingest.Log in memory. With Err set it keeps nothing and fails.
type Log struct {
	Err error

	mu   sync.Mutex // protects recs
	recs [][]byte
}

// ProduceBatch keeps the records' values.
func (l *Log) ProduceBatch(_ context.Context, recs []kafka.Record, _ []kafka.Result) error {
	if l.Err != nil {
		return l.Err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range recs {
		l.recs = append(l.recs, bytes.Clone(r.Value))
	}
	return nil
}

// Take returns the records' values since the last Take.
func (l *Log) Take() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	recs := l.recs
	l.recs = nil
	return recs
}

// keys knows one tenant, acme.
type keys struct{}

func (keys) Derive(id tenant.ID, p keyring.Purpose, _ uint32) ([keyring.KeyBytes]byte, error) {
	if id != "acme" {
		return [keyring.KeyBytes]byte{}, keyring.ErrNoKey
	}
	return sha256.Sum256(fmt.Appendf(nil, "%s/%s", id, p)), nil
}

func (keys) Epoch(tenant.ID, keyring.Purpose) uint32 { return 1 }

func (keys) Seal(dst []byte, _ tenant.ID, _ keyring.Purpose, _ keyring.Place, plain []byte) ([]byte, error) {
	sum := sha256.Sum256(plain)
	return append(dst, sum[:]...), nil
}

// tokens are the credentials: "good" may send for acme, "admin" for all tenants,
// "read" may not send.
type tokens struct{}

func (tokens) Authenticate(_ context.Context, token string) (authn.Principal, error) {
	switch token {
	case "good":
		return authn.Principal{Subject: "p", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest}, nil
	case "admin":
		return authn.Principal{Subject: "a", AllTenants: true, Scopes: authn.AllScopes}, nil
	case "read":
		return authn.Principal{Subject: "r", Tenants: []tenant.ID{"acme"}, Scopes: authn.Read}, nil
	default:
		return authn.Principal{}, authn.ErrUnauthenticated
	}
}

// NewEdge makes an edge over a log, with a clock.
func NewEdge(t testing.TB, log ingest.Log, now func() time.Time) *ingest.Edge {
	t.Helper()
	e, err := ingest.New(log, keys{}, tokens{}, ingest.Options{Topic: "events", EdgeID: "e", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Counting is an edge that says what it counts as refused.
type Counting struct {
	*ingest.Edge
	Said string
}

// RefuseTelemetry says and counts it.
func (c *Counting) RefuseTelemetry(rcv ingest.Received, producer, rule string, n int) {
	c.Said += fmt.Sprint(producer, " ", rule, " ", n)
	c.Edge.RefuseTelemetry(rcv, producer, rule, n)
}

// Events decodes the usage events among records.
func Events(t testing.TB, recs [][]byte) (events []event.Event) {
	t.Helper()
	for _, b := range recs {
		rec, err := event.SplitRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Kind != event.UsageRecord {
			continue
		}
		var e event.Event
		if err := e.DecodeProto(rec.Body, event.Log); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}
