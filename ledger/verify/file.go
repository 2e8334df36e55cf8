package verify

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// File checks an export. The options' tenant, when set, must be the export's;
// their range is ignored: an export is checked whole. The error is that of the
// context, of reading, or ErrNotExport.
func File(ctx context.Context, r io.Reader, o Options) (Report, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	h, err := readHeader(in, o.form().magic)
	if err != nil {
		return Report{}, err
	}
	if o.Tenant != "" && o.Tenant != h.Tenant {
		return Report{}, fmt.Errorf("%w: it is of tenant %q, not %q", ErrNotExport, h.Tenant, o.Tenant)
	}
	o.Tenant = h.Tenant
	rep, _, err := checkFile(ctx, in, h, o)
	return rep.conclude(ctx, err)
}

// checkFile checks what follows an export's header. The error is *broken,
// *missing or that of the context.
func checkFile(ctx context.Context, in *bufio.Reader, h ExportHeader, o Options) (*Report, *treePlan, error) {
	rep := &Report{Tenant: h.Tenant, From: h.From, To: h.To, MACsChecked: o.Keys != nil}
	rep.Sums.DatesFrom, rep.Sums.DatesTo = o.datesFrom, o.datesTo
	plan, err := o.planTree(rep, h.From, h.To)
	if err != nil {
		return rep, nil, err
	}
	f := &file{in: in, h: h, o: o}
	err = f.verify(ctx, rep, plan)
	if err == nil && h.To == h.HeadSeq {
		err = o.rolledBack(h.To)
	}
	return rep, plan, earliest(err, plan.conclude(ctx, rep, &o))
}

// ReadExportHeader reads the first two lines of an export.
func ReadExportHeader(r io.Reader) (ExportHeader, error) {
	return readHeader(bufio.NewReaderSize(r, maxHeaderBytes), ledgerForm.magic)
}

func readHeader(in *bufio.Reader, want string) (h ExportHeader, err error) {
	magic := make([]byte, len(want))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != want {
		return h, ErrNotExport
	}
	line, err := in.ReadSlice('\n')
	if err != nil {
		return h, fmt.Errorf("%w: no header", ErrNotExport)
	}
	if err := json.Unmarshal(line, &h); err != nil || h.From < 1 || h.To < h.From || h.HeadSeq < h.To || h.Tenant == "" {
		return h, fmt.Errorf("%w: the header", ErrNotExport)
	}
	return h, nil
}

// file is an export that is being checked: one goroutine reads blocks, several
// check them, each after the chain hash that ends the block before.
type file struct {
	in *bufio.Reader
	h  ExportHeader
	o  Options
}

// block is consecutive entries of an export.
type block struct {
	data   []byte
	first  int64
	count  uint32
	anchor [HashSize]byte
	epoch  int64
	stored bool // the anchor stands in the file; else it is the genesis

	sums     Sums
	segments []segment
	err      error
}

func (f *file) verify(ctx context.Context, rep *Report, plan *treePlan) error {
	anchor, epoch, err := f.anchor()
	if err != nil {
		return err
	}
	workers := max(f.o.Workers, 1)
	work := make(chan *block, workers)
	free := make(chan []byte, 2*workers+1)
	var done sync.WaitGroup
	t := &tally{total: f.h.To - f.h.From + 1, progress: f.o.Progress, plan: plan, next: f.h.From}
	t.sums.DatesFrom, t.sums.DatesTo = rep.Sums.DatesFrom, rep.Sums.DatesTo
	for range workers {
		done.Go(func() {
			c := plan.checker(&f.o)
			for b := range work {
				b.sums.DatesFrom, b.sums.DatesTo = t.sums.DatesFrom, t.sums.DatesTo
				c.sums = &b.sums
				b.err = b.check(c)
				b.segments = c.harvest()
				t.add(b)
				select {
				case free <- b.data[:0]:
				default:
				}
			}
		})
	}
	last, end, err := f.read(ctx, work, free, t, anchor, epoch)
	close(work)
	done.Wait()
	if bad := t.first; bad != nil && (err == nil || bad.first <= last) {
		err = bad.err
	}
	rep.Entries, rep.Sums = t.good, t.sums
	if err != nil {
		return err
	}
	rep.HeadHash = end
	return f.head(end)
}

// anchor is what the first entry is chained to.
func (f *file) anchor() (anchor [HashSize]byte, epoch int64, err error) {
	if f.h.From == 1 {
		return f.o.form().genesisOf(f.h.Tenant), -1, nil
	}
	b, err := hex.DecodeString(f.h.AnchorChain)
	if err != nil || len(b) != HashSize || f.h.AnchorEpoch < 1 {
		return anchor, 0, breakAt(f.h.From-1, MissingAnchor, "the export does not say what its first entry follows")
	}
	return [HashSize]byte(b), f.h.AnchorEpoch, nil
}

// head compares the end of the entries with the head that the export names.
func (f *file) head(end [HashSize]byte) error {
	if f.h.To == f.h.HeadSeq && f.h.HeadChain != hex.EncodeToString(end[:]) {
		return breakAt(f.h.To, Hash, "the head has another chain hash")
	}
	return nil
}

// read hands out the blocks of the file and returns the number and chain hash
// of the last entry it met.
func (f *file) read(ctx context.Context, work chan<- *block, free <-chan []byte, t *tally, anchor [HashSize]byte, epoch int64) (int64, [HashSize]byte, error) {
	next, stored := f.h.From, f.h.From > 1
	for {
		b, err := f.readBlock(next, free)
		if err != nil || b == nil {
			return next, anchor, err
		}
		b.anchor, b.epoch, b.stored = anchor, epoch, stored
		tail := b.data[len(b.data)-entryTail:]
		anchor = [HashSize]byte(tail)
		epoch, stored = int64(binary.BigEndian.Uint32(tail[2*HashSize:])), true
		next += int64(b.count)
		select {
		case work <- b:
		case <-ctx.Done():
			return next, anchor, ctx.Err()
		}
		if t.bad() {
			return next, anchor, nil
		}
	}
}

// readBlock reads the next block; nil at the end. next is the number it must
// begin with.
func (f *file) readBlock(next int64, free <-chan []byte) (*block, error) {
	var h [blockHeader]byte
	if _, err := io.ReadFull(f.in, h[:]); err != nil {
		return nil, cut(next, err)
	}
	size, first, count := binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint64(h[4:]), binary.BigEndian.Uint32(h[12:])
	switch {
	case first != uint64(next) && int64(first) > next:
		return nil, breakAt(next, Gap, "the export goes on with entry %d", first)
	case first != uint64(next):
		return nil, breakAt(int64(first), Duplicate, "the number stands again after %d", next-1)
	case count == 0 && size == 0:
		if next != f.h.To+1 {
			return nil, breakAt(next, Truncated, "the export should go on to %d", f.h.To)
		}
		if _, err := f.in.ReadByte(); err != io.EOF {
			return nil, after(next, err)
		}
		return nil, nil
	case count == 0 || size > maxBlockBytes || uint64(size) < uint64(count)*(entryTail+1):
		return nil, breakAt(next, Hash, "a block of %d entries in %d bytes", count, size)
	case next+int64(count)-1 > f.h.To:
		return nil, breakAt(f.h.To+1, Duplicate, "the export goes on beyond entry %d", f.h.To)
	}
	b := &block{first: next, count: count}
	select {
	case b.data = <-free:
	default:
	}
	var err error
	if b.data, err = readBlockBytes(f.in, b.data[:0], int(size)); err != nil {
		return nil, cut(next, err)
	}
	return b, nil
}

// readBlockBytes reads size bytes into b, which grows with what is there and
// not with what a header claims.
func readBlockBytes(in io.Reader, b []byte, size int) ([]byte, error) {
	const step = 1 << 20
	for len(b) < size {
		have := len(b)
		n := min(size-have, max(step, cap(b)-have))
		b = slices.Grow(b, n)[:have+n]
		if _, err := io.ReadFull(in, b[have:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func cut(next int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return breakAt(next, Truncated, "the file ends in the middle")
	}
	return &missing{fmt.Errorf("read the export: %w", err)}
}

// after says what is behind the end of an export.
func after(next int64, err error) error {
	if err == nil {
		return breakAt(next, Duplicate, "bytes follow the export's end")
	}
	return cut(next, err)
}

// check checks the entries of a block.
func (b *block) check(c *checker) error {
	c.begin(b.first, b.anchor, b.epoch, b.stored)
	rest := b.data
	var r Row
	for i := range int64(b.count) {
		canonical, after, ok := take(rest)
		if !ok || len(after) < entryTail {
			return breakAt(b.first+i, Hash, "the entry does not fit its block")
		}
		r = Row{
			Seq: b.first + i, Canonical: canonical, Chain: after[:HashSize], MAC: after[HashSize : 2*HashSize],
			Epoch: int64(binary.BigEndian.Uint32(after[2*HashSize:])),
		}
		if err := c.check(&r); err != nil {
			return err
		}
		rest = after[entryTail:]
	}
	if len(rest) > 0 {
		return breakAt(b.first+int64(b.count), Hash, "bytes after the last entry of a block")
	}
	return nil
}

// tally collects what came of blocks.
type tally struct {
	mu       sync.Mutex // protects what follows
	first    *block     // the bad block with the lowest numbers
	good     int64
	total    int64
	sums     Sums
	progress func(done, total int64)

	// The trees of blocks are put together in order: those that came early wait.
	plan    *treePlan
	next    int64
	waiting map[int64]*block
}

func (t *tally) add(b *block) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.join(b)
	if b.err != nil {
		if t.first == nil || b.first < t.first.first {
			t.first = b
		}
		return
	}
	t.good += int64(b.count)
	t.sums.merge(&b.sums)
	if t.progress != nil {
		t.progress(t.good, t.total)
	}
}

// join takes the block's tree, and those that waited for it. A bad block's tree
// ends with its last good entry, and nothing follows it.
func (t *tally) join(b *block) {
	if !t.plan.planted {
		return
	}
	if t.waiting == nil {
		t.waiting = make(map[int64]*block)
	}
	t.waiting[b.first] = b
	for b := t.waiting[t.next]; b != nil; b = t.waiting[t.next] {
		delete(t.waiting, b.first)
		t.plan.grow.append(b.segments)
		b.segments = nil
		if b.err != nil {
			t.next = -1
			return
		}
		t.next += int64(b.count)
	}
}

func (t *tally) bad() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first != nil
}
