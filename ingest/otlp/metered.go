package otlp

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
)

// Metered remembers which calls the metering proxy of this process has made events of,
// so that reports of them make no second one. The proxy notes a call before it releases
// the end of the response, so a report, which is made of that end, comes after it.
//
// A provider's id alone tells no call: it repeats. A call is known by the tenant, one of
// the ids that its response has, and how many tokens it used in all, which is what
// reports state alike; a report without tokens by the ids alone, as it costs nothing.
// Where the response's body has no id, as of embeddings and errors, a report has none
// either: then it is of the call of the same model and as many tokens that took place
// while the client waited, and of no call that another report is of. A report that states
// where its call went is known by an id or not at all.
//
// It holds at least meteredTime, and when there are very many calls the newest; after a
// restart it begins anew. The zero value is not ready: use NewMetered.
type Metered struct {
	now  func() time.Time
	seed maphash.Seed

	mu             sync.Mutex // protects what follows
	newest, before *generation
}

// generation are the calls of some time.
type generation struct {
	begun   time.Time
	size    int
	named   map[uint64]struct{}   // by tenant, id and tokens
	unnamed map[uint64][]*unnamed // by tenant, model and tokens
}

// unnamed is a call whose response has no id.
type unnamed struct {
	start, end int64  // in unix nanoseconds, as the proxy saw it
	report     uint64 // of which event id it was found to be, 0 for none yet
}

const (
	// meteredTime is how long a call is remembered.
	meteredTime = 30 * time.Minute
	// maxMetered bounds what is remembered in that time, at some 20 MB twice; a call is
	// up to four.
	maxMetered = 1 << 19
	// sizeUnnamed is how many ids a call without one is as large as.
	sizeUnnamed = 4
	// maxAlike bounds the calls without an id that are alike, of which the newest are kept.
	maxAlike = 512
	// maxSkew is how far the clocks of a client and of the proxy may be apart.
	maxSkew = int64(time.Second)
)

// NewMetered makes a memory with a clock.
func NewMetered(now func() time.Time) *Metered {
	return &Metered{now: now, seed: maphash.MakeSeed(), newest: newGeneration(now()), before: newGeneration(now())}
}

func newGeneration(at time.Time) *generation {
	return &generation{begun: at, named: map[uint64]struct{}{}, unnamed: map[uint64][]*unnamed{}}
}

// Note remembers the call of an event by the provider's ids of it, in a header and in the
// body of the response, of which either may be "". It keeps nothing of the event.
func (m *Metered) Note(ev *event.Event, header, body string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.now(); m.newest.size >= maxMetered || now.Sub(m.newest.begun) >= meteredTime {
		m.before, m.newest = m.newest, newGeneration(now)
	}
	g, used := m.newest, ev.Tokens.Total()
	for _, id := range [...]string{header, body} {
		if id != "" {
			g.named[m.key(ev.Tenant, id, used)] = struct{}{}
			g.named[m.key(ev.Tenant, id, 0)] = struct{}{}
			g.size += 2
		}
	}
	if body != "" {
		return
	}
	key := m.key(ev.Tenant, ev.Model, used)
	alike := g.unnamed[key]
	if len(alike) == maxAlike {
		alike = alike[:copy(alike, alike[maxAlike/2:])]
		g.size -= maxAlike / 2 * sizeUnnamed
	}
	g.unnamed[key] = append(alike, &unnamed{start: ev.OccurredAt, end: ev.OccurredAt + ev.LatencyMicros*1e3})
	g.size += sizeUnnamed
}

// has says whether the call of a report's event was noted. A nil memory has none.
func (m *Metered) has(e *event.Event) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.ProviderRequestID == "" {
		return m.hasUnnamed(e)
	}
	key := m.key(e.Tenant, e.ProviderRequestID, e.Tokens.Total())
	_, now := m.newest.named[key]
	_, then := m.before.named[key]
	return now || then
}

// hasUnnamed finds the call that took place within the time of the report. The report
// may come again, by its event's id, and finds the same.
func (m *Metered) hasUnnamed(e *event.Event) bool {
	key, report := m.key(e.Tenant, e.Model, e.Tokens.Total()), m.key("", e.ID, 1)
	start, end := e.OccurredAt-maxSkew, e.OccurredAt+e.LatencyMicros*1e3+maxSkew
	var found *unnamed
	for _, g := range [...]*generation{m.before, m.newest} {
		for _, c := range g.unnamed[key] {
			switch {
			case c.report == report:
				return true
			case c.report == 0 && found == nil && start <= c.start && c.end <= end:
				found = c
			}
		}
	}
	if found == nil {
		return false
	}
	found.report = report
	return true
}

func (m *Metered) key(tenant, id string, used int64) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	var n [8]byte
	h.Write(binary.BigEndian.AppendUint64(n[:0], uint64(used)))
	h.WriteString(tenant) // has no byte 0
	h.WriteByte(0)
	h.WriteString(id)
	return max(h.Sum64(), 1)
}
