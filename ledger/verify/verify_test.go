package verify

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// memory is a ledger in memory: a Source whose rows and head a test may change.
type memory struct {
	ends Ends
	rows []Row
	err  error // of reading
}

func (m *memory) Ends(context.Context) (Ends, error) { return m.ends, m.err }

func (m *memory) Rows(_ context.Context, from, to int64, fn func(*Row) error) error {
	for i := range m.rows {
		if r := m.rows[i]; r.Seq >= from && r.Seq <= to {
			if err := fn(&r); err != nil {
				return err
			}
		}
	}
	return m.err
}

func testKey(epoch uint32) ([32]byte, error) { return [32]byte{byte(epoch), 7}, nil }

// newMemory makes a good ledger of n entries with the writer's own format code.
func newMemory(tenantID string, n int) *memory {
	m := &memory{ends: Ends{HasHead: true, Chain: chain.Genesis(tenantID), Epoch: 1}}
	h := chain.NewHasher()
	prev := chain.Genesis(tenantID)
	epoch := uint32(1)
	for seq := int64(1); seq <= int64(n); seq++ {
		e := chain.Entry{Kind: chain.Usage, Seq: seq, Priced: seq%3 != 0, PricingVersion: 1}
		e.Event = event.Event{Tenant: tenantID, ID: fmt.Sprint("e", seq), OccurredAt: seq*1001 - 5000, ReceivedAt: seq, Provider: "p", Model: "m"}
		e.Event.Tokens[tokens.Input] = seq
		if e.Priced {
			e.Cost = money.Pico(seq * 17)
		}
		if seq == 1 || seq == 6 {
			e = chain.Entry{Kind: chain.Control, Seq: seq, ControlKind: event.ControlKeyEpoch, ControlVersion: strconv.Itoa(1 + int(seq/6))}
			e.Event.Tenant = tenantID
			epoch = 1 + uint32(seq/6)
		}
		e.Position.Offset = seq
		canonical := e.Append(nil)
		leaf := h.Leaf(canonical)
		prev = h.Next(&prev, &leaf)
		key, _ := testKey(epoch)
		mac := chain.NewMACKey(key, epoch).MAC(seq, &prev)
		m.rows = append(m.rows, Row{
			Seq: seq, Epoch: int64(epoch), Canonical: canonical, Chain: bytes.Clone(prev[:]), MAC: mac[:],
			Projected: true, Kind: int64(e.Kind), HasOccurred: e.Event.OccurredAt != 0, Occurred: floorMicros(e.Event.OccurredAt),
			HasCost: e.Priced, Cost: int64(e.Cost),
		})
	}
	m.ends.Seq, m.ends.LastSeq, m.ends.Chain = int64(n), int64(n), prev
	return m
}

func run(t testing.TB, src Source, o Options) Report {
	t.Helper()
	r, err := Verify(t.Context(), src, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestIntact(t *testing.T) {
	m := newMemory("acme", 200_000)
	for _, workers := range []int{0, 1, 3} {
		r := run(t, m, Options{Tenant: "acme", Keys: testKey, Workers: workers})
		if r.Verdict != Intact || r.Entries != 200_000 || r.HeadHash != m.ends.Chain {
			t.Errorf("workers %d: %+v", workers, r)
		}
	}
	if r := run(t, newMemory("acme", 0), Options{Tenant: "acme"}); r.Verdict != Intact || r.Entries != 0 {
		t.Errorf("a ledger with a head and no entries: %+v", r)
	}
}

func TestRanges(t *testing.T) {
	m := newMemory("acme", 20)
	for _, c := range []struct{ from, to, want int64 }{{5, 9, 5}, {6, 6, 1}, {20, 0, 1}, {1, 1, 1}, {2, 99, 19}} {
		if r := run(t, m, Options{Tenant: "acme", From: c.from, To: c.to, Keys: testKey}); r.Verdict != Intact || r.Entries != c.want {
			t.Errorf("%+v: %+v", c, r)
		}
	}
	for _, c := range [][2]int64{{21, 0}, {-1, 0}, {5, 4}, {0, -2}} {
		if _, err := Verify(t.Context(), m, Options{Tenant: "acme", From: c[0], To: c[1]}); !errors.Is(err, ErrRange) {
			t.Errorf("range %v: %v", c, err)
		}
	}
}

func TestBroken(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*memory)
		o      Options
		bad    int64
		reason Reason
	}{
		{"gap", func(m *memory) { m.rows = append(m.rows[:7:7], m.rows[8:]...) }, Options{}, 8, Gap},
		{"duplicate", func(m *memory) { m.rows = append(m.rows[:8:8], m.rows[7:]...) }, Options{}, 8, Duplicate},
		{"truncated", func(m *memory) { m.rows, m.ends.LastSeq = m.rows[:15], 15 }, Options{}, 16, Truncated},
		{"all gone", func(m *memory) { m.rows, m.ends.LastSeq = nil, 0 }, Options{}, 1, Truncated},
		{"head gone", func(m *memory) { m.ends = Ends{LastSeq: 20} }, Options{}, 21, MissingAnchor},
		{"head rolled back", func(m *memory) { m.ends.Seq, m.ends.Chain = 10, [32]byte(m.rows[9].Chain) }, Options{}, 11, Truncated},
		{"another head", func(m *memory) { m.ends.Chain[3]++ }, Options{}, 20, Hash},
		{"missing anchor", func(m *memory) { m.rows = append(m.rows[:7:7], m.rows[8:]...) }, Options{From: 9}, 8, MissingAnchor},
		{"another anchor", func(m *memory) { m.rows[7].Chain[0]++ }, Options{From: 9, Keys: testKey}, 9, PreviousHash},
		{"hash", func(m *memory) { m.rows[7].Canonical[30]++ }, Options{Keys: testKey}, 8, Hash},
		{"MAC", func(m *memory) { m.rows[7].MAC[0]++ }, Options{Keys: testKey}, 8, MAC},
		{"short MAC", func(m *memory) { m.rows[7].MAC = nil }, Options{}, 8, Hash},
		{"epoch", func(m *memory) { m.rows[7].Epoch = 1 }, Options{}, 8, Projection},
		{"epoch of none", func(m *memory) { m.rows[7].Epoch = 0 }, Options{}, 8, Projection},
		{"kind", func(m *memory) { m.rows[7].Kind = 3 }, Options{}, 8, Projection},
		{"time", func(m *memory) { m.rows[1].Occurred++ }, Options{}, 2, Projection},
		{"no time", func(m *memory) { m.rows[1].HasOccurred, m.rows[1].Occurred = false, 0 }, Options{}, 2, Projection},
		{"cost", func(m *memory) { m.rows[7].Cost++ }, Options{}, 8, Projection},
		{"no cost", func(m *memory) { m.rows[7].HasCost, m.rows[7].Cost = false, 0 }, Options{}, 8, Projection},
		{"a cost of 0 for none", func(m *memory) { m.rows[8].HasCost = true }, Options{}, 9, Projection},
		{"another tenant's ledger", func(m *memory) { *m = *newMemory("bravo", 20) }, Options{Keys: testKey}, 1, Hash},
		{"rewritten, head and all", func(m *memory) { rewriteFrom(m, 8, nil) }, Options{Keys: testKey}, 8, MAC},
		{"a newer version", func(m *memory) { rewriteFrom(m, 8, func(b []byte) { b[0] = 2 }) }, Options{}, 8, UnknownVersion},
		{"no canonical form", func(m *memory) { rewriteFrom(m, 8, func(b []byte) { b[2] = 1; b[3] = 0 }) }, Options{}, 8, Hash},
		{"renumbered", func(m *memory) { rewriteFrom(m, 8, func(b []byte) { b[bytes.Index(b, []byte{64, 1, 8})+2] = 9 }) }, Options{}, 8, Projection},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory("acme", 20)
			c.change(m)
			c.o.Tenant = "acme"
			for c.o.Workers = 1; c.o.Workers < 3; c.o.Workers++ {
				r := run(t, m, c.o)
				if r.Verdict != Broken || r.FirstBad != c.bad || r.Reason != c.reason || r.Message == "" {
					t.Errorf("got %s at %d: %s (%s); want %s at %d", r.Verdict, r.FirstBad, r.Reason, r.Message, c.reason, c.bad)
				}
			}
		})
	}
}

// rewriteFrom changes an entry and recomputes all chain hashes from it on, as
// one would who has the database and not the key.
func rewriteFrom(m *memory, seq int64, change func([]byte)) {
	b := bytes.Clone(m.rows[seq-1].Canonical)
	if change == nil {
		b[bytes.Index(b, []byte("\x0a\x01p"))+2] = 'q'
	} else {
		change(b)
	}
	m.rows[seq-1].Canonical = b
	h, prev := chain.NewHasher(), chain.Hash(m.rows[seq-2].Chain)
	for i := int(seq) - 1; i < len(m.rows); i++ {
		leaf := h.Leaf(m.rows[i].Canonical)
		prev = h.Next(&prev, &leaf)
		m.rows[i].Chain = bytes.Clone(prev[:])
	}
	m.ends.Chain = prev
}

func TestUnknown(t *testing.T) {
	m := newMemory("acme", 20)
	noKey := func(epoch uint32) ([32]byte, error) {
		if epoch == 2 {
			return [32]byte{}, errors.New("no such key")
		}
		return testKey(epoch)
	}
	if r := run(t, m, Options{Tenant: "acme", Keys: noKey}); r.Verdict != Unknown || !strings.Contains(r.Message, "epoch 2") {
		t.Errorf("a key that is missing: %+v", r)
	}
	m.err = errors.New("away")
	if r := run(t, m, Options{Tenant: "acme"}); r.Verdict != Unknown || r.NoTenant {
		t.Errorf("a store that is away: %+v", r)
	}
	if r := run(t, &memory{}, Options{Tenant: "acme"}); r.Verdict != Unknown || !r.NoTenant {
		t.Errorf("no such tenant: %+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, m, Options{Tenant: "acme"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
}

// A chain hash that changes between the reading of two parts must not pass,
// though each part by itself is good.
func TestPartsMustMeet(t *testing.T) {
	r := &Report{}
	err := r.join([]*part{{from: 1, to: 5, end: [32]byte{1}}, {from: 6, to: 9, anchor: [32]byte{2}, end: [32]byte{3}}}, &treePlan{})
	var b *broken
	if !errors.As(err, &b) || b.seq != 5 {
		t.Errorf("got %v", err)
	}
}

// TestVectors holds decoder and formulas against the vectors of the format.
func TestVectors(t *testing.T) {
	files, _ := filepath.Glob("../chain/testdata/chain-*.txt")
	if len(files) < 2 {
		t.Fatalf("vectors: %v", files)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		header, entries, _ := strings.Cut(string(text), "====\n")
		values := vectorLines(header)
		c := newChecker(ledgerForm, values["tenant"], func(epoch uint32) (key [32]byte, err error) {
			_, err = hex.Decode(key[:], []byte(values[fmt.Sprint("mac_key.", epoch)]))
			return key, err
		})
		c.beginGenesis()
		for seq, block := range strings.Split(strings.TrimSuffix(entries, "====\n"), "====\n") {
			_, results, _ := strings.Cut(block, "----\n")
			v := vectorLines(results)
			epoch, _ := strconv.ParseInt(v["key_epoch"], 10, 64)
			r := Row{Seq: int64(seq + 1), Epoch: epoch, Canonical: unhex(t, v["canonical"]), Chain: unhex(t, v["chain"]), MAC: unhex(t, v["mac"])}
			if err := c.check(&r); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

func vectorLines(text string) map[string]string {
	m := map[string]string{}
	for l := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		m[name] = value
	}
	return m
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) == 0 {
		t.Fatalf("%q: %v", s, err)
	}
	return b
}

func TestInvalidVectors(t *testing.T) {
	text, err := os.ReadFile("../chain/testdata/invalid.txt")
	if err != nil {
		t.Fatal(err)
	}
	var c content
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		want := errForm
		if f[0] == "version" {
			want = errVersion
		}
		if err := c.decode(unhex(t, f[1])); err != want {
			t.Errorf("%s: %v", l, err)
		}
	}
}

var formNames = map[string]form{
	"text": formText, "uint": formUint, "uint31": formUint31, "flag": formFlag, "time": formTime, "int64": formInt, "hash": formHash,
	"bytes32": form32, "bytes16": form16, "tokens": formTokens, "tags": formTags, "reasons": formReasons,
	"bytes": formBytes, "delta": formDelta, "token_deltas": formTokenDeltas,
}

// The table in the document is the table in the code, and its lower part is the
// event's own table of fields.
func TestDocumentedFields(t *testing.T) {
	text, err := os.ReadFile("../../docs/ledger-format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| tag | name | form | kinds |\n|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var documented [256]field
	names := map[int]string{}
	for l := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(l), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		tag, err := strconv.Atoi(cells[0])
		if err != nil || formNames[cells[2]] == formNone {
			t.Fatalf("%q: %v", l, err)
		}
		documented[tag], names[tag] = field{formNames[cells[2]], documentedKinds(t, cells[3])}, cells[1]
	}
	for tag := range fields {
		if fields[tag] != documented[tag] {
			t.Errorf("field %d is %+v in the code, %+v in the document", tag, fields[tag], documented[tag])
		}
	}
	forms := map[event.Kind]form{
		event.String: formText, event.Int: formUint, event.Bool: formFlag, event.Time: formTime,
		event.Bytes: form32, event.TokenMap: formTokens, event.TagMap: formTags, event.Blob: formBytes,
	}
	seen := 0
	for _, f := range event.Fields {
		if names[int(f.Num)] != f.Name || fields[f.Num].form != forms[f.Kind] {
			t.Errorf("event field %d %s is documented as %s", f.Num, f.Name, names[int(f.Num)])
		}
		seen++
	}
	for tag := range names {
		if tag < tagSeq {
			seen--
		}
	}
	if seen != 0 {
		t.Errorf("the document has %d event fields too many", -seen)
	}
}

func documentedKinds(t *testing.T, text string) (kinds uint8) {
	if text == "all" {
		return anyKind
	}
	for name := range strings.SplitSeq(text, ", ") {
		found := false
		for k := chain.Usage; k <= chain.DeclaredLoss; k++ {
			if k.String() == name {
				kinds, found = kinds|1<<k, true
			}
		}
		if !found {
			t.Errorf("no kind %q", name)
		}
	}
	return kinds
}

// What decode accepts is what the writer's own decoder accepts and writes again
// the same: neither knows the other.
func agree(t interface {
	Helper()
	Fatalf(string, ...any)
}, b []byte) {
	t.Helper()
	var e chain.Entry
	var c content
	werr := e.Decode(b)
	canonical := werr == nil && bytes.Equal(e.Append(nil), b)
	err := c.decode(b)
	switch {
	case (err == nil) != canonical:
		t.Fatalf("verifier: %v; writer: %v, canonical %v\n%x", err, werr, canonical, b)
	case err != nil && (err == errVersion) != errors.Is(werr, chain.ErrVersion):
		t.Fatalf("verifier: %v; writer: %v\n%x", err, werr, b)
	case err == nil && (c.seq != e.Seq || string(c.tenant) != e.Event.Tenant || c.kind != uint8(e.Kind) || c.occurred != e.Event.OccurredAt ||
		c.priced != e.Priced || c.cost != int64(e.Cost)):
		t.Fatalf("read differently: %+v, %+v", c, e)
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range newMemory("acme", 8).rows {
		f.Add(r.Canonical)
	}
	text, err := os.ReadFile("../chain/testdata/invalid.txt")
	if err != nil {
		f.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if p := strings.Fields(l); len(p) == 2 && p[0] != "#" {
			f.Add(unhex(f, p[1]))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) { agree(t, b) })
}

// Entries with bytes changed, cut, doubled: the two decoders never disagree.
func TestDecodersAgree(t *testing.T) {
	var bodies [][]byte
	files, _ := filepath.Glob("../chain/testdata/chain-*.txt")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(l, "canonical "); ok {
				bodies = append(bodies, unhex(t, strings.TrimSpace(value)))
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(rapid.SampledFrom(bodies).Draw(t, "body"))
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				b[at] = rapid.Byte().Draw(t, "byte")
			case 1:
				b = append(b[:at], b[at+1:]...)
			case 2:
				b = append(b[:at:at], append([]byte{rapid.Byte().Draw(t, "byte")}, b[at:]...)...)
			}
			if len(b) == 0 {
				return
			}
		}
		agree(t, b)
	})
}
