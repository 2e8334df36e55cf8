package keyring

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/tenant"
)

// KMS wraps root keys under a key that is kept elsewhere and never leaves
// there. Its methods may be called from many goroutines and keep no reference
// to their arguments.
//
// Whatever time can mend (no connection, a deadline, too many requests, a
// server in trouble, credentials that are refused now) is ErrUnavailable: the
// edge answers 503 for it and the ledger waits. A wrapped key that does not open under its
// binding is ErrMasterKey.
type KMS interface {
	// ID names the wrapping key for good. It is stored beside what it wrapped,
	// and holds no secret.
	ID() string
	// Wrap encrypts a root key so that it opens under the same binding only.
	Wrap(ctx context.Context, secret []byte, at Binding) ([]byte, error)
	// Unwrap decrypts what Wrap gave, also when the service's key was rotated
	// in between.
	Unwrap(ctx context.Context, wrapped []byte, at Binding) ([]byte, error)
}

// Binding is the encryption context of a wrapped root key: whose it is, and
// which. It is authenticated, so that a wrapped key cannot pass for another's.
type Binding struct {
	Tenant  tenant.ID // empty for the installation's own secret
	Kind    string    // integrity, sealing or context
	Version uint32
}

// Map is the binding for a service that takes names and values (AWS KMS). The
// service logs it in plain text.
func (b Binding) Map() map[string]string {
	id := string(b.Tenant)
	if id == "" {
		id = "(installation)" // no tenant can have this name, and values must not be empty
	}
	return map[string]string{
		"tallystick:tenant": id, "tallystick:kind": b.Kind, "tallystick:version": strconv.FormatUint(uint64(b.Version), 10),
	}
}

// Bytes is the binding for a service that takes additional authenticated data.
func (b Binding) Bytes() []byte {
	out := append([]byte("tallystick/keyring/1\x00"), b.Kind...)
	out = append(out, 0)
	out = append(out, b.Tenant...)
	out = append(out, 0)
	return binary.BigEndian.AppendUint32(out, b.Version)
}

// parallelCalls bounds how many calls of a key service are under way at once.
const parallelCalls = 16

// wrapAll makes stored keys of fresh or unwrapped secrets, side by side.
func (r *Ring) wrapAll(kms KMS, plain []plainKey) ([]item, error) {
	out := make([]item, len(plain))
	var g errgroup.Group
	g.SetLimit(parallelCalls)
	for i := range plain {
		g.Go(func() (err error) {
			out[i], err = r.wrap(kms, &plain[i])
			return err
		})
	}
	return out, g.Wait()
}

func (r *Ring) wrap(kms KMS, k *plainKey) (item, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	wrapped, err := kms.Wrap(ctx, k.secret[:], k.binding())
	if err != nil {
		return item{}, fmt.Errorf("wrap the %s root of tenant %q: %w", k.kind, k.tenant, deadline(ctx, err))
	}
	if len(wrapped) > maxWrappedBytes {
		return item{}, fmt.Errorf("%w: %d bytes for a wrapped key, at most %d", ErrMasterKey, len(wrapped), maxWrappedBytes)
	}
	return item{
		form: itemKey, code: byte(k.kind), number: k.version, at: k.created, tenant: k.tenant, by: kms.ID(), wrapped: wrapped,
	}, nil
}

// deadline marks an error as transient when it is the deadline's.
func deadline(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: no answer in time: %w", ErrUnavailable, err)
	}
	return err
}

// secret is the root itself. The first use asks the key service; after that it
// stays in memory, whatever becomes of the service. A failure is remembered
// for a moment, so that a service that is away is not asked by every event.
func (r *Ring) secret(k *root) ([KeyBytes]byte, error) {
	if s := k.secret.Load(); s != nil {
		return *s, nil
	}
	k.mu.Lock()
	switch {
	case k.asking != nil: // those who wait share the answer
		a := k.asking
		k.mu.Unlock()
		<-a.done
		return a.secret, a.err
	case k.failed != nil && r.now().Before(k.again):
		defer k.mu.Unlock()
		return [KeyBytes]byte{}, k.failed
	}
	a := &answer{done: make(chan struct{})}
	k.asking = a
	k.mu.Unlock()

	s, err := r.unwrap(k)
	if err != nil {
		a.err = fmt.Errorf("keyring: unwrap the %s root of tenant %q: %w", k.kind, k.tenant, err)
	} else {
		a.secret = *s
		k.secret.Store(s)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asking, k.failed, k.again = nil, a.err, r.now().Add(r.pause)
	close(a.done)
	return a.secret, a.err
}

func (r *Ring) unwrap(k *root) (*[KeyBytes]byte, error) {
	services, err := r.services(k.by)
	if err != nil {
		return nil, err
	}
	// The wait for a free call counts: a service that hangs holds nobody longer.
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	select {
	case r.calls <- struct{}{}:
	case <-ctx.Done():
		return nil, deadline(ctx, ctx.Err())
	}
	defer func() { <-r.calls }()
	for _, kms := range services {
		var s []byte
		if s, err = kms.Unwrap(ctx, k.wrapped, k.binding()); err == nil {
			if len(s) != KeyBytes {
				return nil, fmt.Errorf("%w: root of %d bytes", ErrCorrupt, len(s))
			}
			return (*[KeyBytes]byte)(s), nil
		}
	}
	return nil, deadline(ctx, err)
}

// services are those that may open what `by` wrapped: one, but for a format
// that did not say.
func (r *Ring) services(by string) ([]KMS, error) {
	for _, kms := range r.known {
		if kms.ID() == by {
			return []KMS{kms}, nil
		}
	}
	found := r.local.find(by)
	if len(found) == 0 {
		if err := r.local.load(); err != nil { // another process may have made it
			return nil, err
		}
		found = r.local.find(by)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: it is wrapped under %q, which is not configured or not there", ErrMasterKey, by)
	}
	return found, nil
}

// current is what new keys are wrapped under.
func (r *Ring) current() (KMS, error) {
	if r.kms != nil {
		return r.kms, nil
	}
	if kms := r.local.current(); kms != nil {
		return kms, nil
	}
	return nil, fmt.Errorf("%w: %s is missing beside existing keys", ErrMasterKey, masterName)
}
