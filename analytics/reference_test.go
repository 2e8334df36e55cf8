package analytics_test

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// coverage is a CoverageReader that says what it is told.
type coverage struct {
	mu  sync.Mutex
	seq map[string]int64
}

func (c *coverage) set(id string, seq int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seq == nil {
		c.seq = map[string]int64{}
	}
	c.seq[id] = seq
}

// Coverage makes up a chain hash and a time from the number.
func (c *coverage) Coverage(_ context.Context, id tenant.ID) (int64, [32]byte, int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seq := c.seq[string(id)]
	return seq, [32]byte{byte(seq)}, seq * int64(time.Second), nil
}

// covering says that all of these entries are confirmed.
func covering(entries []*chain.Entry) *coverage {
	c := &coverage{}
	for _, e := range entries {
		c.set(e.Event.Tenant, max(c.seq[e.Event.Tenant], e.Seq))
	}
	return c
}

// value is what an entry carries of a dimension, the slow and obvious way.
func value(e *chain.Entry, dimension string) string {
	ev := &e.Event
	if key, isTag := strings.CutPrefix(dimension, "tag:"); isTag {
		i := slices.IndexFunc(ev.Tags, func(t event.Tag) bool { return t.Key == key })
		if i < 0 {
			return ""
		}
		return ev.Tags[i].Value
	}
	return map[string]string{
		"provider": ev.Provider, "model": ev.Model, "operation": ev.Operation, "region": ev.Region, "service_tier": ev.ServiceTier,
		"status": ev.Status, "team": ev.Team, "service": ev.Service, "feature": ev.Feature, "agent": ev.Agent,
		"user_pseudonym": ev.UserPseudonym, "end_customer": ev.EndCustomer, "environment": ev.Environment,
		"gpu_state": ev.GPUState, "purchase_option": ev.PurchaseOption,
	}[dimension]
}

// matching are the usage and corrections of a tenant within a span that pass
// the filters.
func matching(entries []*chain.Entry, id tenant.ID, span report.Span, filters []report.Filter) []*chain.Entry {
	var found []*chain.Entry
	for _, e := range entries {
		at := time.Unix(0, e.Event.OccurredAt)
		if e.Event.Tenant != string(id) || e.Kind != chain.Usage && e.Kind != chain.Correction || at.Before(span.Start) || !at.Before(span.End) {
			continue
		}
		if slices.ContainsFunc(filters, func(f report.Filter) bool { return !slices.Contains(f.Values, value(e, f.Dimension)) }) {
			continue
		}
		found = append(found, e)
	}
	return found
}

// totalsOf adds up what the usage entries come to in the end: of each only what
// its newest correction says, so that no difference is added anywhere.
func totalsOf(t testing.TB, entries []*chain.Entry) (sum report.Totals) {
	type original struct {
		tenant string
		seq    int64
	}
	newest := map[original]*chain.Entry{}
	for _, e := range entries {
		if e.Kind == chain.Correction {
			sum.Corrections++
			if newest[original{e.Event.Tenant, e.Corrected.Seq}] == nil {
				t.Fatalf("correction %d of %s counts elsewhere than its original", e.Seq, e.Event.Tenant)
			}
			newest[original{e.Event.Tenant, e.Corrected.Seq}] = e
			continue
		}
		newest[original{e.Event.Tenant, e.Seq}] = e
		sum.Requests++
		if e.Event.Status != event.StatusOK {
			sum.Failed++
		}
	}
	for _, e := range newest {
		cost, priced := e.Cost, e.Priced
		if e.Kind == chain.Correction {
			cost, priced = e.Corrected.NetCost, e.Corrected.Priced
		}
		failed := e.Event.Status == event.StatusBlocked || e.Event.Status == event.StatusError
		if !priced {
			if !failed || e.Event.Tokens.Total() > 0 || e.Event.GPUMicros > 0 { // else it costs 0 at any price
				sum.Unpriced++
			}
		} else if err := sum.Cost.AddPico(cost); err != nil {
			t.Fatal(err)
		}
		if e.Event.Estimated {
			sum.Estimated++
		}
		for c, n := range e.Event.Tokens {
			sum.Tokens[c] += n
		}
		sum.GPUMicros += e.Event.GPUMicros
	}
	return sum
}

// groupsOf groups entries, greatest cost first, and puts all beyond top into
// the last group.
func groupsOf(t testing.TB, entries []*chain.Entry, by []string, top int) []report.Group {
	members := map[[report.MaxGroupBy]string][]*chain.Entry{}
	for _, e := range entries {
		var key [report.MaxGroupBy]string
		for i, d := range by {
			key[i] = value(e, d)
		}
		members[key] = append(members[key], e)
	}
	var groups []report.Group
	for key, of := range members {
		groups = append(groups, report.Group{Values: slices.Clone(key[:len(by)]), Totals: totalsOf(t, of)})
	}
	slices.SortFunc(groups, func(a, b report.Group) int {
		return cmp.Or(b.Totals.Cost.Cmp(a.Totals.Cost), slices.Compare(a.Values, b.Values))
	})
	if top == 0 {
		top = report.DefaultTop
	}
	if len(groups) <= top {
		return groups
	}
	other := report.Group{Other: true}
	for _, g := range groups[top:] {
		if err := other.Totals.Add(&g.Totals); err != nil {
			t.Fatal(err)
		}
	}
	return append(groups[:top:top], other)
}

// bucketOf is the start of the bucket that a time is in, found by its wall clock.
func bucketOf(buckets []time.Time, at time.Time) int {
	i := 0
	for i+1 < len(buckets) && !at.Before(buckets[i+1]) {
		i++
	}
	return i
}

// clone copies an entry that the generator will fill again.
func clone(e *chain.Entry) *chain.Entry {
	c := *e
	c.Event.Tags = slices.Clone(e.Event.Tags)
	return &c
}
