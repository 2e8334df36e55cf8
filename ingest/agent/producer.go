package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/tenant"
)

// producer is what the gateway remembers of an agent: while it is connected, and
// for a while after.
type producer struct {
	key          agentauth.Key
	bucket       *rate.Limiter
	tenantBucket *rate.Limiter

	mu      sync.Mutex // protects what follows
	session *session   // its stream; nil when there is none
	endings int        // how often it was found to be revoked
	live    time.Time  // when the register last said that it is in force
	seen    time.Time  // when it last did anything
	epochs  map[int64]*epoch
}

// epoch is what was counted and heard of one epoch of an agent.
type epoch struct {
	report agentauth.Report
	dirty  bool // since the report was last written
	seen   time.Time
}

// producerOf finds or makes what is remembered of an agent that has proved who
// it is.
func (g *Gateway) producerOf(who admitted) *producer {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.agents[who.Key]
	if p == nil {
		p = &producer{
			key: who.Key, bucket: newBucket(g.opts.StreamRate), tenantBucket: g.limits.of(who.Tenant),
			epochs: map[int64]*epoch{},
		}
		g.agents[who.Key] = p
	}
	p.mu.Lock()
	p.seen = g.opts.Now() // so that it is not forgotten meanwhile
	p.mu.Unlock()
	return p
}

// at is the state of an epoch. The caller holds mu.
func (p *producer) at(n int64) *epoch {
	e := p.epochs[n]
	if e == nil {
		e = &epoch{report: agentauth.Report{Agent: p.key.Agent, Epoch: n}}
		p.epochs[n] = e
	}
	return e
}

// ended is how often the agent was found to be revoked. It is read before the
// register is asked how the agent stands.
func (p *producer) ended() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.endings
}

// admit notes that the agent is in force, and what the register knows of its
// epoch. It returns false if the agent was found to be revoked since ended was
// read: what the register said is from before then.
func (p *producer) admit(ended int, n, acked int64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.endings != ended {
		return false
	}
	p.live, p.seen = now, now
	e := p.at(n)
	e.seen = now
	e.report.AckedSeq = max(e.report.AckedSeq, acked)
	return true
}

// recentlyLive reports that the register has said so a short while ago.
func (p *producer) recentlyLive(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.live.IsZero() && now.Sub(p.live) < staleLife
}

// revoked notes that the agent is not in force, and ends its stream.
func (p *producer) revoked() {
	p.mu.Lock()
	p.live = time.Time{}
	p.endings++
	s := p.session
	p.mu.Unlock()
	if s != nil {
		s.end(errRefused)
	}
}

// attach makes s the agent's stream, unless the agent was found to be revoked
// since ended was read. Of two streams the newer one is the agent's: the older is
// a connection that it has given up.
func (p *producer) attach(s *session, ended int) bool {
	p.mu.Lock()
	older := p.session
	ok := p.endings == ended
	if ok {
		p.session = s
	}
	p.mu.Unlock()
	if ok && older != nil {
		older.end(errSuperseded)
	}
	return ok
}

func (p *producer) detach(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session == s {
		p.session = nil
	}
}

// update changes the state of an epoch, which is then to be written.
func (p *producer) update(n int64, now time.Time, change func(r *agentauth.Report)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.at(n)
	change(&e.report)
	e.dirty, e.seen, p.seen = true, now, now
}

// acked is through which frame Kafka has everything of an epoch.
func (p *producer) acked(n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at(n).report.AckedSeq
}

// count adds to a map of a report.
func count(m *map[string]int64, reason string, n int64) {
	if *m == nil {
		*m = map[string]int64{}
	}
	(*m)[reason] += n
}

// due is a report that is to be written, and where it comes from.
type due struct {
	from   *producer
	epoch  int64
	report agentauth.Report
}

// Flush writes the reports that have changed. What cannot be written is tried
// again with the next: counts are cumulative.
func (g *Gateway) Flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, g.opts.Deadline)
	defer cancel()
	byTenant := map[tenant.ID][]due{}
	for _, p := range g.producers() {
		byTenant[p.key.Tenant] = append(byTenant[p.key.Tenant], p.take()...)
	}
	run := agentauth.Run{Gateway: g.opts.GatewayID, Epoch: g.opts.Epoch}
	for id, all := range byTenant {
		for chunk := range slices.Chunk(all, maxAsks) {
			reports := make([]agentauth.Report, len(chunk))
			for i := range chunk {
				reports[i] = chunk[i].report
			}
			if err := g.register.Save(ctx, id, run, reports); err != nil {
				g.complain(ctx, "agents' reports are not written yet", err)
				for i := range chunk {
					chunk[i].from.untake(&chunk[i])
				}
			}
		}
	}
	g.forget()
}

// producers lists what is remembered, in one order.
func (g *Gateway) producers() []*producer {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := slices.Collect(maps.Values(g.agents))
	slices.SortFunc(all, func(a, b *producer) int {
		if a.key.Tenant != b.key.Tenant {
			return compare(a.key.Tenant, b.key.Tenant)
		}
		return compare(a.key.Agent, b.key.Agent)
	})
	return all
}

func compare[T ~string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// take copies the reports that have changed.
func (p *producer) take() []due {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []due
	for n, e := range p.epochs {
		if !e.dirty {
			continue
		}
		e.dirty = false
		r := e.report
		r.RefusedSamples, r.DelayedFrames = maps.Clone(r.RefusedSamples), maps.Clone(r.DelayedFrames)
		e.report.Inventory = nil // it is written once
		out = append(out, due{p, n, r})
	}
	return out
}

// untake has a report that was not written be written with the next.
func (p *producer) untake(d *due) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.at(d.epoch)
	e.dirty = true
	if e.report.Inventory == nil {
		e.report.Inventory = d.report.Inventory
	}
}

// forget drops agents that have been gone for a while, and old epochs of those
// that have not; all of it is written.
func (g *Gateway) forget() {
	before := g.opts.Now().Add(-forgetAfter)
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, p := range g.agents {
		if p.idleSince(before) {
			delete(g.agents, k)
		}
	}
}

// idleSince drops epochs that were last seen before a time, and reports whether
// nothing is left.
func (p *producer) idleSince(before time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session != nil {
		return false
	}
	for n, e := range p.epochs {
		if !e.dirty && e.seen.Before(before) {
			delete(p.epochs, n)
		}
	}
	return len(p.epochs) == 0 && p.seen.Before(before)
}

// watch ends streams of agents that were revoked since the number of revocations
// was seen, and of tenants that are not served any more. It returns the number
// that it has dealt with.
//
// An agent whose standing was read before it was revoked is in agents since
// before that read, so a later look finds it there and counts an ending, which
// admit and attach compare: none slips through between its hello and the look.
func (g *Gateway) watch(ctx context.Context, seen int64) int64 {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// Before the producers are listed: of an agent that comes in between, the number
	// that is read here may not count the revocation, and the next look does.
	version, err := g.register.Revocations(ctx)
	byTenant := map[tenant.ID][]*producer{}
	for _, p := range g.producers() {
		byTenant[p.key.Tenant] = append(byTenant[p.key.Tenant], p)
	}
	for id, all := range byTenant {
		if !g.opts.Served(id) {
			for _, p := range all {
				p.revoked()
			}
		}
	}
	if err != nil || version == seen {
		g.watchFailed(ctx, err)
		return seen
	}
	for id, all := range byTenant {
		if err := g.endRevoked(ctx, id, all); err != nil {
			g.watchFailed(ctx, err)
			return seen // and again in a second
		}
	}
	return version
}

func (g *Gateway) watchFailed(ctx context.Context, err error) {
	if err != nil {
		g.complain(ctx, "revoked agents cannot be looked for now", err)
	}
}

func (g *Gateway) endRevoked(ctx context.Context, id tenant.ID, all []*producer) error {
	names := make([]string, len(all))
	for i, p := range all {
		names[i] = p.key.Agent
	}
	revoked, err := g.register.Revoked(ctx, id, names)
	if err != nil {
		return err
	}
	for _, p := range all {
		if slices.Contains(revoked, p.key.Agent) {
			p.revoked()
		}
	}
	return nil
}

// nonceUsed notes that a tenant has nonces that are to be forgotten some day.
func (g *Gateway) nonceUsed(id tenant.ID) {
	now := g.opts.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nonces[id] = now
}

// sweepNonces forgets nonces of the tenants that have used any.
func (g *Gateway) sweepNonces(ctx context.Context) {
	g.mu.Lock()
	used := maps.Clone(g.nonces)
	g.mu.Unlock()
	for id, last := range used {
		if _, err := g.register.SweepNonces(ctx, id); err != nil {
			g.complain(ctx, "old nonces stay; the next look takes them out", err)
			return
		}
		if g.opts.Now().Sub(last) < agentauth.NonceLife+sweepInterval {
			continue
		}
		g.mu.Lock()
		if g.nonces[id].Equal(last) {
			delete(g.nonces, id)
		}
		g.mu.Unlock()
	}
}
