package ingest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
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

// noon is the edge's clock in these tests.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// fakeLog is a Log in memory. answer decides what becomes of a record; nil
// makes every record durable.
type fakeLog struct {
	mu     sync.Mutex
	recs   []kafka.Record
	answer func(ctx context.Context, recs []kafka.Record, results []kafka.Result) error
}

func (l *fakeLog) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error {
	l.mu.Lock()
	answer := l.answer
	l.mu.Unlock()
	if answer != nil {
		if err := answer(ctx, recs, results); err != nil {
			for i := range results {
				if results[i].Err == nil {
					l.keep(recs[i])
				}
			}
			return err
		}
	}
	for i := range recs {
		l.keep(recs[i])
	}
	return nil
}

// become changes how the log answers.
func (l *fakeLog) become(answer func(context.Context, []kafka.Record, []kafka.Result) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer = answer
}

// keep copies the record: its value is the edge's again when the call returns.
func (l *fakeLog) keep(r kafka.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Value = bytes.Clone(r.Value)
	l.recs = append(l.recs, r)
}

func (l *fakeLog) take() []kafka.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	recs := l.recs
	l.recs = nil
	return recs
}

// failAll makes every record of the call fail.
func failAll(results []kafka.Result, err error) error {
	for i := range results {
		results[i] = kafka.Result{Offset: -1, Err: err}
	}
	return err
}

// fakeKeys knows the tenants acme, umbrella, erased, erasing and locked; the
// sealing key of erased is destroyed, that of erasing a moment after it was asked
// for, and the keys of locked cannot be had.
type fakeKeys struct{}

var errKeyService = errors.New("key service does not answer")

func (fakeKeys) Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error) {
	switch id {
	case "locked":
		return [keyring.KeyBytes]byte{}, errKeyService
	case "acme", "umbrella", "erased", "erasing":
		return sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", id, p, epoch)), nil
	default:
		return [keyring.KeyBytes]byte{}, keyring.ErrNoKey
	}
}

func (fakeKeys) Epoch(id tenant.ID, _ keyring.Purpose) uint32 {
	if id == "erased" {
		return 0
	}
	return 1
}

// Seal of the fake turns every byte around and says what it was bound to.
func (fakeKeys) Seal(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error) {
	if id == "erased" || id == "erasing" {
		return nil, keyring.ErrDestroyed
	}
	dst = fmt.Appendf(dst, "%s/%s/%s/%s/%s:", id, p, at.Table, at.Column, at.Row)
	for _, c := range plaintext {
		dst = append(dst, ^c)
	}
	return dst, nil
}

// fakeAuth knows a token per kind of principal.
type fakeAuth struct{}

func (fakeAuth) Authenticate(_ context.Context, token string) (authn.Principal, error) {
	switch token {
	case "admin":
		return authn.Principal{Subject: "admin", AllTenants: true, Scopes: authn.AllScopes}, nil
	case "acme":
		return authn.Principal{Subject: "acme", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest}, nil
	case "two":
		return authn.Principal{Subject: "two", Tenants: []tenant.ID{"acme", "umbrella"}, Scopes: authn.Ingest}, nil
	case "reader":
		return authn.Principal{Subject: "reader", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes &^ authn.Ingest}, nil
	case "broken":
		return authn.Principal{}, errors.New("identity provider does not answer")
	default:
		return authn.Principal{}, authn.ErrUnauthenticated
	}
}

func newEdge(t testing.TB, log ingest.Log, change ...func(*ingest.Options)) *ingest.Edge {
	t.Helper()
	opts := ingest.Options{
		Topic: "events", EdgeID: "edge-1", EdgeEpoch: 7, Now: func() time.Time { return noon },
	}
	for _, f := range change {
		f(&opts)
	}
	e, err := ingest.New(log, fakeKeys{}, fakeAuth{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// describe tells what records hold, one line each, sorted.
func describe(t testing.TB, recs []kafka.Record) (lines []string) {
	t.Helper()
	for _, r := range recs {
		if string(r.Key) != "system/0" && tenant.ID(r.Key).Partition(ingest.DefaultPartitions) != r.Partition {
			t.Errorf("record of %s in partition %d", r.Key, r.Partition)
		}
		rec, err := event.SplitRecord(r.Value)
		if err != nil {
			t.Fatalf("the edge produced no record: %v", err)
		}
		switch rec.Kind {
		case event.UsageRecord:
			lines = append(lines, "produced "+describeUsage(t, r, rec.Body))
		case event.CountersRecord:
			c, err := event.DecodeCounters(rec.Body)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("counted tenant=%s producer=%q accepted=%d refused=%d %v", c.Tenant, c.ProducerID, c.Accepted, c.Refused, c.Reasons))
		default:
			t.Fatalf("the edge produced a record of kind %d", rec.Kind)
		}
	}
	slices.Sort(lines)
	return lines
}

func describeUsage(t testing.TB, r kafka.Record, body []byte) string {
	t.Helper()
	var e event.Event
	if err := e.DecodeProto(body, event.Log); err != nil {
		t.Fatalf("the edge produced an event that does not decode: %v", err)
	}
	if err := e.Validate(true); err != nil {
		t.Fatalf("the edge produced an event that is not valid: %v", err)
	}
	if e.ReceivedAt != noon.UnixNano() || r.TimestampMs != noon.UnixMilli() || string(r.Key) != e.Tenant || r.Topic != "events" {
		t.Errorf("stamped %d, record time %d, key %s, topic %s", e.ReceivedAt, r.TimestampMs, r.Key, r.Topic)
	}
	s := fmt.Sprintf("tenant=%s event_id=%q model=%q tokens=%v", e.Tenant, e.ID, e.Model, e.Tokens)
	if e.UserPseudonym != "" {
		s += " user=" + e.UserPseudonym[:8] + "…"
	}
	return s
}
