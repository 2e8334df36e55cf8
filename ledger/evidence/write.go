package evidence

import (
	"context"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/verify"
)

// The members of a package.
const (
	manifestName = "manifest.json"
	entriesName  = "entries.tsx"
	auditName    = "audit.tsx"
	proofsName   = "proofs.json"
	keysName     = "keys.txt"
	readmeName   = "README.txt"

	ledgerLog = "ledger"
	auditLog  = "audit"
)

//go:embed readme.txt
var readme []byte

// writeEntries writes the entries and adds them up into the manifest.
func (p *Plan) writeEntries(ctx context.Context, z *zipWriter, m *Manifest, progress func(done, total int64)) error {
	w, err := z.begin(entriesName)
	if err != nil {
		return err
	}
	a := &adder{m: m, dates: p.req.Dates}
	if _, err := export(ctx, p.stores.Ledger, ledgerMagic, p.req.Tenant, p.From, p.To, w, progress, a.look); err != nil {
		return err
	}
	a.finish()
	return z.end()
}

// adder adds up the entries of a package.
type adder struct {
	m            *Manifest
	dates        *Dates
	entry        chain.Entry
	total, dated sum
	occurred     bounds
	received     bounds
}

type sum struct {
	entries, priced, unpriced int64
	cost                      money.Sum
}

// bounds are the earliest and the latest time, unix nanoseconds; 0 is none.
type bounds struct{ first, last int64 }

func (b *bounds) add(ns int64) {
	if ns == 0 {
		return
	}
	if b.first == 0 || ns < b.first {
		b.first = ns
	}
	if b.last == 0 || ns > b.last {
		b.last = ns
	}
}

// look adds one entry. One whose bytes are not canonical ends the package: that
// ledger is broken, and a plain export shows how.
func (a *adder) look(r *verify.Row) error {
	e := &a.entry
	if err := e.Decode(r.Canonical); err != nil {
		return fmt.Errorf("entry %d: %w", r.Seq, err)
	}
	a.m.Kinds[e.Kind.String()]++
	if err := a.total.add(e); err != nil {
		return err
	}
	a.occurred.add(e.Event.OccurredAt)
	a.received.add(e.Event.ReceivedAt)
	if at := e.Event.OccurredAt; a.dates != nil && at != 0 && at >= a.dates.From.UnixNano() && at < a.dates.Before.UnixNano() {
		return a.dated.add(e)
	}
	return nil
}

func (s *sum) add(e *chain.Entry) error {
	s.entries++
	switch {
	case e.Priced:
		s.priced++
		return s.cost.AddPico(e.Cost)
	case e.Kind == chain.Usage:
		s.unpriced++
	}
	return nil
}

func (s *sum) count() Count {
	return Count{s.entries, s.priced, s.unpriced, []Money{{"USD", s.cost.String()}}}
}

// finish writes the sums into the manifest.
func (a *adder) finish() {
	a.m.Totals = a.total.count()
	if a.dates != nil {
		dated := a.dated.count()
		a.m.Dated = &dated
	}
	a.m.Occurred, a.m.Received = a.occurred.times(), a.received.times()
}

// writeCheckpoints writes the notes of both logs, the statements of keys, and
// the keys.
func (p *Plan) writeCheckpoints(z *zipWriter) error {
	var keys strings.Builder
	keys.WriteString("# The public keys that signed. Trust them only if you know them from elsewhere.\n")
	logs := []struct {
		log   string
		keys  []Key
		notes []Checkpoint
	}{{ledgerLog, p.keys, withCover(p.inside, p.Checkpoint)}}
	if p.audit != nil {
		logs = append(logs, struct {
			log   string
			keys  []Key
			notes []Checkpoint
		}{auditLog, p.audit.keys, []Checkpoint{p.audit.checkpoint}})
	}
	for _, l := range logs {
		for _, k := range l.keys {
			keys.WriteString(k.VKey + "\n")
			if err := z.add(fmt.Sprintf("checkpoints/%s/key-%010d", l.log, k.Epoch), k.Statement); err != nil {
				return err
			}
		}
		for _, c := range l.notes {
			if err := z.add(noteName(l.log, c.Size), c.Note); err != nil {
				return err
			}
		}
	}
	return z.add(keysName, []byte(keys.String()))
}

// withCover are the checkpoints inside the range and the one that covers it.
func withCover(inside []Checkpoint, cover Checkpoint) []Checkpoint {
	list := make([]Checkpoint, 0, len(inside)+1)
	for _, c := range inside {
		if c.Size != cover.Size {
			list = append(list, c)
		}
	}
	return append(list, cover)
}

func noteName(log string, size int64) string { return fmt.Sprintf("checkpoints/%s/%020d", log, size) }

// logProofs ties a range to trees.
type logProofs struct {
	LeftEdge    []string      `json:"left_edge"`
	Consistency []consistency `json:"consistency"`
}

type consistency struct {
	From   int64    `json:"from"`
	To     int64    `json:"to"`
	Hashes []string `json:"hashes"`
}

// prove collects the proofs of a range: the tree before it, the step from its end
// to the checkpoint that covers it, and those from and to the sizes that the
// reader kept.
func prove(ctx context.Context, t Tree, from, to, cover int64, kept []int64) (p logProofs, err error) {
	// The path from leaf `from` to the root of the tree that ends with it has the
	// perfect subtrees before it as its siblings, from right to left.
	siblings, err := t.Inclusion(ctx, from-1, from)
	if err != nil {
		return p, err
	}
	p.LeftEdge, p.Consistency = make([]string, 0, len(siblings)), []consistency{}
	for i := len(siblings) - 1; i >= 0; i-- {
		p.LeftEdge = append(p.LeftEdge, hex.EncodeToString(siblings[i][:]))
	}
	if to < cover {
		err = p.step(ctx, t, to, cover)
	}
	for _, size := range kept {
		if err != nil {
			return p, err
		}
		inside := size >= from-1 && size <= to
		switch {
		case size < 1:
			err = fmt.Errorf("%w: %d", ErrKept, size)
		case !inside && size < cover:
			err = p.step(ctx, t, size, cover)
		case size > cover:
			err = p.keptBeyond(ctx, t, cover, size)
		}
	}
	return p, err
}

func (p *logProofs) keptBeyond(ctx context.Context, t Tree, cover, size int64) error {
	newest, ok, err := t.Newest(ctx)
	if err != nil || !ok || size > newest.Size {
		return orElse(err, fmt.Errorf("%w: %d", ErrKept, size))
	}
	return p.step(ctx, t, cover, size)
}

func (p *logProofs) step(ctx context.Context, t Tree, from, to int64) error {
	hashes, err := t.Consistency(ctx, from, to)
	if err != nil {
		return err
	}
	c := consistency{From: from, To: to, Hashes: make([]string, 0, len(hashes))}
	for _, h := range hashes {
		c.Hashes = append(c.Hashes, hex.EncodeToString(h[:]))
	}
	p.Consistency = append(p.Consistency, c)
	return nil
}
