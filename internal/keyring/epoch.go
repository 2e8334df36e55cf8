package keyring

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Series is a line of epochs that a tenant's keys go through. The numbers are
// written to disk.
type Series byte

// The series there are. Keys of Dedupe and Pseudonym belong to none: they must
// never change.
const (
	SeriesMAC        Series = 1 // MACs of entries; a control record moves the ledger on
	SeriesCheckpoint Series = 2 // signing keys of checkpoints
	SeriesAudit      Series = 3 // MACs of audit rows
	SeriesSealing    Series = 4 // everything that is sealed

	seriesCount = 5 // with the unused 0
)

var seriesNames = [seriesCount]string{"", "mac", "checkpoint", "audit", "sealing"}

// AllSeries lists the series, in order.
func AllSeries() []Series { return []Series{SeriesMAC, SeriesCheckpoint, SeriesAudit, SeriesSealing} }

// ParseSeries is the inverse of String.
func ParseSeries(name string) (Series, error) {
	if i := slices.Index(seriesNames[1:], name); i >= 0 {
		return Series(i + 1), nil
	}
	return 0, fmt.Errorf("%w: %q is none of %s", ErrPurpose, name, strings.Join(seriesNames[1:], ", "))
}

// String is the series' name.
func (s Series) String() string {
	if !s.valid() {
		return "unknown"
	}
	return seriesNames[s]
}

func (s Series) valid() bool { return s >= SeriesMAC && s <= SeriesSealing }

// root is the kind of root whose keys the series counts.
func (s Series) root() kind {
	switch {
	case s == SeriesSealing:
		return kindSealing
	case s.valid():
		return kindIntegrity
	default:
		return 0
	}
}

// series is the line that a purpose's epochs belong to, 0 when it has none.
func (p Purpose) series() Series {
	switch {
	case p == MAC:
		return SeriesMAC
	case p == Checkpoint:
		return SeriesCheckpoint
	case p == Audit:
		return SeriesAudit
	case p.seals():
		return SeriesSealing
	default:
		return 0
	}
}

// State is what an epoch's keys may be used for. The numbers are written to disk.
type State byte

// The states of an epoch.
const (
	Next       State = 1 // made, not yet used: the ledger has not met its control record
	Active     State = 2 // new MACs, signatures and seals are made under it
	VerifyOnly State = 3 // checks and opens what was made under it
	Destroyed  State = 4 // gone for good
)

// String is the state's name.
func (s State) String() string {
	switch s {
	case Next:
		return "next"
	case Active:
		return "active"
	case VerifyOnly:
		return "verify-only"
	case Destroyed:
		return "destroyed"
	default:
		return "unknown"
	}
}

// KeyEpoch is one epoch of a series of a tenant.
type KeyEpoch struct {
	Tenant tenant.ID
	Series Series
	Number uint32 // from 1
	State  State
	// Since is when it became active, or when it was made while it is next; whole
	// seconds, UTC. Zero: before the file knew times.
	Since time.Time
}

// Schedule says how old an active epoch may become. 0 is for ever.
type Schedule struct{ MAC, Checkpoint, Audit, Sealing time.Duration }

// DefaultSchedule is a year for what proves, 90 days for what seals.
func DefaultSchedule() Schedule {
	const day = 24 * time.Hour
	return Schedule{MAC: 365 * day, Checkpoint: 365 * day, Audit: 365 * day, Sealing: 90 * day}
}

func (s Schedule) of(series Series) time.Duration {
	return [seriesCount]time.Duration{0, s.MAC, s.Checkpoint, s.Audit, s.Sealing}[series]
}

// Epoch is the active epoch of a purpose: the one that new MACs, signatures and
// seals are made under. It is 0 for purposes that have no epochs, for a tenant
// without keys, and for sealing when the root is destroyed. Another process
// may move it at any time, so whoever signs asks each time. When the file
// cannot be read it answers from memory and logs why.
func (r *Ring) Epoch(id tenant.ID, p Purpose) uint32 {
	r.look()
	t, err := r.lookup(id)
	if err != nil {
		return 0
	}
	return t.active[p.series()]
}

// Epochs lists all epochs of a tenant, series by series, the oldest first.
// After the sealing root was destroyed the tenant's other active epochs show
// as verify-only: they only finish what is under way.
func (r *Ring) Epochs(id tenant.ID) ([]KeyEpoch, error) {
	r.look()
	if _, err := r.lookup(id); err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.held.tenants[id].epochs(id), nil
}

func (t *tenantKeys) epochs(id tenant.ID) (all []KeyEpoch) {
	for s, line := range t.lines {
		for _, e := range line {
			e.Tenant, e.Series = id, Series(s)
			if t.gone != 0 && e.State == Active {
				e.State = VerifyOnly
			}
			all = append(all, e)
		}
	}
	return all
}

// ReadEpochs lists the epochs of all tenants of the keyring in dir, in order of
// tenant. It needs no key service, and changes nothing. Errors: ErrNoKeyring,
// ErrPermissions, ErrCorrupt.
func ReadEpochs(dir string) (all []KeyEpoch, err error) {
	f, err := openLog(dir, false)
	if err != nil {
		return nil, err
	}
	defer f.close()
	held := newContents()
	err = f.locked(func() error {
		data, from, err := f.unread()
		if err != nil {
			return err
		}
		items, _, err := parseRecords(data, from)
		if err != nil {
			return err
		}
		return held.apply(items)
	})
	if err != nil {
		return nil, err
	}
	for _, id := range held.ids((*tenantKeys).complete) {
		all = append(all, held.tenants[id].epochs(id)...)
	}
	return all, nil
}

// Pending lists the epochs that are made and wait for the ledger, in order of
// tenant.
func (r *Ring) Pending() []KeyEpoch {
	r.look()
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []KeyEpoch
	for id, t := range r.held.tenants {
		for s, line := range t.lines {
			if n := len(line); n > 0 && line[n-1].State == Next {
				e := line[n-1]
				e.Tenant, e.Series = id, Series(s)
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b KeyEpoch) int { return strings.Compare(string(a.Tenant), string(b.Tenant)) })
	return all
}
