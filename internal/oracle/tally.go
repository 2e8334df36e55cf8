package oracle

import (
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// ErrExpectation says that an expectation cannot be read or continued.
var ErrExpectation = errors.New("oracle: bad expectation")

// Kind is what must become of an event that was sent.
type Kind uint8

// The kinds of outcomes.
const (
	// Accepted: its id was not seen before; it becomes one entry.
	Accepted Kind = iota
	// Duplicate: the same id and body again; counted, no entry.
	Duplicate
	// Conflict: the same id with another body; a ledgered rejection.
	Conflict
	// Refused by the edge, with a field and a rule; never in the log.
	Refused
)

// Outcome is what must become of one event. Tenant, Model and Team are the
// numbers that the tally gave to their names.
type Outcome struct {
	Kind   Kind
	Priced bool
	// Free says that the call failed and used nothing: without a price it counts as
	// unpriced no more than with one.
	Free bool
	// Late and Reordered say how the event was disturbed; it counts all the same.
	Late, Reordered bool
	Tenant          int32 // -1: a refused event that names no tenant of ours
	Model           int32
	Team            int32
	Hour            int64 // hours since 1970 in UTC, of occurred_at
	CostPico        int64
	Tokens          tokens.Vector
	// Rule is "field rule", of a refused event only.
	Rule string
}

// Tally adds outcomes up. It is not safe for use by several goroutines at once.
type Tally struct {
	tenants []tenantTally
	models  names
	teams   names
	refused map[string]int64
	total   Totals
	// outside counts refused events that name no tenant of ours.
	outside int64
	late    int64
	moved   int64
}

type tenantTally struct {
	name   string
	totals Totals
	hours  map[int64]*Cell
	// last caches the cell of the hour that was used last.
	last     *Cell
	lastHour int64
}

// names gives numbers to names and a cell to each.
type names struct {
	index map[string]int32
	name  []string
	cells []Cell
}

func (n *names) intern(name string) int32 {
	if i, ok := n.index[name]; ok {
		return i
	}
	if n.index == nil {
		n.index = map[string]int32{}
	}
	i := int32(len(n.name))
	n.index[name] = i
	n.name = append(n.name, name)
	n.cells = append(n.cells, Cell{})
	return i
}

// NewTally returns a tally of the tenants, whose numbers are their positions.
func NewTally(tenantIDs []string) *Tally {
	t := &Tally{tenants: make([]tenantTally, len(tenantIDs)), refused: map[string]int64{}}
	for i, id := range tenantIDs {
		t.tenants[i] = tenantTally{name: id, hours: map[int64]*Cell{}}
	}
	return t
}

// Model gives a number to "provider/model".
func (t *Tally) Model(name string) int32 { return t.models.intern(name) }

// Team gives a number to a team; "" is untagged.
func (t *Tally) Team(name string) int32 { return t.teams.intern(name) }

// Add counts an outcome.
func (t *Tally) Add(o *Outcome) {
	t.total.count(o)
	if o.Kind == Accepted && o.Late {
		t.late++
	}
	if o.Kind == Accepted && o.Reordered {
		t.moved++
	}
	if o.Kind == Refused {
		t.refused[o.Rule]++
	}
	if o.Tenant < 0 {
		t.outside++
		return
	}
	tt := &t.tenants[o.Tenant]
	tt.totals.count(o)
	if o.Kind == Accepted {
		tt.hour(o.Hour).count(o)
		t.models.cells[o.Model].count(o)
		t.teams.cells[o.Team].count(o)
	}
}

func (t *tenantTally) hour(h int64) *Cell {
	if t.last != nil && t.lastHour == h {
		return t.last
	}
	c := t.hours[h]
	if c == nil {
		c = new(Cell)
		t.hours[h] = c
	}
	t.last, t.lastHour = c, h
	return c
}

// count adds an outcome to the totals.
func (s *Totals) count(o *Outcome) {
	switch o.Kind {
	case Accepted:
		s.Accepted++
		if !o.Priced && !o.Free {
			s.Unpriced++
		}
		s.USD.Add(o.CostPico)
		for c, n := range o.Tokens {
			s.Tokens[c] += n
		}
	case Duplicate:
		s.Duplicates++
	case Conflict:
		s.Conflicts++
	case Refused:
		s.Refused++
	}
}

func (c *Cell) count(o *Outcome) {
	c.Events++
	if !o.Priced && !o.Free {
		c.Unpriced++
	}
	c.USD.Add(o.CostPico)
}

// hourText is the RFC 3339 form of an hour number.
func hourText(h int64) string { return time.Unix(h*3600, 0).UTC().Format(time.RFC3339) }

func parseHour(s string) (int64, error) {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Unix()%3600 != 0 {
		return 0, fmt.Errorf("%w: %q is not a full hour", ErrExpectation, s)
	}
	return at.Unix() / 3600, nil
}
