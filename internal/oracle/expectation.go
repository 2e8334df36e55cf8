package oracle

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Expectation is what a load must have come to once the pipeline is drained.
type Expectation struct {
	Totals
	// Late and Reordered are how many of the accepted events were disturbed so.
	Late      int64 `json:"late"`
	Reordered int64 `json:"reordered"`
	// RefusedByRule counts refusals by "field rule".
	RefusedByRule map[string]int64 `json:"refused_by_rule"`
	// RefusedOutside are refusals that name no tenant of the load.
	RefusedOutside int64 `json:"refused_outside"`
	// Hours, Models ("provider/model") and Teams ("" is untagged) take the
	// accepted events apart; each adds up to the totals.
	Hours   map[string]*Cell              `json:"hours"`
	Models  map[string]*Cell              `json:"models"`
	Teams   map[string]*Cell              `json:"teams"`
	Tenants map[string]*TenantExpectation `json:"tenants"`
}

// TenantExpectation is the part of one tenant.
type TenantExpectation struct {
	Totals
	// Hours is by the full hour of occurred_at in UTC, RFC 3339.
	Hours map[string]*Cell `json:"hours"`
}

// Totals count events by what became of them. Money and tokens are those of
// accepted events.
type Totals struct {
	Accepted   int64       `json:"accepted"`
	Duplicates int64       `json:"duplicates"`
	Conflicts  int64       `json:"conflicts"`
	Refused    int64       `json:"refused"`
	Unpriced   int64       `json:"unpriced"`
	USD        Amount      `json:"usd"`
	Tokens     TokenCounts `json:"tokens"`
}

// Cell counts accepted events and their money.
type Cell struct {
	Events   int64  `json:"events"`
	Unpriced int64  `json:"unpriced"`
	USD      Amount `json:"usd"`
}

// TokenCounts is a count per token class; in JSON an object by class name.
type TokenCounts tokens.Vector

// MarshalJSON writes all classes.
func (v *TokenCounts) MarshalJSON() ([]byte, error) {
	m := make(map[string]int64, len(v))
	for c, n := range v {
		m[tokens.Class(c).String()] = n
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (v *TokenCounts) UnmarshalJSON(b []byte) error {
	var m map[string]int64
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for name, n := range m {
		c, ok := tokens.ParseClass(name)
		if !ok {
			return fmt.Errorf("%w: no token class %q", ErrExpectation, name)
		}
		v[c] = n
	}
	return nil
}

// Expectation is the state of the tally. The result shares nothing with it.
func (t *Tally) Expectation() *Expectation {
	e := &Expectation{
		Totals: t.total.clone(), Late: t.late, Reordered: t.moved,
		RefusedByRule: map[string]int64{}, RefusedOutside: t.outside,
		Hours: map[string]*Cell{}, Models: t.models.export(), Teams: t.teams.export(),
		Tenants: make(map[string]*TenantExpectation, len(t.tenants)),
	}
	for rule, n := range t.refused {
		e.RefusedByRule[rule] = n
	}
	for i := range t.tenants {
		tt := &t.tenants[i]
		hours := make(map[string]*Cell, len(tt.hours))
		for h, c := range tt.hours {
			text := hourText(h)
			hours[text] = c.clone()
			if e.Hours[text] == nil {
				e.Hours[text] = new(Cell)
			}
			e.Hours[text].merge(c)
		}
		e.Tenants[tt.name] = &TenantExpectation{Totals: tt.totals.clone(), Hours: hours}
	}
	return e
}

// Restore puts an expectation back into a new tally, so that a later part of a
// load adds to it. Every tenant of the expectation must be one of the tally's.
func (t *Tally) Restore(e *Expectation) error {
	index := make(map[string]*tenantTally, len(t.tenants))
	for i := range t.tenants {
		index[t.tenants[i].name] = &t.tenants[i]
	}
	for name, te := range e.Tenants {
		tt := index[name]
		if tt == nil {
			return fmt.Errorf("%w: tenant %q is not part of this load", ErrExpectation, name)
		}
		tt.totals = te.Totals.clone()
		for text, c := range te.Hours {
			h, err := parseHour(text)
			if err != nil {
				return err
			}
			tt.hours[h] = c.clone()
		}
	}
	t.total, t.late, t.moved, t.outside = e.Totals.clone(), e.Late, e.Reordered, e.RefusedOutside
	for rule, n := range e.RefusedByRule {
		t.refused[rule] = n
	}
	t.models.restore(e.Models)
	t.teams.restore(e.Teams)
	return nil
}

func (n *names) export() map[string]*Cell {
	m := make(map[string]*Cell, len(n.name))
	for i, name := range n.name {
		if n.cells[i].Events > 0 {
			m[name] = n.cells[i].clone()
		}
	}
	return m
}

func (n *names) restore(m map[string]*Cell) {
	for name, c := range m {
		i := n.intern(name)
		n.cells[i] = *c.clone()
	}
}

func (c *Cell) clone() *Cell {
	d := &Cell{Events: c.Events, Unpriced: c.Unpriced}
	d.USD.AddAmount(&c.USD)
	return d
}

func (c *Cell) merge(d *Cell) {
	c.Events += d.Events
	c.Unpriced += d.Unpriced
	c.USD.AddAmount(&d.USD)
}

// clone copies the totals with their own big integer.
func (s *Totals) clone() Totals {
	d := Totals{
		Accepted: s.Accepted, Duplicates: s.Duplicates, Conflicts: s.Conflicts,
		Refused: s.Refused, Unpriced: s.Unpriced, Tokens: s.Tokens,
	}
	d.USD.AddAmount(&s.USD)
	return d
}

// Write writes the expectation as indented JSON.
func (e *Expectation) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(e)
}
