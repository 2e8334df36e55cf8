package load

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tokens"
)

// generator turns calls into batches of encoded events and injects the faults.
// fill is called by one goroutine; acknowledged by any.
type generator struct {
	*plan
	src    source
	pace   *pacer // nil: as fast as it goes
	from   int64  // calls before it are only counted
	limit  int64  // calls to send, 0 all
	taken  int64  // calls sent
	next   int64  // position of the next call
	events int64  // events put into batches

	peeked  bool
	current emission
	ended   bool
	seqs    []int64 // by tenant × producer
	poisons []*poison
	poison  int64 // how many were made

	ring  [][]*held // what becomes due at step i stands in ring[i % len]
	step  int64
	inRng int
	out   []*held // due now, in order

	mu       sync.Mutex
	ready    []*held // twins whose first body is acknowledged
	awaiting int     // twins whose first body is not
}

func newGenerator(o *Options, p *plan, src source, pace *pacer) *generator {
	g := &generator{
		plan: p, src: src, pace: pace, limit: o.Limit,
		seqs: make([]int64, len(p.assign.tenants)*producersPerTenant), poisons: poisonsOf(o.Format),
		ring: make([][]*held, o.Faults.Window+2),
	}
	if o.Resume != nil {
		g.from = o.Resume.Next
	}
	return g
}

// fill adds events to the batch until it is full, until a paced load should
// send what there is, or until the source ends (errEnd; the batch may hold
// events all the same). After errEnd it is called again as long as pending.
func (g *generator) fill(b *batch) error {
	for !b.full() {
		if h := g.due(); h != nil {
			b.add(h.encoded, &h.outcome, h.twin)
			g.events++
			continue
		}
		if g.ended {
			if g.drainRing() {
				continue
			}
			return errEnd
		}
		if err := g.advance(); err != nil {
			return err
		}
		if g.ended {
			continue
		}
		if g.pace != nil && !g.pace.admit(b, &g.current.call, g.events) {
			return nil
		}
		g.emit(b)
	}
	return nil
}

// pending says whether events are left that no batch holds: call it when all
// batches are acknowledged.
func (g *generator) pending() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.out) > 0 || len(g.ready) > 0 || g.inRng > 0 || g.awaiting > 0
}

// stop ends the source early; what is held back is still sent.
func (g *generator) stop() { g.ended = true }

// due takes an event whose moment has come.
func (g *generator) due() *held {
	if len(g.out) > 0 {
		h := g.out[0]
		g.out = g.out[1:]
		return h
	}
	if g.faults.Conflicts == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ready) == 0 {
		return nil
	}
	h := g.ready[0]
	g.ready = g.ready[1:]
	return h
}

// acknowledged releases the twins of a batch.
func (g *generator) acknowledged(b *batch) {
	if len(b.twins) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ready = append(g.ready, b.twins...)
	g.awaiting -= len(b.twins)
}

// hold puts an event into the ring, to be sent `distance` calls later.
func (g *generator) hold(h *held, distance int64) {
	slot := (g.step + distance) % int64(len(g.ring))
	g.ring[slot] = append(g.ring[slot], h)
	g.inRng++
}

// turn moves the ring by one call.
func (g *generator) turn() {
	g.step++
	slot := &g.ring[g.step%int64(len(g.ring))]
	if len(*slot) > 0 {
		g.out = append(g.out, *slot...)
		g.inRng -= len(*slot)
		clear(*slot)
		*slot = (*slot)[:0]
	}
}

// drainRing makes everything in the ring due, in order.
func (g *generator) drainRing() bool {
	for g.inRng > 0 && len(g.out) == 0 {
		g.turn()
	}
	return len(g.out) > 0
}

// advance reads the next call to send into current, unless it is there already.
func (g *generator) advance() error {
	if g.peeked {
		return nil
	}
	if g.limit > 0 && g.taken >= g.limit {
		g.ended = true
		return nil
	}
	for {
		err := g.src.next(&g.current.call)
		if errors.Is(err, errEnd) {
			g.ended = true
			return nil
		}
		if err != nil {
			return err
		}
		g.prepare(&g.current)
		if g.current.position >= g.from {
			g.peeked = true
			return nil
		}
		g.skip(&g.current)
	}
}

// prepare decides the tenant.
func (g *generator) prepare(e *emission) {
	if e.tenant < 0 {
		e.tenant = g.assign.tenant(e.position, e.client)
	}
}

// disturbance is what the dice say about one call.
type disturbance struct {
	late               time.Duration
	unpriced           int32 // position of the model, -1 none
	reorder, duplicate int64 // distance, 0 none
	poison, conflict   bool
}

func (g *generator) disturb(position int64) (x disturbance) {
	f := &g.faults
	x.unpriced = -1
	if f.Duplicates == 0 && f.Late == 0 && f.Reorder == 0 && f.Poison == 0 && f.Conflicts == 0 && f.Unpriced == 0 {
		return x
	}
	d := newDice(g.seed, streamFault, position)
	if d.chance(f.Unpriced) {
		x.unpriced = g.unpriced[d.below(int64(len(g.unpriced)))]
	}
	if d.chance(f.Late) {
		x.late = time.Hour + time.Duration(d.below(int64(f.LateMax-time.Hour)+1)).Truncate(time.Millisecond)
	}
	if d.chance(f.Reorder) {
		x.reorder = 1 + d.below(int64(f.Window))
	}
	if d.chance(f.Duplicates) {
		x.duplicate = 1
		if d.chance(0.75) {
			x.duplicate += d.below(int64(f.Window))
		}
	}
	x.poison, x.conflict = d.chance(f.Poison), d.chance(f.Conflicts)
	return x
}

// number gives the emission the next sequence number of its producer.
func (g *generator) number(e *emission) {
	at := int64(e.tenant)*producersPerTenant + g.profiles[e.profile].producer
	g.seqs[at]++
	e.seq = g.seqs[at]
}

// skip counts a call that an earlier run has sent.
func (g *generator) skip(e *emission) {
	g.number(e)
	if g.disturb(e.position).poison {
		p := g.poisons[g.poison%int64(len(g.poisons))]
		g.poison++
		if !p.foreign {
			g.number(e)
		}
	}
	g.next = e.position + 1
}

// emit sends the current call with everything the dice add to it.
func (g *generator) emit(b *batch) {
	e := &g.current
	g.peeked = false
	g.taken++
	g.next = e.position + 1
	x := g.disturb(e.position)
	if x.unpriced >= 0 {
		e.model = x.unpriced
	}
	e.at -= int64(x.late)
	e.identify(g.seed, 0)
	g.number(e)
	out := g.outcome(e)
	out.Late, out.Reordered = x.late > 0, x.reorder > 0
	b.scratch = g.append(b.scratch[:0], e)

	var twin *held
	if x.conflict {
		twin = g.twin(e, out)
		g.mu.Lock()
		g.awaiting++
		g.mu.Unlock()
	}
	if x.duplicate > 0 {
		again := out
		again.Kind = oracle.Duplicate
		g.hold(&held{encoded: slices.Clone(b.scratch), outcome: again}, x.duplicate+x.reorder)
	}
	if x.reorder > 0 {
		g.hold(&held{encoded: slices.Clone(b.scratch), outcome: out, twin: twin}, x.reorder)
	} else {
		b.add(b.scratch, &out, twin)
		g.events++
	}
	if x.poison {
		g.out = append(g.out, g.spoiled(e))
	}
	g.turn()
}

// twin has the id of e and another body.
func (g *generator) twin(e *emission, out oracle.Outcome) *held {
	t := *e
	d := newDice(g.seed, streamConflict, e.position)
	t.tokens[tokens.Output] += 1 + d.below(1000)
	out.Kind = oracle.Conflict
	return &held{encoded: g.append(nil, &t), outcome: out}
}

// spoiled is an event of its own, like e, that the edge must refuse.
func (g *generator) spoiled(e *emission) *held {
	p := g.poisons[g.poison%int64(len(g.poisons))]
	g.poison++
	bad := *e
	bad.identify(g.seed, 1)
	bad.status, bad.seq = statusOK, 0
	if !p.foreign {
		g.number(&bad)
	}
	if p.change != nil {
		p.change(&bad)
	}
	h := &held{encoded: g.append(nil, &bad)}
	if p.spoil != nil {
		h.encoded = p.spoil(g.format, h.encoded)
	}
	h.outcome = oracle.Outcome{Kind: oracle.Refused, Rule: p.rule, Tenant: bad.tenant}
	if p.foreign {
		h.outcome.Tenant = -1
	}
	return h
}
