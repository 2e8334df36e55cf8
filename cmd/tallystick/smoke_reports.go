package main

import (
	"context"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tokens"
)

// maxGroups is the most groups that a report gives apart from the others.
const maxGroups = 50

// checkReports compares what ClickHouse knows, as the reports tell it, with the
// oracle; that the ledger agrees with the oracle too is checked elsewhere.
func (s *smoke) checkReports(ctx context.Context) error {
	began := time.Now()
	teams, models := map[string]*oracle.Cell{}, map[string]*oracle.Cell{}
	for _, t := range s.want.tenants {
		for _, step := range []func() error{
			func() error { return s.checkSummary(ctx, t) },
			func() error { return s.checkSeries(ctx, t) },
			func() error { return s.addGroups(ctx, t, teams, "team") },
			func() error { return s.addGroups(ctx, t, models, "provider", "model") },
		} {
			if err := step(); err != nil {
				return fmt.Errorf("smoke: reports of %s: %w", t, err)
			}
		}
	}
	s.checkGroups("team", teams, s.want.Teams)
	s.checkGroups("model", models, s.want.Models)
	s.say("compared the reports of %d tenants in %.1f s", len(s.want.tenants), time.Since(began).Seconds())
	return nil
}

func (s *smoke) checkSummary(ctx context.Context, tenant string) error {
	r, err := s.api.Summary(ctx, client.Query{TenantID: tenant, Window: client.Window{Name: "all"}})
	if err != nil {
		return err
	}
	cost, err := parseUSD(r.Totals.CostUSD)
	if err != nil {
		return err
	}
	s.stored.Add(&s.stored, cost)
	w := s.want.Tenants[tenant]
	s.equalUSD(tenant, "ClickHouse: cost", cost, "oracle", w.USD.Pico())
	s.equal(tenant, "ClickHouse: requests", int64(r.Totals.Requests), "oracle", w.Accepted)
	s.equal(tenant, "ClickHouse: unpriced", int64(r.Totals.Unpriced), "oracle", w.Unpriced)
	s.equal(tenant, "ClickHouse: corrections", int64(r.Totals.Corrections), "oracle", 0)
	var v tokens.Vector
	for name, n := range r.Totals.Tokens {
		c, ok := tokens.ParseClass(name)
		if !ok {
			return fmt.Errorf("no token class %q", name)
		}
		v[c] = int64(n)
	}
	if v != tokens.Vector(w.Tokens) {
		s.fault("tenant %s: ClickHouse: tokens %v, oracle %v", tenant, v, w.Tokens)
	}
	return s.checkCoverage(ctx, tenant)
}

// smokeCoverTime is how long ClickHouse may take to cover a ledger's head.
const smokeCoverTime = 20 * time.Second

// checkCoverage compares what a report says it covers with the ledger. The edge
// writes its counters some seconds after the last event, so the head may move on
// between the two readings: then both are read again.
func (s *smoke) checkCoverage(ctx context.Context, tenant string) error {
	for began := time.Now(); ; {
		r, err := s.api.Summary(ctx, client.Query{TenantID: tenant, Window: client.Window{Name: "all"}})
		if err != nil {
			return err
		}
		h, err := s.api.Head(ctx, tenant)
		if err != nil {
			return err
		}
		c := &r.Coverage
		if c.FromSeq == 1 && c.ToSeq == h.Seq && c.HeadHash == h.ChainHash && c.Exact && c.LagEntries == 0 {
			return nil
		}
		if time.Since(began) > s.coverTime {
			s.fault("tenant %s: ClickHouse: covers entries %d to %d (hash %q, exact %t, %d behind), the ledger's head is %d (hash %q)",
				tenant, c.FromSeq, c.ToSeq, c.HeadHash, c.Exact, c.LagEntries, h.Seq, h.ChainHash)
			return nil
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkSeries compares every hour of a tenant.
func (s *smoke) checkSeries(ctx context.Context, tenant string) error {
	hours := s.want.Tenants[tenant].Hours
	start, end, err := spanOf(s.want.Hours)
	if err != nil || start.IsZero() {
		return err
	}
	r, err := s.api.TimeSeries(ctx, client.Query{TenantID: tenant, Window: client.Window{Start: &start, End: &end}, Granularity: "PT1H"})
	if err != nil {
		return err
	}
	s.equal(tenant, "ClickHouse: hours", int64(len(r.Buckets)), "oracle", int64(end.Sub(start)/time.Hour))
	for i, at := range r.Buckets {
		var requests int64
		var cost big.Int
		for _, series := range r.Series {
			if i >= len(series.CostUSD) || i >= len(series.Requests) {
				return fmt.Errorf("a series has %d of %d buckets", len(series.CostUSD), len(r.Buckets))
			}
			c, err := parseUSD(series.CostUSD[i])
			if err != nil {
				return err
			}
			cost.Add(&cost, c)
			requests += int64(series.Requests[i])
		}
		name := at.UTC().Format(time.RFC3339)
		cell := hours[name]
		if cell == nil {
			cell = &oracle.Cell{}
		}
		s.equal(tenant, "ClickHouse: requests of "+name, requests, "oracle", cell.Events)
		s.equalUSD(tenant, "ClickHouse: cost of "+name, &cost, "oracle", cell.USD.Pico())
	}
	return nil
}

// spanOf is the span of the hours' names.
func spanOf(hours map[string]*oracle.Cell) (start, end time.Time, err error) {
	for name := range hours {
		at, err := time.Parse(time.RFC3339, name)
		if err != nil {
			return start, end, fmt.Errorf("smoke: %w", err)
		}
		if start.IsZero() || at.Before(start) {
			start = at
		}
		if next := at.Add(time.Hour); next.After(end) {
			end = next
		}
	}
	return start, end, nil
}

// addGroups adds a tenant's groups to those of the tenants before.
func (s *smoke) addGroups(ctx context.Context, tenant string, sums map[string]*oracle.Cell, by ...string) error {
	r, err := s.api.Groups(ctx, client.Query{TenantID: tenant, Window: client.Window{Name: "all"}, GroupBy: by, Top: maxGroups})
	if err != nil {
		return err
	}
	for _, g := range r.Groups {
		if g.Other {
			s.fault("tenant %s: ClickHouse: more groups by %s than were sent", tenant, strings.Join(by, " and "))
		}
		name := strings.Join(g.Group, "/")
		if sums[name] == nil {
			sums[name] = &oracle.Cell{}
		}
		cost, err := parseUSD(g.Totals.CostUSD)
		if err != nil {
			return err
		}
		if !cost.IsInt64() || cost.Sign() < 0 {
			return fmt.Errorf("group %q costs %s USD", name, g.Totals.CostUSD)
		}
		sums[name].Events += int64(g.Totals.Requests)
		sums[name].Unpriced += int64(g.Totals.Unpriced)
		sums[name].USD.Add(cost.Int64())
	}
	return nil
}

// checkGroups compares the groups of all tenants with the oracle's.
func (s *smoke) checkGroups(what string, got, want map[string]*oracle.Cell) {
	for name, w := range want {
		g := got[name]
		if g == nil {
			g = &oracle.Cell{}
		}
		s.equal("all", fmt.Sprintf("ClickHouse: requests of %s %q", what, name), g.Events, "oracle", w.Events)
		s.equal("all", fmt.Sprintf("ClickHouse: unpriced of %s %q", what, name), g.Unpriced, "oracle", w.Unpriced)
		s.equalUSD("all", fmt.Sprintf("ClickHouse: cost of %s %q", what, name), g.USD.Pico(), "oracle", w.USD.Pico())
	}
	for name, g := range got {
		if want[name] == nil && g.Events > 0 {
			s.fault("tenant all: ClickHouse: %d requests of %s %q, which was not sent", g.Events, what, name)
		}
	}
}
