// Package kmstest holds every keyring.KMS to the same contract. Tests only.
package kmstest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Service is a key service under test.
type Service struct {
	Key   keyring.KMS // the key to hold to the contract
	Other keyring.KMS // another key of the same service
	// Rotate makes a new version of Key's key.
	Rotate func(t *testing.T)
	// At makes a client for Key's key at another address.
	At func(t *testing.T, url string) keyring.KMS
}

// Run runs the suite.
func Run(t *testing.T, s Service) {
	t.Run("round trip", s.roundTrip)
	t.Run("wrong binding", s.wrongBinding)
	t.Run("changed bytes", s.changedBytes)
	t.Run("other key", s.otherKey)
	t.Run("service rotates", s.rotates)
	t.Run("service away", s.away)
	t.Run("service fails", s.fails)
	t.Run("service hangs", s.hangs)
	t.Run("ring", s.ring)
	t.Run("move", s.move)
}

var at = keyring.Binding{Tenant: "acme", Kind: "sealing", Version: 1}

func secret() []byte { return bytes.Repeat([]byte{7}, keyring.KeyBytes) }

func (s Service) wrap(t *testing.T, b keyring.Binding) []byte {
	t.Helper()
	wrapped, err := s.Key.Wrap(t.Context(), secret(), b)
	if err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	if bytes.Contains(wrapped, secret()) {
		t.Fatal("the secret is in what wraps it")
	}
	return wrapped
}

func (s Service) roundTrip(t *testing.T) {
	for _, b := range []keyring.Binding{at, {Kind: "context", Version: 1}, {Tenant: "system/3", Kind: "integrity", Version: 1}} {
		got, err := s.Key.Unwrap(t.Context(), s.wrap(t, b), b)
		if err != nil || !bytes.Equal(got, secret()) {
			t.Errorf("%+v: %d bytes, %v", b, len(got), err)
		}
	}
	if bytes.Equal(s.wrap(t, at), s.wrap(t, at)) {
		t.Error("the same secret is wrapped to the same bytes")
	}
}

func (s Service) wrongBinding(t *testing.T) {
	wrapped := s.wrap(t, at)
	for _, b := range []keyring.Binding{
		{Tenant: "beta", Kind: "sealing", Version: 1}, {Tenant: "acme", Kind: "integrity", Version: 1},
		{Tenant: "acme", Kind: "sealing", Version: 2}, {Kind: "sealing", Version: 1}, {},
	} {
		if _, err := s.Key.Unwrap(t.Context(), wrapped, b); !errors.Is(err, keyring.ErrMasterKey) || errors.Is(err, keyring.ErrUnavailable) {
			t.Errorf("%+v: %v, want ErrMasterKey", b, err)
		}
	}
}

func (s Service) changedBytes(t *testing.T) {
	wrapped := s.wrap(t, at)
	for _, i := range []int{len(wrapped) / 2, len(wrapped) - 1} {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if _, err := s.Key.Unwrap(t.Context(), bad, at); err == nil {
			t.Errorf("byte %d of %d changed, and it opens", i, len(wrapped))
		}
	}
}

func (s Service) otherKey(t *testing.T) {
	if s.Key.ID() == s.Other.ID() {
		t.Error("two keys have one ID")
	}
	// AWS calls it a wrong key, moto a lack of permission: either way it stays shut.
	if _, err := s.Other.Unwrap(t.Context(), s.wrap(t, at), at); !errors.Is(err, keyring.ErrMasterKey) && !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("%v, want ErrMasterKey or ErrUnavailable", err)
	}
}

func (s Service) rotates(t *testing.T) {
	id, wrapped := s.Key.ID(), s.wrap(t, at)
	s.Rotate(t)
	for _, w := range [][]byte{wrapped, s.wrap(t, at)} {
		if got, err := s.Key.Unwrap(t.Context(), w, at); err != nil || !bytes.Equal(got, secret()) {
			t.Errorf("after a rotation: %v", err)
		}
	}
	if s.Key.ID() != id {
		t.Error("a rotation changed the ID")
	}
}

func (s Service) away(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // nobody listens there now
	s.transient(t, "http://"+l.Addr().String())
}

func (s Service) fails(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		server := newServer(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", status) })
		s.transient(t, server)
	}
}

func (s Service) hangs(t *testing.T) {
	over := make(chan struct{})
	url := newServer(t, func(http.ResponseWriter, *http.Request) { <-over })
	t.Cleanup(func() { close(over) }) // before the server waits for its answers
	s.transient(t, url)
}

// transient asks a service that cannot answer: it must say so, in time.
func (s Service) transient(t *testing.T, url string) {
	t.Helper()
	kms := s.At(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := kms.Wrap(ctx, secret(), at); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("Wrap: %v, want ErrUnavailable", err)
	}
	if _, err := kms.Unwrap(ctx, []byte("wrapped"), at); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("Unwrap: %v, want ErrUnavailable", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("answered after %v", took)
	}
}

func open(t *testing.T, dir string, o keyring.Options) *keyring.Ring {
	t.Helper()
	o.Timeout = 20 * time.Second // the machine may be busy
	r, err := keyring.OpenWith(dir, o)
	if err != nil {
		t.Fatalf("open the ring: %v", err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// ring uses a keyring over the service: it survives a restart and a rotation
// in the service, and works on while the service is away.
func (s Service) ring(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, keyring.Options{KMS: s.Key})
	if _, err := r.Create("acme", "beta"); err != nil {
		t.Fatal(err)
	}
	want := macs(t, r)
	s.Rotate(t)
	if got := macs(t, open(t, dir, keyring.Options{KMS: s.Key})); got != want {
		t.Error("keys changed over a restart and a rotation in the service")
	}
	if n, err := r.Rewrap(); err != nil || n != 5 {
		t.Errorf("Rewrap: %d, %v", n, err)
	}
	if got := macs(t, open(t, dir, keyring.Options{KMS: s.Key})); got != want {
		t.Error("a rewrap changed keys")
	}
	if _, err := keyring.OpenWith(dir, keyring.Options{KMS: s.Other}); !errors.Is(err, keyring.ErrMasterKey) {
		t.Errorf("with another key: %v, want ErrMasterKey", err)
	}
}

// move takes a ring from a local master key to the service and back.
func (s Service) move(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, keyring.Options{})
	if _, err := r.Create("acme", "beta"); err != nil {
		t.Fatal(err)
	}
	want := macs(t, r)
	moved := open(t, dir, keyring.Options{KMS: s.Key})
	if _, err := moved.Rewrap(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, keyring.Options{KMS: s.Key})
	if macs(t, again) != want {
		t.Error("moving to the service changed keys")
	}
	if _, err := keyring.OpenWith(dir, keyring.Options{}); !errors.Is(err, keyring.ErrMasterKey) {
		t.Errorf("without the service: %v, want ErrMasterKey", err)
	}
	back := open(t, dir, keyring.Options{KMS: s.Other, Previous: []keyring.KMS{s.Key}})
	if _, err := back.Rewrap(); err != nil {
		t.Fatal(err)
	}
	if macs(t, open(t, dir, keyring.Options{KMS: s.Other})) != want {
		t.Error("moving to another key changed keys")
	}
}

// macs is one key of each tenant and the installation's own secret.
func macs(t *testing.T, r *keyring.Ring) (out [3][keyring.KeyBytes]byte) {
	t.Helper()
	for i, id := range []tenant.ID{"acme", "beta"} {
		var err error
		if out[i], err = r.Derive(id, keyring.MAC, 1); err != nil {
			t.Fatal(err)
		}
	}
	out[2] = r.ContextSecret()
	return out
}

// newServer serves until the test ends, and answers its address.
func newServer(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}
