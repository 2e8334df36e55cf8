package ingest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// tenantState is what the edge knows of a tenant. All but tags, rules and sealing is
// read-only.
type tenantState struct {
	id        tenant.ID
	key       []byte // of its records; shared by all of them
	partition int32
	dedupe    *macKey
	pseudonym *macKey
	tags      atomic.Pointer[tagSetting]  // nil until an event with tags asks for it
	rules     atomic.Pointer[ruleSetting] // nil until its first event asks for them
	sealing   atomic.Pointer[sealEpoch]   // nil until its first event asks for it
}

// tenants caches the states of the tenants that send. Unknown tenants are not
// remembered: they may exist a moment later.
type tenants struct {
	keys       Keys
	partitions int32
	max        int

	mu sync.RWMutex // protects m
	m  map[string]*tenantState
}

func newTenants(keys Keys, partitions int32, max int) *tenants {
	return &tenants{keys: keys, partitions: partitions, max: max, m: map[string]*tenantState{}}
}

// get returns the state of the tenant. Errors: errUnknownTenant, errNoUsableKey.
func (t *tenants) get(id string) (*tenantState, error) {
	t.mu.RLock()
	s := t.m[id]
	t.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	s, err := t.load(id)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= t.max {
		// The order of a Go map is random enough here: a hot tenant that is
		// dropped is back with its next event.
		for old := range t.m {
			delete(t.m, old)
			break
		}
	}
	t.m[string(s.id)] = s
	return s, nil
}

func (t *tenants) load(name string) (*tenantState, error) {
	if !tenant.ValidID(name) {
		return nil, errUnknownTenant
	}
	// The name may alias a request's buffer.
	id := tenant.ID(strings.Clone(name))
	dedupe, err := t.mac(id, keyring.Dedupe)
	if err != nil {
		return nil, err
	}
	pseudonym, err := t.mac(id, keyring.Pseudonym)
	if err != nil {
		return nil, err
	}
	return &tenantState{
		id: id, key: []byte(id), partition: id.Partition(t.partitions),
		dedupe: dedupe, pseudonym: pseudonym,
	}, nil
}

func (t *tenants) mac(id tenant.ID, purpose keyring.Purpose) (*macKey, error) {
	key, err := t.keys.Derive(id, purpose, 0)
	switch {
	case errors.Is(err, keyring.ErrNoKey):
		return nil, errUnknownTenant
	case err != nil:
		return nil, fmt.Errorf("%w: tenant %s: %w", errNoUsableKey, id, err)
	}
	return newMACKey(key)
}
