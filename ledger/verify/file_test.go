package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// testBlock is how many entries a block of export has.
const testBlock = 4096

// export writes an export by the document.
func export(t testing.TB, m *memory, from, to int64) []byte {
	t.Helper()
	h := ExportHeader{Tenant: "acme", From: max(from, 1), To: to, HeadSeq: m.ends.Seq, HeadChain: hex.EncodeToString(m.ends.Chain[:])}
	if to == 0 {
		h.To = m.ends.Seq
	}
	if h.From > 1 {
		h.AnchorChain, h.AnchorEpoch = hex.EncodeToString(m.rows[h.From-2].Chain), m.rows[h.From-2].Epoch
	}
	line, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte(ledgerForm.magic), append(line, '\n')...)
	head := func(size int, first, count int64) {
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		b = binary.BigEndian.AppendUint64(b, uint64(first))
		b = binary.BigEndian.AppendUint32(b, uint32(count))
	}
	for first := h.From; first <= h.To; first += testBlock {
		var block []byte
		last := min(first+testBlock-1, h.To)
		for _, r := range m.rows[first-1 : last] {
			block = binary.AppendUvarint(block, uint64(len(r.Canonical)))
			block = append(append(append(block, r.Canonical...), r.Chain...), r.MAC...)
			block = binary.BigEndian.AppendUint32(block, uint32(r.Epoch))
		}
		head(len(block), first, last-first+1)
		b = append(b, block...)
	}
	head(0, h.To+1, 0)
	return b
}

func runFile(t testing.TB, b []byte, o Options) Report {
	t.Helper()
	r, err := File(t.Context(), bytes.NewReader(b), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExportIsIntact(t *testing.T) {
	m := newMemory("acme", 9000) // more than two blocks
	for _, c := range []struct{ from, to, want int64 }{{0, 0, 9000}, {1, 5000, 5000}, {7, 7, 1}, {4097, 8192, 4096}} {
		var last int64
		r := runFile(t, export(t, m, c.from, c.to), Options{Keys: testKey, Workers: 3, Progress: func(done, _ int64) { last = done }})
		if r.Verdict != Intact || r.Entries != c.want || r.Tenant != "acme" || last != c.want {
			t.Errorf("%+v: %+v, progress %d", c, r, last)
		}
	}
}

// startOfBlocks is the place of the first block.
func startOfBlocks(b []byte) int {
	return len(ledgerForm.magic) + bytes.IndexByte(b[len(ledgerForm.magic):], '\n') + 1
}

func TestExportIsBroken(t *testing.T) {
	m := newMemory("acme", 5000)
	good := export(t, m, 0, 0)
	blocks := startOfBlocks(good)
	second := blocks + blockHeader + int(binary.BigEndian.Uint32(good[blocks:]))
	end := len(good) - blockHeader
	for _, c := range []struct {
		name   string
		bytes  func(b []byte) []byte
		bad    int64
		reason Reason
	}{
		{"no end", func(b []byte) []byte { return b[:end] }, 5001, Truncated},
		{"cut in a block", func(b []byte) []byte { return b[:end-9] }, 4097, Truncated},
		{"cut between blocks", func(b []byte) []byte { return append(b[:second:second], b[end:]...) }, 4097, Gap},
		{"no blocks", func(b []byte) []byte {
			binary.BigEndian.PutUint64(b[end+4:], 1)
			return append(b[:blocks:blocks], b[end:]...)
		}, 1, Truncated},
		{"a block twice", func(b []byte) []byte { return append(b[:second:second], b[blocks:]...) }, 1, Duplicate},
		{"a bit of an entry", func(b []byte) []byte { b[blocks+blockHeader+9] ^= 1; return b }, 1, Hash},
		{"a bit of the last MAC", func(b []byte) []byte { b[end-5] ^= 1; return b }, 5000, MAC},
		{"a bit of the last chain hash", func(b []byte) []byte { b[end-entryTail] ^= 1; return b }, 5000, Hash},
		{"a count too great", func(b []byte) []byte { b[blocks+15]++; return b }, 4097, Hash},
		{"a count too small", func(b []byte) []byte { b[second+15]--; return b }, 5000, Hash},
		{"a size beyond reason", func(b []byte) []byte { b[blocks] = 0xff; return b }, 1, Hash},
		{"beyond the range", func(b []byte) []byte { return bytes.Replace(b, []byte(`"to_seq":5000`), []byte(`"to_seq":4999`), 1) }, 5000, Duplicate},
		{"another head", func(b []byte) []byte { return bytes.Replace(b, []byte(`head_chain":"`), []byte(`head_chain":"0`), 1) }, 5000, Hash},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, workers := range []int{1, 3} {
				r := runFile(t, c.bytes(bytes.Clone(good)), Options{Keys: testKey, Workers: workers})
				if r.Verdict != Broken || r.FirstBad != c.bad || r.Reason != c.reason {
					t.Errorf("got %s at %d: %s (%s); want %s at %d", r.Verdict, r.FirstBad, r.Reason, r.Message, c.reason, c.bad)
				}
			}
		})
	}
	part := export(t, m, 9, 20)
	if r := runFile(t, bytes.Replace(part, []byte(`"anchor_chain":"`), []byte(`"anchor_chain":"z`), 1), Options{}); r.Reason != MissingAnchor || r.FirstBad != 8 {
		t.Errorf("no anchor: %+v", r)
	}
}

// Every bit of the blocks counts.
func TestEveryBitOfAnExport(t *testing.T) {
	good := export(t, newMemory("acme", 8), 0, 0)
	for i := startOfBlocks(good); i < len(good); i++ {
		for bit := range 8 {
			good[i] ^= 1 << bit
			if r, err := File(t.Context(), bytes.NewReader(good), Options{Keys: testKey}); err == nil && r.Verdict == Intact {
				t.Fatalf("bit %d of byte %d does not count", bit, i)
			}
			good[i] ^= 1 << bit
		}
	}
}

func TestNotAnExport(t *testing.T) {
	good := string(export(t, newMemory("acme", 3), 0, 0))
	for _, b := range []string{
		"", "PK\x03\x04", strings.Replace(good, "export 1", "export 2", 1), ledgerForm.magic, ledgerForm.magic + "{}\n",
		strings.Replace(good, `"from_seq":1`, `"from_seq":0`, 1), ledgerForm.magic + strings.Repeat("x", 2<<20),
	} {
		if _, err := File(t.Context(), strings.NewReader(b), Options{}); !errors.Is(err, ErrNotExport) {
			t.Errorf("%.40q: %v", b, err)
		}
	}
	if _, err := File(t.Context(), strings.NewReader(good), Options{Tenant: "bravo"}); !errors.Is(err, ErrNotExport) {
		t.Errorf("another tenant's: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := File(ctx, strings.NewReader(good), Options{}); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
}

// FuzzFile: no bytes make the reader fail otherwise than with a verdict.
func FuzzFile(f *testing.F) {
	f.Add(export(f, newMemory("acme", 3), 0, 0))
	f.Add(export(f, newMemory("acme", 9), 5, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := File(context.Background(), bytes.NewReader(b), Options{Keys: testKey, Workers: 2})
		if err != nil && !errors.Is(err, ErrNotExport) {
			t.Fatal(err)
		}
		if err == nil && r.Verdict == Broken && r.Reason == "" {
			t.Fatalf("%+v", r)
		}
	})
}

// BenchmarkFile measures the verification of an export with one and two workers.
func BenchmarkFile(b *testing.B) {
	const n = 500_000
	file := export(b, newMemory("acme", n), 0, 0)
	for _, workers := range []int{1, 2} {
		b.Run(map[int]string{1: "workers=1", 2: "workers=2"}[workers], func(b *testing.B) {
			b.SetBytes(int64(len(file)))
			for b.Loop() {
				if r := runFile(b, file, Options{Keys: testKey, Workers: workers}); r.Verdict != Intact || r.Entries != n {
					b.Fatalf("%+v", r)
				}
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
