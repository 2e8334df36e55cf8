package ingest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/keyring"
)

// Where sealed values are kept; their readers name the same places.
const (
	subjectTable  = "ledger.subject"
	subjectColumn = "identity"
	tagsTable     = "ledger.entry"
	tagsColumn    = "sealed_tags"
)

// hidePerson puts a pseudonym in the place of the person, and seals who it is.
// The identity of a correction is its original's, which was sent before.
func (f *frame) hidePerson(ev *event.Event, t *tenantState) error {
	f.name = append(f.name[:0], ev.User...)
	sum, err := f.hash.mac(t.pseudonym, f.name)
	if err != nil {
		return err
	}
	hex.Encode(f.user[:], sum[:16])
	// The pseudonym is copied into the arena before f.user changes again.
	ev.UserPseudonym = unsafe.String(&f.user[0], len(f.user))
	if ev.Corrects != "" {
		return nil
	}
	key, epoch := personKey{t, [16]byte(sum[:16])}, f.edge.sealEpoch(t, f.now)
	if f.subject = f.edge.persons.get(f.subject[:0], key, epoch); len(f.subject) > 0 {
		return nil
	}
	at := keyring.Place{Table: subjectTable, Column: subjectColumn, Row: ev.UserPseudonym}
	if f.subject, err = f.seal(f.subject[:0], t, keyring.SealSubject, at, f.name); err != nil {
		return err
	}
	f.edge.persons.put(key, f.subject, epoch)
	return nil
}

// hideTags moves the tags that the tenant keeps confidential into the sealed
// ones, and encodes the producer's fields anew without them.
func (f *frame) hideTags(ev *event.Event, t *tenantState) error {
	keys, err := f.edge.conf.keysOf(t, f.now)
	if err != nil || len(keys) == 0 {
		return err
	}
	f.hidden = f.hidden[:0]
	kept := ev.Tags[:0]
	for _, tag := range ev.Tags {
		if slices.Contains(keys, tag.Key) {
			f.hidden = append(f.hidden, tag)
		} else {
			kept = append(kept, tag)
		}
	}
	if len(f.hidden) == 0 {
		return nil
	}
	ev.Tags = kept
	f.pairs = event.AppendTagPairs(f.pairs[:0], f.hidden)
	at := keyring.Place{Table: tagsTable, Column: tagsColumn, Row: ev.ID}
	if f.sealed, err = f.seal(f.sealed[:0], t, keyring.SealTags, at, f.pairs); err != nil {
		return err
	}
	ev.SealedTags = f.sealed
	f.producer, f.person = ev.AppendProducerMarked(f.producer[:0])
	return nil
}

// sealEpoch is a tenant's sealing epoch as of a time in unix nanoseconds.
type sealEpoch struct {
	epoch uint32
	asked int64
}

// sealEpochLife is how long a sealed identity may be used again after the key
// was rotated or destroyed.
const sealEpochLife = int64(time.Second)

// sealEpoch is the epoch in which the tenant's identities are sealed now; 0 when
// they cannot be.
func (e *Edge) sealEpoch(t *tenantState, now int64) uint32 {
	if s := t.sealing.Load(); s != nil && now-s.asked < sealEpochLife {
		return s.epoch
	}
	epoch := e.tenants.keys.Epoch(t.id, keyring.SealSubject)
	t.sealing.Store(&sealEpoch{epoch, now})
	return epoch
}

// persons remembers sealed identities, so that a person who calls a thousand
// times a minute is sealed once. It holds nothing in plaintext.
type persons struct {
	mu         sync.RWMutex // protects what follows
	young, old map[personKey]sealedPerson
}

type personKey struct {
	tenant    *tenantState
	pseudonym [16]byte
}

type sealedPerson struct {
	sealed []byte
	epoch  uint32
}

// maxPersons bounds one of two generations, some 3 MB.
const maxPersons = 1 << 14

// get appends the identity as it was sealed in the epoch to dst, and nothing
// when it is not known; epoch 0 is none.
func (p *persons) get(dst []byte, k personKey, epoch uint32) []byte {
	p.mu.RLock()
	defer p.mu.RUnlock()
	s, ok := p.young[k]
	if !ok {
		s = p.old[k]
	}
	if s.epoch != epoch || epoch == 0 {
		return dst
	}
	return append(dst, s.sealed...)
}

// put may have sealed under a newer epoch than the one asked for before: then
// the identity is sealed once more than it needs to be.
func (p *persons) put(k personKey, sealed []byte, epoch uint32) {
	s := sealedPerson{bytes.Clone(sealed), epoch}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.young == nil || len(p.young) >= maxPersons {
		p.young, p.old = make(map[personKey]sealedPerson), p.young
	}
	p.young[k] = s
}

func (f *frame) seal(dst []byte, t *tenantState, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error) {
	sealed, err := f.edge.tenants.keys.Seal(dst, t.id, p, at, plaintext)
	if err != nil {
		return dst, fmt.Errorf("%w: tenant %s: %w", errNoUsableKey, t.id, err)
	}
	return sealed, nil
}
