package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// builder is the memory of one batch, reused from batch to batch.
type builder struct {
	batch Batch
	// rows in build order; finish groups them by tenant into batch.Rows.
	rows   []Row
	arena  arena.Arena // of canonical bytes
	stats  BatchStats
	frames frameBuffer
	// committed is closed when the batch is.
	committed chan struct{}
}

// builderPool keeps the memory of batches for all partitions of a Writer: a
// partition that was busy once does not hold on to megabytes.
type builderPool struct {
	chunks *arena.Pool // shared with the record buffers

	mu   sync.Mutex // protects free
	free []*builder
}

// canonicalHint is more than nearly every entry's canonical bytes.
const canonicalHint = 1024

// maxChunkBytes bounds the free memory that a Writer keeps for records, entries
// and frames of all its partitions.
const maxChunkBytes = 40 << 20

// maxFreeBuilders is how many are kept; what comes back beyond is garbage.
const maxFreeBuilders = 6

func (p *builderPool) get() *builder {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return &builder{arena: arena.New(p.chunks), frames: frameBuffer{arena: arena.New(p.chunks)}}
	}
	b := p.free[n-1]
	p.free = p.free[:n-1]
	return b
}

// put takes back a builder that nobody refers to any more.
func (p *builderPool) put(b *builder) {
	b.reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < maxFreeBuilders {
		p.free = append(p.free, b)
	}
}

func (b *builder) reset() {
	b.arena.Reset()
	b.frames.reset()
	b.rows = b.rows[:0]
	b.batch = Batch{Groups: b.batch.Groups[:0], Rows: b.batch.Rows[:0], Controls: b.batch.Controls[:0], Counts: b.batch.Counts[:0], Subjects: b.batch.Subjects[:0]}
}

// seal numbers the entry, encodes, chains and MACs it, and moves the head.
func (c *core) seal(b *builder, t *tenantState, e *chain.Entry, content Content) error {
	if t.mac == nil || t.mac.Epoch() != t.head.KeyEpoch {
		key, err := c.keys.MACKey(tenant.ID(t.id), t.head.KeyEpoch)
		if err != nil {
			return fmt.Errorf("MAC key of tenant %s epoch %d: %w", t.id, t.head.KeyEpoch, err)
		}
		t.mac = chain.NewMACKey(key, t.head.KeyEpoch)
	}
	c.touch(t)
	e.Seq = t.head.Seq + 1
	canonical := b.arena.Close(e.Append(b.arena.Open(canonicalHint)))
	leaf := c.hasher.Leaf(canonical)
	t.head.Seq = e.Seq
	t.head.Chain = c.hasher.Next(&t.head.Chain, &leaf)
	if e.Event.ReceivedAt > t.head.ReceivedAt {
		t.head.ReceivedAt = e.Event.ReceivedAt
	}
	row := Row{
		Seq: e.Seq, Kind: e.Kind, OccurredAt: e.Event.OccurredAt, Priced: e.Priced, Cost: e.Cost, Key: e.Key, Content: content,
		Corrects: e.Corrected.Seq,
		Sealed:   chain.Sealed{Canonical: canonical, Chain: t.head.Chain, Epoch: t.head.KeyEpoch},
	}
	row.MAC = t.mac.MAC(e.Seq, &t.head.Chain)
	t.rows = append(t.rows, len(b.rows))
	b.rows = append(b.rows, row)
	if e.Kind == chain.Usage || e.Kind == chain.Correction {
		c.cur[recentKey{t.number, e.Key}] = content
	}
	return nil
}

// finish groups the rows by tenant, in the order of tenant ids, which is also
// the order in which the store locks them.
func (c *core) finish(b *builder) {
	slices.SortFunc(c.touched, func(x, y *tenantState) int { return cmp.Compare(x.id, y.id) })
	for _, t := range c.touched {
		g := Group{Before: t.before, After: t.head, New: t.fresh, First: len(b.batch.Rows), Count: len(t.rows)}
		g.Before.Tenant, g.After.Tenant = t.id, t.id
		for _, i := range t.rows {
			row := b.rows[i]
			b.batch.Rows = append(b.batch.Rows, row)
		}
		b.batch.Groups = append(b.batch.Groups, g)
		t.rows = t.rows[:0]
	}
	for _, row := range c.counts {
		b.batch.Counts = append(b.batch.Counts, *row)
	}
	slices.SortFunc(b.batch.Counts, func(x, y CounterRow) int {
		return cmp.Or(cmp.Compare(x.Tenant, y.Tenant), cmp.Compare(x.ProducerID, y.ProducerID))
	})
}

// remember puts the batch's keys into the filter. It is called when the batch
// has been handed to the store: a key that is in the filter and not in the
// ledger only costs a look-up.
func (c *core) remember() {
	for k := range c.cur {
		c.filter.add(k.tenant, &k.key)
	}
}
