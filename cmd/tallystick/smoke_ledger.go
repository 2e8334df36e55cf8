package main

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tokens"
)

// smokeLedger is one tenant's ledger as it was read, entry by entry.
type smokeLedger struct {
	tenant   string
	entries  int64
	last     int64 // number of the entry that was read last
	kinds    map[string]int64
	unpriced int64
	cost     big.Int
	tokens   tokens.Vector
	hours    map[int64]*hourSum

	seen      map[int32]bool // wanted events that have their entry
	conflicts map[int32]bool // wanted events of which another body was rejected
}

type hourSum struct {
	events int64
	cost   big.Int
}

// verifyLedgers has the server verify every tenant's chain.
func (s *smoke) verifyLedgers(ctx context.Context) error {
	tenants, err := s.api.Tenants(ctx)
	if err != nil {
		return fmt.Errorf("smoke: tenants: %w", err)
	}
	known := map[string]bool{}
	s.verdict = "ok"
	for _, t := range tenants {
		known[t.TenantID] = true
		h, err := s.api.Head(ctx, t.TenantID)
		if err != nil {
			return fmt.Errorf("smoke: head of %s: %w", t.TenantID, err)
		}
		v, err := s.api.Verify(ctx, t.TenantID)
		if err != nil {
			v = &client.Verification{Verdict: "unknown", Message: err.Error()}
		}
		s.judge(t.TenantID, h, v)
	}
	for _, t := range s.want.tenants {
		if !known[t] {
			s.fault("tenant %s is not listed", t)
		}
	}
	s.say("verified %d ledgers: %s", len(tenants), s.verdict)
	return nil
}

func (s *smoke) judge(tenant string, h *client.Head, v *client.Verification) {
	s.verified[tenant] = v
	switch v.Verdict {
	case "intact":
		if v.FromSeq != 1 || v.Entries != v.ToSeq || v.ToSeq < h.Seq {
			s.fault("tenant %s: %d entries from %d to %d were verified, of %d", tenant, v.Entries, v.FromSeq, v.ToSeq, h.Seq)
		}
	case "broken":
		s.broken, s.verdict = true, "broken"
		s.fault("tenant %s: the ledger is broken at entry %d: %s %s", tenant, v.FirstBadSeq, v.Reason, v.Message)
	default:
		if s.verdict == "ok" {
			s.verdict = "unknown"
		}
		s.fault("tenant %s: the ledger's verdict is %q: %s %s", tenant, v.Verdict, v.Reason, v.Message)
	}
}

// readLedgers reads every entry of every tenant of the load.
func (s *smoke) readLedgers(ctx context.Context) error {
	began := time.Now()
	var n int64
	for i, t := range s.want.tenants {
		l := &smokeLedger{
			tenant: t, kinds: map[string]int64{}, hours: map[int64]*hourSum{}, seen: map[int32]bool{}, conflicts: map[int32]bool{},
		}
		s.ledgers[t] = l
		err := s.api.Entries(ctx, t, func(e *client.Entry) error { return s.take(l, int32(i), e) })
		if err != nil {
			return fmt.Errorf("smoke: entries of %s: %w", t, err)
		}
		n += l.entries
	}
	s.say("read %d entries of %d ledgers in %.1f s", n, len(s.want.tenants), time.Since(began).Seconds())
	return nil
}

// take counts one entry and compares it with what was sent.
func (s *smoke) take(l *smokeLedger, tenant int32, e *client.Entry) error {
	l.entries++
	l.kinds[e.Kind]++
	if int64(e.Seq) != l.last+1 {
		s.fault("tenant %s: entry %d follows entry %d", l.tenant, e.Seq, l.last)
	}
	l.last = int64(e.Seq)
	if v := s.verified[l.tenant]; v != nil && v.ToSeq == e.Seq && v.HeadHash != e.ChainHash {
		s.fault("tenant %s: the chain at entry %d is %q, verified was %q", l.tenant, e.Seq, e.ChainHash, v.HeadHash)
	}
	switch e.Kind {
	case "usage":
		return s.takeUsage(l, tenant, e)
	case "rejected":
		i, ok := s.want.byID[e.EventID]
		if e.RejectReason != "conflict" || !ok || !s.want.events[i].conflict || s.want.events[i].tenant != tenant {
			s.fault("tenant %s: entry %d rejects event %q for %q, which was not sent so", l.tenant, e.Seq, e.EventID, e.RejectReason)
			return nil
		}
		l.conflicts[i] = true
	case "control", "counters":
	default:
		s.fault("tenant %s: entry %d is of kind %q", l.tenant, e.Seq, e.Kind)
	}
	return nil
}

// usedNothing reports a call that failed and has no tokens: it costs 0 at any price,
// so reports do not count it as unpriced. The rule is told here once more, as an
// auditor would read it in the documents.
func usedNothing(e *client.Entry) bool {
	for _, n := range e.Tokens {
		if n > 0 {
			return false
		}
	}
	return e.Status == "error" || e.Status == "blocked" || e.Status == "killed"
}

func (s *smoke) takeUsage(l *smokeLedger, tenant int32, e *client.Entry) error {
	if e.OccurredAt == nil {
		return fmt.Errorf("entry %d has no time", e.Seq)
	}
	var v tokens.Vector
	for name, n := range e.Tokens {
		c, ok := tokens.ParseClass(name)
		if !ok {
			return fmt.Errorf("entry %d: no token class %q", e.Seq, name)
		}
		v[c] = int64(n)
	}
	cost := new(big.Int)
	if e.CostUSD != nil {
		var err error
		if cost, err = parseUSD(*e.CostUSD); err != nil {
			return fmt.Errorf("entry %d: %w", e.Seq, err)
		}
	} else if !usedNothing(e) {
		l.unpriced++
	}
	hour := e.OccurredAt.Unix() / 3600
	sum := l.hours[hour]
	if sum == nil {
		sum = &hourSum{}
		l.hours[hour] = sum
	}
	sum.events++
	sum.cost.Add(&sum.cost, cost)
	l.cost.Add(&l.cost, cost)
	for c, n := range v {
		l.tokens[c] += n
	}
	i, ok := s.want.byID[e.EventID]
	if !ok {
		s.fault("tenant %s: entry %d has event %q, which nobody sent", l.tenant, e.Seq, e.EventID)
		return nil
	}
	if l.seen[i] {
		s.fault("tenant %s: event %q is there twice, the second time as entry %d", l.tenant, e.EventID, e.Seq)
	}
	l.seen[i] = true
	w := &s.want.events[i]
	if w.tenant != tenant || w.priced != (e.CostUSD != nil) || cost.Cmp(big.NewInt(w.pico)) != 0 || w.hour != hour || w.tokens != v {
		s.fault("tenant %s: entry %d of event %q: cost %s priced=%t hour=%d tokens=%v, oracle: tenant %s cost %s priced=%t hour=%d tokens=%v",
			l.tenant, e.Seq, e.EventID, usdText(cost), e.CostUSD != nil, hour, v,
			s.want.tenants[w.tenant], usdText(big.NewInt(w.pico)), w.priced, w.hour, w.tokens)
	}
	return nil
}

// checkLedgers compares the ledgers' sums with the oracle, and looks for events
// that have no entry.
func (s *smoke) checkLedgers(context.Context) error {
	s.checkAnswers()
	for i := range s.want.events {
		w := &s.want.events[i]
		l := s.ledgers[s.want.tenants[w.tenant]]
		if w.accepted && !l.seen[int32(i)] {
			s.fault("tenant %s: event %q is missing", l.tenant, s.idOf(int32(i)))
		}
		if w.conflict && !l.conflicts[int32(i)] {
			s.fault("tenant %s: the other body of event %q was not rejected", l.tenant, s.idOf(int32(i)))
		}
	}
	for _, t := range s.want.tenants {
		l, w := s.ledgers[t], s.want.Tenants[t]
		s.equal(t, "usage entries", l.kinds["usage"], "oracle", w.Accepted)
		s.equal(t, "conflicts", int64(len(l.conflicts)), "oracle", w.Conflicts)
		s.equal(t, "unpriced", l.unpriced, "oracle", w.Unpriced)
		s.equalUSD(t, "cost", &l.cost, "oracle", w.USD.Pico())
		if l.tokens != tokens.Vector(w.Tokens) {
			s.fault("tenant %s: tokens: ledger %v, oracle %v", t, l.tokens, w.Tokens)
		}
		s.checkHours(l, w)
	}
	return nil
}

func (s *smoke) idOf(i int32) string {
	for id, at := range s.want.byID {
		if at == i {
			return id
		}
	}
	return ""
}

// checkAnswers compares what the edge answered with what was injected.
func (s *smoke) checkAnswers() {
	for _, sp := range s.res.FirstSurprises {
		s.fault("event %q: the edge answered %q, expected %q", sp.EventID, sp.Got, sp.Expected)
	}
	got, want := &s.res.Expectation, &s.want.Expectation
	s.equal("all", "answers other than expected", s.res.Surprises, "oracle", 0)
	s.equal("all", "events in doubt", s.res.InDoubt, "oracle", 0)
	s.equal("all", "acknowledged", s.res.Acked, "oracle", s.want.sent)
	s.equal("all", "accepted", got.Accepted, "oracle", want.Accepted)
	s.equal("all", "duplicates sent", got.Duplicates, "oracle", want.Duplicates)
	s.equal("all", "conflicts sent", got.Conflicts, "oracle", want.Conflicts)
	s.equal("all", "refused", got.Refused, "oracle", want.Refused)
}

func (s *smoke) checkHours(l *smokeLedger, w *oracle.TenantExpectation) {
	for hour, sum := range l.hours {
		name := time.Unix(hour*3600, 0).UTC().Format(time.RFC3339)
		cell := w.Hours[name]
		if cell == nil {
			cell = &oracle.Cell{}
		}
		s.equal(l.tenant, "usage entries of "+name, sum.events, "oracle", cell.Events)
		s.equalUSD(l.tenant, "cost of "+name, &sum.cost, "oracle", cell.USD.Pico())
	}
	s.equal(l.tenant, "hours", int64(len(l.hours)), "oracle", int64(len(w.Hours)))
}

// equal compares a count of ours with another's.
func (s *smoke) equal(tenant, what string, got int64, whose string, want int64) {
	if got != want {
		s.fault("tenant %s: %s: %d, %s %d", tenant, what, got, whose, want)
	}
}

// equalUSD compares amounts in 1e-12 USD.
func (s *smoke) equalUSD(tenant, what string, got *big.Int, whose string, want *big.Int) {
	if got.Cmp(want) != 0 {
		s.fault("tenant %s: %s: %s USD, %s %s USD", tenant, what, usdText(got), whose, usdText(want))
	}
}
