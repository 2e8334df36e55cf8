package evidence_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"
)

// stream is a ledger that is made anew whenever it is read, so that its size
// costs no memory. It has one checkpoint, of all of it.
type stream struct {
	*memory // its tree: one checkpoint, and no proofs are needed
	n       int64
}

// newStream makes the ledger and signs it.
func newStream(t testing.TB, n int64) *stream {
	t.Helper()
	s := &stream{&memory{}, n}
	s.useKey(t, "test.example/ledger/acme", 1)
	var peaks [64]*tlog.Hash // by level: the tree's perfect subtrees
	err := s.Rows(t.Context(), 1, n, func(r *verify.Row) error {
		h := tlog.RecordHash(r.Canonical)
		level := 0
		for ; peaks[level] != nil; level++ {
			h, peaks[level] = tlog.NodeHash(*peaks[level], h), nil
		}
		peaks[level] = &h
		s.ends = verify.Ends{HasHead: true, Seq: r.Seq, LastSeq: r.Seq, Chain: [32]byte(r.Chain), Epoch: 1}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var root *tlog.Hash
	for _, h := range peaks {
		switch {
		case h != nil && root == nil:
			root = h
		case h != nil:
			joined := tlog.NodeHash(*h, *root)
			root = &joined
		}
	}
	s.notes = []evidence.Checkpoint{s.note(t, n, *root)}
	return s
}

func (s *stream) Inclusion(context.Context, int64, int64) ([]evidence.Hash, error) { return nil, nil }

// Rows makes entries like those of a busy tenant: some 300 bytes each.
func (s *stream) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	if from != 1 {
		return fmt.Errorf("a stream begins with 1, not %d", from)
	}
	h, prev := chain.NewHasher(), chain.Genesis("acme")
	key, _ := macKey(1)
	mac := chain.NewMACKey(key, 1)
	var canonical []byte
	var r verify.Row
	for seq := int64(1); seq <= to; seq++ {
		e := chain.Entry{Kind: chain.Usage, Seq: seq, Priced: true, Cost: money.Pico(seq % 1000 * 1_000_003), PriceRow: "openai/gpt-4o-mini", PricingVersion: 1}
		e.PriceBook[0] = 1
		at := day(1).UnixNano() + seq*int64(time.Millisecond)
		id := []byte("00000000-0000-4000-8000-000000000000")
		copy(id[len(id)-12:], fmt.Sprintf("%012d", seq))
		e.Event = event.Event{
			Tenant: "acme", ID: string(id), OccurredAt: at, ReceivedAt: at + 5_000_000, Provider: "openai", Model: "gpt-4o-mini",
			ProducerID: "proxy-1", ProducerSeq: seq, Operation: "chat", Status: "ok", Team: "search", Service: "answers", LatencyMicros: 250_000 + seq%1000,
		}
		e.Event.ContentMAC[0], e.Event.HasContentMAC = byte(seq), true
		e.Event.Tokens[tokens.Input], e.Event.Tokens[tokens.Output] = 1000+seq%500, 200+seq%90
		if seq == 1 {
			e = chain.Entry{Kind: chain.Control, Seq: 1, ControlKind: event.ControlKeyEpoch, ControlVersion: "1"}
			e.Event.Tenant = "acme"
		}
		e.Position.Offset = seq
		canonical = e.Append(canonical[:0])
		leaf := h.Leaf(canonical)
		prev = h.Next(&prev, &leaf)
		m := mac.MAC(seq, &prev)
		r = verify.Row{Seq: seq, Epoch: 1, Canonical: canonical, Chain: prev[:], MAC: m[:]}
		if err := fn(&r); err != nil {
			return err
		}
		if seq%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// heapAfterGC is what is really held.
func heapAfterGC() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Bounds of what writing and verifying a package may hold, whatever its size.
const (
	maxWriteBytes  = 16 << 20
	maxVerifyBytes = 48 << 20
)

func TestPackagesStreamInBoundedMemory(t *testing.T) {
	s := newStream(t, 300_000)
	path := filepath.Join(t.TempDir(), "package.zip")
	var before, most uint64
	sample := func(done, _ int64) {
		if done%50_000 < 5_000 {
			most = max(most, heapAfterGC())
		}
	}
	before = heapAfterGC()
	s.write(t, path, sample)
	if most < before || most-before > maxWriteBytes {
		t.Errorf("writing held %d bytes beside the %d there were", most-before, before)
	}
	before, most = heapAfterGC(), 0
	s.verify(t, path, 2, sample)
	if most < before || most-before > maxVerifyBytes {
		t.Errorf("verifying held %d bytes beside the %d there were", most-before, before)
	}
}

func (s *stream) write(t testing.TB, path string, progress func(done, total int64)) {
	t.Helper()
	p, err := evidence.New(t.Context(), evidence.Stores{Ledger: s, LedgerTree: s}, evidence.Request{Tenant: "acme", Now: day(20)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write(t.Context(), f, progress); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func (s *stream) verify(t testing.TB, path string, workers int, progress func(done, total int64)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := verify.ParseKeys([]byte(s.vkey))
	if err != nil {
		t.Fatal(err)
	}
	o := verify.PackageOptions{Trusted: keys, MACKeys: macKey, Workers: workers, Progress: progress}
	r, err := verify.Package(t.Context(), f, info.Size(), o)
	if err != nil || r.Verdict != verify.Intact || r.Entries != s.n || r.Covered != s.n {
		t.Fatalf("%+v, %v", r, err)
	}
}

// benchEntries is how many entries the benchmark's package has; the figure of
// the documentation is that of 10,000,000.
var benchEntries = flag.Int64("evidence.entries", 200_000, "entries of the benchmark's package")

// BenchmarkPackage measures writing a package and verifying it, hashes, chain,
// MACs, tree, sums and digests, with one worker and with two.
func BenchmarkPackage(b *testing.B) {
	s := newStream(b, *benchEntries)
	path := filepath.Join(b.TempDir(), "package.zip")
	rate := func(b *testing.B) {
		b.ReportMetric(float64(s.n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	}
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			s.write(b, path, nil)
		}
		rate(b)
	})
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, workers := range []int{1, 2} {
		b.Run("verify/workers="+strconv.Itoa(workers), func(b *testing.B) {
			b.SetBytes(info.Size())
			for b.Loop() {
				s.verify(b, path, workers, nil)
			}
			rate(b)
		})
	}
}
