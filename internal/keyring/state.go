package keyring

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// kind says which root a stored key is. The numbers are written to disk.
type kind byte

const (
	kindIntegrity kind = 1
	kindSealing   kind = 2
	kindContext   kind = 3
)

// String is the kind's name in a Binding, hence part of the format.
func (k kind) String() string {
	switch k {
	case kindIntegrity:
		return "integrity"
	case kindSealing:
		return "sealing"
	case kindContext:
		return "context"
	default:
		return "unknown"
	}
}

// label says which key a root is.
type label struct {
	kind    kind
	tenant  tenant.ID
	version uint32
}

func (l label) binding() Binding {
	return Binding{Tenant: l.tenant, Kind: l.kind.String(), Version: l.version}
}

// plainKey is a root that is to be wrapped.
type plainKey struct {
	label
	created int64 // unix seconds, 0 when unknown
	secret  [KeyBytes]byte
}

func newRoot(k kind, id tenant.ID, now time.Time) plainKey {
	key := plainKey{label: label{kind: k, tenant: id, version: 1}, created: now.Unix()}
	rand.Read(key.secret[:]) // crypto/rand.Read never returns an error
	return key
}

// root is one stored root key. All but what mu protects is read-only.
type root struct {
	label
	created int64
	by      string // ID of what wrapped it, "" when the format did not say
	wrapped []byte

	secret atomic.Pointer[[KeyBytes]byte] // nil until it was first needed

	mu     sync.Mutex // protects what follows
	asking *answer    // the question that is under way
	failed error
	again  time.Time // when the service may be asked again
}

// answer is what a key service says, once done is closed.
type answer struct {
	done   chan struct{}
	secret [KeyBytes]byte
	err    error
}

// tenantKeys is all that a ring holds of one tenant.
type tenantKeys struct {
	integrity, sealing *root
	gone               int64 // when the sealing root was destroyed, in unix seconds; 0 when it was not
	lines              [seriesCount][]KeyEpoch
	active             [seriesCount]uint32 // the active epoch of each line
}

// complete reports that the tenant's keys were all made.
func (t *tenantKeys) complete() bool {
	return t.integrity != nil && (t.sealing != nil || t.gone != 0)
}

// contents is what a key file says. It is not safe for concurrent use.
type contents struct {
	tenants map[tenant.ID]*tenantKeys
	context *root
	// unclean: the file still holds a root that is destroyed.
	unclean bool
}

func newContents() *contents { return &contents{tenants: map[tenant.ID]*tenantKeys{}} }

// apply takes in what a file says next. What contradicts what it said before
// is damage: an append-only file never says two things.
func (c *contents) apply(items []item) error {
	for i := range items {
		var err error
		switch it := &items[i]; it.form {
		case itemKey:
			err = c.addKey(it)
		case itemEpoch:
			err = c.addEpoch(it)
		default:
			err = c.destroy(it)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *contents) addKey(it *item) error {
	k := &root{
		label: label{kind: kind(it.code), tenant: it.tenant, version: it.number}, created: it.at, by: it.by, wrapped: it.wrapped,
	}
	slot := &c.context
	if k.kind != kindContext {
		t := c.tenants[k.tenant]
		if t == nil {
			t = &tenantKeys{}
			c.tenants[k.tenant] = t
		}
		if k.kind == kindSealing && t.gone != 0 {
			return fmt.Errorf("%w: tenant %q has a sealing root after it was destroyed", ErrCorrupt, k.tenant)
		}
		if slot = &t.integrity; k.kind == kindSealing {
			slot = &t.sealing
		}
		for s := range Series(seriesCount) {
			if t.lines[s] == nil && s.root() == k.kind {
				t.lines[s], t.active[s] = []KeyEpoch{{Number: 1, State: Active, Since: seconds(k.created)}}, 1
			}
		}
	}
	if old := *slot; old != nil && !bytes.Equal(old.wrapped, k.wrapped) {
		return fmt.Errorf("%w: two %s roots for tenant %q", ErrCorrupt, k.kind, k.tenant)
	}
	*slot = k
	return nil
}

// addEpoch moves a line on. Said twice, it changes nothing but the time.
func (c *contents) addEpoch(it *item) error {
	s, t := Series(it.code), c.tenants[it.tenant]
	if t == nil || t.lines[s] == nil {
		return fmt.Errorf("%w: %s epoch of tenant %q, which has no keys", ErrCorrupt, s, it.tenant)
	}
	line := t.lines[s]
	newest := line[len(line)-1]
	switch {
	case it.number == newest.Number && (newest.State == it.state || newest.State == Next):
	case it.number == newest.Number+1 && newest.State != Next && it.state != Destroyed:
		line = append(line, KeyEpoch{Number: it.number})
	default:
		return fmt.Errorf("%w: %s epoch %d (%s) of tenant %q after epoch %d (%s)",
			ErrCorrupt, s, it.number, it.state, it.tenant, newest.Number, newest.State)
	}
	last := len(line) - 1
	line[last].State, line[last].Since = it.state, seconds(it.at)
	if it.state == Active {
		for i := range line[:last] {
			line[i].State = VerifyOnly
		}
		t.active[s] = it.number
	}
	t.lines[s] = line
	return nil
}

// destroy forgets a sealing root.
func (c *contents) destroy(it *item) error {
	t := c.tenants[it.tenant]
	if t == nil || t.integrity == nil {
		return fmt.Errorf("%w: destroyed sealing root of tenant %q, which has no keys", ErrCorrupt, it.tenant)
	}
	if t.sealing != nil {
		c.unclean = true
	}
	t.sealing, t.gone = nil, max(it.at, 1)
	if t.lines[SeriesSealing] == nil {
		t.lines[SeriesSealing] = []KeyEpoch{{Number: 1}}
	}
	for i := range t.lines[SeriesSealing] {
		t.lines[SeriesSealing][i].State = Destroyed
	}
	t.active[SeriesSealing] = 0
	return nil
}

// carry takes over from an earlier reading of the file what was already
// unwrapped, and refuses a file that has forgotten something: somebody has put
// an older one in its place.
func (c *contents) carry(was *contents) error {
	for id, old := range was.tenants {
		t := c.tenants[id]
		if t == nil || old.complete() && !t.complete() {
			return fmt.Errorf("%w: the keys of tenant %q are gone", ErrCorrupt, id)
		}
		if old.gone != 0 && t.gone == 0 {
			return fmt.Errorf("%w: an older file is back: the sealing root of tenant %q was destroyed", ErrCorrupt, id)
		}
		for s := range t.lines {
			if t.active[s] < old.active[s] && (Series(s) != SeriesSealing || t.gone == 0) {
				return fmt.Errorf("%w: an older file is back: tenant %q had more %s epochs", ErrCorrupt, id, Series(s))
			}
		}
		t.integrity.carry(old.integrity)
		t.sealing.carry(old.sealing)
	}
	c.context.carry(was.context)
	return nil
}

func (k *root) carry(old *root) {
	if k != nil && old != nil {
		k.secret.Store(old.secret.Load())
	}
}

// items is everything that a file must say, in order of tenants, and nothing
// of what is destroyed.
func (c *contents) items() []item {
	var out []item
	if c.context != nil {
		out = append(out, c.context.item())
	}
	for _, id := range c.ids(func(*tenantKeys) bool { return true }) {
		t := c.tenants[id]
		for _, k := range []*root{t.integrity, t.sealing} {
			if k != nil {
				out = append(out, k.item())
			}
		}
		if t.gone != 0 {
			out = append(out, item{form: itemDestroyed, code: byte(kindSealing), number: 1, at: t.gone, tenant: id})
		}
		for s, line := range t.lines {
			for i, e := range line {
				if e.State == Destroyed || i == 0 && e.Since.Equal(seconds(t.made(Series(s)))) {
					continue // the key, or its destruction, says it all
				}
				state := e.State
				if state == VerifyOnly {
					state = Active // until the next one is
				}
				out = append(out, item{form: itemEpoch, code: byte(s), number: e.Number, at: unixSeconds(e.Since), tenant: id, state: state})
			}
		}
	}
	return out
}

// made is when the root of a line was made, in unix seconds.
func (t *tenantKeys) made(s Series) int64 {
	k := t.integrity
	if s.root() == kindSealing {
		k = t.sealing
	}
	if k == nil {
		return 0
	}
	return k.created
}

// ids lists the tenants that fn picks, in order.
func (c *contents) ids(fn func(*tenantKeys) bool) []tenant.ID {
	ids := make([]tenant.ID, 0, len(c.tenants))
	for id, t := range c.tenants {
		if fn(t) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// roots lists every root key, in no order.
func (c *contents) roots() (all []*root) {
	if c.context != nil {
		all = append(all, c.context)
	}
	for _, t := range c.tenants {
		for _, k := range []*root{t.integrity, t.sealing} {
			if k != nil {
				all = append(all, k)
			}
		}
	}
	return all
}

// wrappers are the IDs of what the root keys are wrapped under.
func (c *contents) wrappers() map[string]bool {
	used := map[string]bool{}
	for _, k := range c.roots() {
		used[k.by] = true
	}
	return used
}

func (k *root) item() item {
	return item{form: itemKey, code: byte(k.kind), number: k.version, at: k.created, tenant: k.tenant, by: k.by, wrapped: k.wrapped}
}

// seconds is the time of a stored number; 0 is unknown and stays so.
func seconds(at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(at, 0).UTC()
}

func unixSeconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
