package evidence_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"
)

// member is one file of a package that is taken apart.
type member struct {
	name    string
	content []byte
	method  uint16
}

func takeApart(t testing.TB, b []byte) []member {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var list []member
	for _, f := range z.File {
		in, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, member{f.Name, content, f.Method})
	}
	return list
}

func putTogether(t testing.TB, list []member) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, m := range list {
		w, err := z.CreateHeader(&zip.FileHeader{Name: m.name, Method: m.method})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// content is the member of the name, to be changed in place.
func content(t testing.TB, list []member, name string) *[]byte {
	t.Helper()
	i := slices.IndexFunc(list, func(m member) bool { return m.name == name })
	if i < 0 {
		t.Fatalf("no member %s", name)
	}
	return &list[i].content
}

// relist makes the manifest's list of files true again, as a forger would.
func relist(t testing.TB, list []member, change func(m *evidence.Manifest)) []member {
	t.Helper()
	manifest := content(t, list, "manifest.json")
	var m evidence.Manifest
	if err := json.Unmarshal(*manifest, &m); err != nil {
		t.Fatal(err)
	}
	m.Files = nil
	for _, f := range list {
		if f.name != "manifest.json" {
			digest := sha256.Sum256(f.content)
			m.Files = append(m.Files, evidence.File{Name: f.name, Bytes: int64(len(f.content)), SHA256: hex.EncodeToString(digest[:])})
		}
	}
	if change != nil {
		change(&m)
	}
	b, err := json.Marshal(&m)
	if err != nil {
		t.Fatal(err)
	}
	*manifest = b
	return list
}

// entry finds entry seq in an export's bytes: where its canonical bytes begin,
// and how many there are.
func entry(t testing.TB, export []byte, seq int64) (at, n int) {
	t.Helper()
	at = bytes.IndexByte(export, '\n') + 1
	at += bytes.IndexByte(export[at:], '\n') + 1
	for {
		size, first, count := int(binary.BigEndian.Uint32(export[at:])), int64(binary.BigEndian.Uint64(export[at+4:])), int64(binary.BigEndian.Uint32(export[at+12:]))
		at += 16
		if seq >= first+count {
			at += size
			continue
		}
		for ; first < seq; first++ {
			n, l := binary.Uvarint(export[at:])
			at += l + int(n) + 68
		}
		n, l := binary.Uvarint(export[at:])
		return at + l, int(n)
	}
}

// rewrite changes a byte of entry seq and recomputes everything that needs no
// key, and the MACs as well when they can be.
func (w *world) rewrite(seq int64, withKey bool) {
	w.t.Helper()
	m := w.ledger
	h, prev := chain.NewHasher(), chain.Genesis("acme")
	if seq > 1 {
		prev = chain.Hash(m.rows[seq-2].Chain)
	}
	rows := m.rows
	m.rows, m.hashes = m.rows[:seq-1:seq-1], m.hashes[:tlog.StoredHashCount(seq-1)]
	for i := seq - 1; i < int64(len(rows)); i++ {
		r := rows[i]
		if r.Seq == seq {
			r.Canonical = bytes.Replace(r.Canonical, []byte("\x0b\x01m"), []byte("\x0b\x01n"), 1)
		}
		leaf := h.Leaf(r.Canonical)
		prev = h.Next(&prev, &leaf)
		r.Chain = bytes.Clone(prev[:])
		if withKey {
			key, _ := macKey(uint32(r.Epoch))
			mac := chain.NewMACKey(key, uint32(r.Epoch)).MAC(r.Seq, &prev)
			r.MAC = mac[:]
		}
		m.add(w.t, r, m.times[i])
	}
	m.times = m.times[:len(m.rows)]
}

func TestTamperedPackages(t *testing.T) {
	const n = 6000
	sizes := []int64{1000, 3000, 5000}
	whole := func(w *world) []member {
		b, _ := w.write(evidence.Request{})
		return takeApart(t, b)
	}
	for name, c := range map[string]struct {
		// change makes the package's members out of a world.
		change func(w *world) []member
		o      func(w *world, o *verify.PackageOptions)
		by     verify.Detector
		reason verify.Reason
		seq    int64
	}{
		"a bit of an entry": {func(w *world) []member {
			list := whole(w)
			b := content(t, list, "entries.tsx")
			at, _ := entry(t, *b, 777)
			(*b)[at+9] ^= 1
			return relist(t, list, nil)
		}, nil, verify.ByChain, verify.Hash, 777},
		"rewritten without the key": {func(w *world) []member {
			w.rewrite(1234, false)
			return whole(w)
		}, nil, verify.ByRoot, verify.Root, 1001},
		"rewritten without the key, beside the checkpoint": {func(w *world) []member {
			w.rewrite(1001, false)
			return whole(w)
		}, nil, verify.ByMAC, verify.MAC, 1001},
		"rewritten with the key": {func(w *world) []member {
			w.rewrite(3333, true)
			return whole(w)
		}, nil, verify.ByRoot, verify.Root, 3001},
		"rewritten in the first tree": {func(w *world) []member {
			w.rewrite(44, true)
			return whole(w)
		}, nil, verify.ByRoot, verify.Root, 1},
		"rewritten with both keys against the copy that was kept": {func(w *world) []member {
			w.forge(t, 2222)
			return whole(w)
		}, nil, verify.ByProof, verify.Consistency, 3000},
		"rewritten with both keys, beyond the range": {func(w *world) []member {
			w.forge(t, 2222)
			b, _ := w.write(evidence.Request{From: 3500, To: 4000, Kept: []int64{3000}})
			return takeApart(t, b)
		}, nil, verify.ByProof, verify.Consistency, 3500},
		"a checkpoint of another key": {func(w *world) []member {
			w.ledger.useKey(t, "test.example/ledger/acme", 66)
			w.ledger.keys = w.ledger.keys[:1]
			w.ledger.notes = nil
			for _, size := range sizes {
				w.ledger.sign(t, size)
			}
			return whole(w)
		}, nil, verify.BySignature, verify.Signature, 1000},
		"a checkpoint edited": {func(w *world) []member {
			list := whole(w)
			b := content(t, list, "checkpoints/ledger/00000000000000003000")
			(*b)[bytes.IndexByte(*b, '\n')+8] ^= 1
			return relist(t, list, nil)
		}, nil, verify.BySignature, verify.Signature, 3000},
		"a checkpoint under another size": {func(w *world) []member {
			list := whole(w)
			*content(t, list, "checkpoints/ledger/00000000000000003000") = *content(t, list, "checkpoints/ledger/00000000000000001000")
			return relist(t, list, nil)
		}, nil, verify.BySignature, verify.Signature, 3000},
		"another tenant's checkpoint": {func(w *world) []member {
			w.ledger.useKey(t, "test.example/ledger/bravo", 1)
			w.ledger.keys = w.ledger.keys[:1]
			w.ledger.sign(t, n)
			return whole(w)
		}, nil, verify.BySignature, verify.Signature, n},
		"a sum in the manifest": {func(w *world) []member {
			return relist(t, whole(w), func(m *evidence.Manifest) { m.Totals.Money[0].Cost = "1" + m.Totals.Money[0].Cost })
		}, nil, verify.ByManifest, verify.Manifest, 0},
		"a kind in the manifest": {func(w *world) []member {
			return relist(t, whole(w), func(m *evidence.Manifest) { m.Kinds["usage"]-- })
		}, nil, verify.ByManifest, verify.Manifest, 0},
		"a file that is not the one listed": {func(w *world) []member {
			list := whole(w)
			*content(t, list, "README.txt") = []byte("trust me")
			return list
		}, nil, verify.ByManifest, verify.Manifest, 0},
		"a file that is not listed": {func(w *world) []member {
			list := relist(t, whole(w), nil)
			return append(list, member{"checkpoints/ledger/00000000000000005500", w.ledger.note(t, 5500, rootOf(t, w.ledger, 5500)).Note, zip.Store})
		}, nil, verify.ByManifest, verify.Manifest, 0},
		"an audit row": {func(w *world) []member {
			list := whole(w)
			b := content(t, list, "audit.tsx")
			at, size := entry(t, *b, 33)
			(*b)[at+size-1] ^= 1
			return relist(t, list, nil)
		}, nil, verify.ByAudit, verify.AuditTrail, 33},
		"audit rows taken away": {func(w *world) []member {
			list := slices.DeleteFunc(whole(w), func(m member) bool { return m.name == "audit.tsx" })
			return relist(t, list, nil)
		}, nil, "", "", 0},
		"the audit log's entries for the ledger's": {func(w *world) []member {
			list := whole(w)
			*content(t, list, "entries.tsx") = *content(t, list, "audit.tsx")
			return relist(t, list, nil)
		}, nil, verify.ByManifest, verify.Manifest, 0},
		"a proof": {func(w *world) []member {
			b, _ := w.write(evidence.Request{From: 2000, To: 4000})
			list := takeApart(t, b)
			p := content(t, list, "proofs.json")
			at := bytes.Index(*p, []byte("consistency")) + bytes.Index((*p)[bytes.Index(*p, []byte("consistency")):], []byte("hashes")) + 25
			(*p)[at] = "0123456789abcdef1"[1+strings.IndexByte("0123456789abcdef", (*p)[at])]
			return relist(t, list, nil)
		}, nil, verify.ByProof, verify.Consistency, 3001},
		"the left edge": {func(w *world) []member {
			b, _ := w.write(evidence.Request{From: 2000, To: 4000})
			list := takeApart(t, b)
			p := content(t, list, "proofs.json")
			at := bytes.Index(*p, []byte("left_edge")) + 25
			(*p)[at] = "0123456789abcdef1"[1+strings.IndexByte("0123456789abcdef", (*p)[at])]
			return relist(t, list, nil)
		}, nil, verify.ByRoot, verify.Root, 2000},
		"compressed": {func(w *world) []member {
			list := whole(w)
			list[len(list)-1].method = zip.Deflate
			return list
		}, nil, verify.ByArchive, verify.Archive, 0},
		"two of one name": {func(w *world) []member {
			list := whole(w)
			return append(list, list[1])
		}, nil, verify.ByArchive, verify.Archive, 0},
		"a name that a package does not have": {func(w *world) []member {
			return append(whole(w), member{"../../etc/passwd", []byte("x"), zip.Store})
		}, nil, verify.ByArchive, verify.Archive, 0},
		"bytes after the end of the entries": {func(w *world) []member {
			list := whole(w)
			b := content(t, list, "entries.tsx")
			*b = append(*b, 0)
			return relist(t, list, nil)
		}, nil, verify.ByNumber, verify.Duplicate, 5001},
		"no entries": {func(w *world) []member {
			return relist(t, slices.DeleteFunc(whole(w), func(m member) bool { return m.name == "entries.tsx" }), nil)
		}, nil, "", "", 0},
		"no checkpoint": {func(w *world) []member {
			return relist(t, slices.DeleteFunc(whole(w), func(m member) bool { return strings.HasSuffix(m.name, "5000") }), nil)
		}, nil, "", "", 0},
		"no proof": {func(w *world) []member {
			b, _ := w.write(evidence.Request{From: 2000, To: 4000})
			list := takeApart(t, b)
			*content(t, list, "proofs.json") = regexpConsistency(*content(t, list, "proofs.json"))
			return relist(t, list, nil)
		}, nil, "", "", 0},
		"keys that nobody trusts": {whole, func(_ *world, o *verify.PackageOptions) { o.Trusted = nil }, "", "", 0},
		"a MAC key that is missing": {whole, func(_ *world, o *verify.PackageOptions) {
			o.MACKeys = func(uint32) ([32]byte, error) { return [32]byte{}, errors.New("no such key") }
		}, "", "", 0},
		"a MAC": {func(w *world) []member {
			list := whole(w)
			b := content(t, list, "entries.tsx")
			at, size := entry(t, *b, 4097)
			(*b)[at+size+32] ^= 1
			return relist(t, list, nil)
		}, nil, verify.ByMAC, verify.MAC, 4097},
		"another tenant": {whole, func(_ *world, o *verify.PackageOptions) { o.Tenant = "bravo" }, verify.ByManifest, verify.Manifest, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, n, sizes...)
			o := w.trust()
			switch {
			case strings.HasPrefix(name, "rewritten with both keys"):
				o.Kept = [][]byte{w.ledger.notes[1].Note}
			case strings.HasSuffix(name, "without the key"):
				o.MACKeys = nil // with it the MAC tells more
			}
			if c.o != nil {
				c.o(w, &o)
			}
			r := w.check(putTogether(t, c.change(w)), o)
			if c.by == "" {
				if r.Verdict != verify.Unknown || r.Message == "" {
					t.Errorf("%+v", r)
				}
				return
			}
			if r.Verdict != verify.Broken || r.Detector != c.by || r.Reason != c.reason || r.FirstBad != c.seq {
				t.Errorf("got %s by %s at %d: %s: %s; want %s by %s at %d", r.Verdict, r.Detector, r.FirstBad, r.Reason, r.Message, c.reason, c.by, c.seq)
			}
		})
	}
}

func rootOf(t testing.TB, m *memory, size int64) tlog.Hash {
	t.Helper()
	root, err := tlog.TreeHash(size, m)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// forge rewrites with the MAC key, and signs all checkpoints again.
func (w *world) forge(t testing.TB, seq int64) {
	t.Helper()
	w.rewrite(seq, true)
	var sizes []int64
	for _, c := range w.ledger.notes {
		sizes = append(sizes, c.Size)
	}
	w.ledger.notes = nil
	for _, size := range sizes {
		w.ledger.sign(t, size)
	}
}

// regexpConsistency takes the consistency proofs out of proofs.json.
func regexpConsistency(b []byte) []byte {
	var p map[string]map[string]json.RawMessage
	if err := json.Unmarshal(b, &p); err != nil {
		panic(err)
	}
	for _, log := range p {
		log["consistency"] = []byte("[]")
	}
	b, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return b
}

// A checkpoint that the auditor kept ties packages of different times together.
func TestKeptCheckpoints(t *testing.T) {
	w := newWorld(t, 6000, 1000, 3000, 5000)
	for name, c := range map[string]struct {
		req  evidence.Request
		kept int
		want verify.Verdict
	}{
		"inside":                   {evidence.Request{}, 0, verify.Intact},
		"before, with its proof":   {evidence.Request{From: 2000, To: 3000, Kept: []int64{1000}}, 0, verify.Intact},
		"before, without":          {evidence.Request{From: 2000, To: 3000}, 0, verify.Unknown},
		"after, with its proof":    {evidence.Request{To: 2000, Kept: []int64{5000}}, 2, verify.Intact},
		"newer than the package's": {evidence.Request{To: 2000}, 2, verify.Unknown},
		"just before the range":    {evidence.Request{From: 1001, To: 3000}, 0, verify.Intact},
		"the package's own":        {evidence.Request{From: 1001, To: 3000}, 1, verify.Intact},
	} {
		b, _ := w.write(c.req)
		o := w.trust()
		o.Kept = [][]byte{w.ledger.notes[c.kept].Note}
		if r := w.check(b, o); r.Verdict != c.want {
			t.Errorf("%s: %+v", name, r)
		}
	}
	b, _ := w.write(evidence.Request{})
	for name, kept := range map[string][]byte{
		"junk": []byte("junk"), "of another key": newWorldOf(t, 9).notes[0].Note, "of another origin": newLedgerOf(t, "other.example/ledger/acme").notes[0].Note,
	} {
		o := w.trust()
		o.Kept = [][]byte{kept}
		if r := w.check(b, o); r.Verdict != verify.Unknown {
			t.Errorf("%s: %+v", name, r)
		}
	}
	o := w.trust()
	o.Kept = [][]byte{w.audit.notes[0].Note}
	if r := w.check(b, o); r.Verdict != verify.Intact {
		t.Errorf("the audit log's own: %+v", r)
	}
}

// newWorldOf signs a small ledger with another key.
func newWorldOf(t testing.TB, seed byte) *memory {
	m := newLedger(t, "acme", 20)
	m.useKey(t, m.origin, seed)
	m.sign(t, 20)
	return m
}

func newLedgerOf(t testing.TB, origin string) *memory {
	m := newLedger(t, "acme", 20)
	m.useKey(t, origin, 1)
	m.sign(t, 20)
	return m
}

// Two heads of one size cannot both be of this ledger.
func TestForks(t *testing.T) {
	w, other := newWorld(t, 2000, 500, 1500), newWorld(t, 2000, 500)
	other.rewrite(700, true)
	other.ledger.sign(t, 1500)
	o := w.trust()
	o.Kept = [][]byte{other.ledger.notes[1].Note}
	b, _ := w.write(evidence.Request{})
	r := w.check(b, o)
	if r.Verdict != verify.Broken || r.Reason != verify.Consistency || r.FirstBad != 1500 {
		t.Errorf("two heads of one size: %+v", r)
	}
	b, _ = other.write(evidence.Request{})
	if r := other.check(b, other.trust()); r.Verdict != verify.Intact {
		t.Errorf("the other head by itself: %+v", r)
	}
}

// A new key is trusted because the one before states it; one that nobody states
// is not.
func TestKeysAreFollowed(t *testing.T) {
	w := newWorld(t, 1000, 300)
	trust := w.trust()
	w.ledger.useKey(t, w.ledger.origin, 9)
	w.ledger.sign(t, 600)
	w.ledger.useKey(t, w.ledger.origin, 10)
	w.ledger.sign(t, 900)
	b, _ := w.write(evidence.Request{})
	if r := w.check(b, trust); r.Verdict != verify.Intact || r.Covered != 900 {
		t.Errorf("%+v", r)
	}
	list := slices.DeleteFunc(takeApart(t, b), func(m member) bool { return strings.HasSuffix(m.name, "key-0000000002") })
	if r := w.check(putTogether(t, relist(t, list, nil)), trust); r.Verdict != verify.Broken || r.Reason != verify.Signature || r.FirstBad != 600 {
		t.Errorf("without the statement between: %+v", r)
	}
	// Who trusts a newer key only cannot judge what the one before it signed.
	newer := trust
	newer.Trusted = nil
	for _, k := range append(w.ledger.keys[1:2:2], w.audit.keys...) {
		list, err := verify.ParseKeys([]byte(k.VKey))
		if err != nil {
			t.Fatal(err)
		}
		newer.Trusted = append(newer.Trusted, list...)
	}
	if r := w.check(b, newer); r.Verdict != verify.Unknown || !strings.Contains(r.Message, "before the keys that you trust") {
		t.Errorf("with a newer key alone: %+v", r)
	}
	self := trust
	self.Trusted, self.SelfAsserted = nil, true
	if r := w.check(b, self); r.Verdict != verify.Intact || len(r.Warnings) == 0 || !strings.Contains(r.Warnings[0], "self-asserted") {
		t.Errorf("self-asserted: %+v", r)
	}
}

// cosigner signs as a witness does (C2SP tlog-cosignature).
type cosigner struct {
	note.Verifier
	key  ed25519.PrivateKey
	time uint64
}

func (c cosigner) Sign(msg []byte) ([]byte, error) {
	sig := ed25519.Sign(c.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", c.time, msg))
	return append(binary.BigEndian.AppendUint64(nil, c.time), sig...), nil
}

func newCosigner(t testing.TB, name string, seed byte) (cosigner, verify.VerifierKeys) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	pub := append([]byte{4}, key.Public().(ed25519.PublicKey)...)
	id := sha256.Sum256(append([]byte(name+"\n"), pub...))
	keys, err := verify.ParseKeys([]byte(fmt.Sprintf("%s+%x+%s", name, id[:4], encodeBase64(pub))))
	if err != nil {
		t.Fatal(err)
	}
	return cosigner{keys[0], key, uint64(time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC).Unix())}, keys
}

// witnessKey is the verifier key of the first witness, as a file.
func witnessKey(t testing.TB) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{21}, 32))
	pub := append([]byte{4}, key.Public().(ed25519.PublicKey)...)
	id := sha256.Sum256(append([]byte("witness.example/one\n"), pub...))
	return fmt.Sprintf("witness.example/one+%x+%s\n", id[:4], encodeBase64(pub))
}

func TestWitnesses(t *testing.T) {
	one, oneKey := newCosigner(t, "witness.example/one", 21)
	_, twoKey := newCosigner(t, "witness.example/two", 22)
	w := newWorld(t, 100)
	w.ledger.sign(t, 50)
	w.ledger.sign(t, 90, one)
	w.audit.notes = nil
	b, _ := w.write(evidence.Request{})
	for name, c := range map[string]struct {
		keys   verify.VerifierKeys
		quorum int
		want   verify.Verdict
	}{
		"the one that signed":  {oneKey, 0, verify.Intact},
		"one of two":           {slices.Concat(oneKey, twoKey), 1, verify.Intact},
		"both":                 {slices.Concat(oneKey, twoKey), 0, verify.Unknown},
		"one that did not":     {twoKey, 0, verify.Unknown},
		"more than there are":  {oneKey, 2, verify.Unknown},
		"none is asked for":    {nil, 0, verify.Intact},
		"a quorum and no keys": {nil, 1, verify.Unknown},
	} {
		o := w.trust()
		o.Witnesses, o.Quorum = c.keys, c.quorum
		if r := w.check(b, o); r.Verdict != c.want {
			t.Errorf("%s: %+v", name, r)
		}
	}
	list := takeApart(t, b)
	cp := content(t, list, "checkpoints/ledger/00000000000000000090")
	(*cp)[len(*cp)-9] ^= 1
	o := w.trust()
	o.Witnesses = oneKey
	if r := w.check(putTogether(t, relist(t, list, nil)), o); r.Verdict != verify.Broken || r.Reason != verify.Signature {
		t.Errorf("a cosignature that is false: %+v", r)
	}
}

// Whatever bit of a package is changed, it is not called intact (every third
// byte, and all bits in turn).
func TestBytesOfAPackage(t *testing.T) {
	w := newWorld(t, 30, 9, 25)
	good, _ := w.write(evidence.Request{From: 3, To: 20})
	o := w.trust()
	directory := bytes.Index(good, []byte("PK\x01\x02"))
	for i := 0; i < len(good); i += 3 {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		r, err := verify.Package(context.Background(), bytes.NewReader(b), int64(len(b)), o)
		if err == nil && r.Verdict == verify.Intact && !freeByte(good, i, directory) {
			t.Fatalf("byte %d (%q) does not count", i, good[max(0, i-20):i+1])
		}
	}
}

// freeByte says of the archive's own headers, not of any member, that nothing
// depends on the byte: times, versions, attributes.
func freeByte(b []byte, i, directory int) bool {
	if i >= directory {
		return true
	}
	// A local header with its name and extra field, or a data descriptor.
	for at := range directory {
		switch {
		case bytes.HasPrefix(b[at:], []byte("PK\x03\x04")):
			end := at + 30 + int(binary.LittleEndian.Uint16(b[at+26:])) + int(binary.LittleEndian.Uint16(b[at+28:]))
			if i >= at && i < end {
				return true
			}
		case bytes.HasPrefix(b[at:], []byte("PK\x07\x08")):
			if i >= at && i < at+16 {
				return true
			}
		}
	}
	return false
}

func TestCutPackages(t *testing.T) {
	w := newWorld(t, 500, 400)
	good, _ := w.write(evidence.Request{})
	for n := 0; n < len(good); n += 1 + n/50 {
		r, err := verify.Package(t.Context(), bytes.NewReader(good[:n]), int64(n), w.trust())
		if n < 4 != errors.Is(err, verify.ErrNotPackage) || n >= 4 && r.Verdict != verify.Unknown {
			t.Fatalf("cut at %d: %+v, %v", n, r, err)
		}
	}
}

func FuzzPackage(f *testing.F) {
	w := newWorld(f, 20, 9, 15)
	small, _ := w.write(evidence.Request{From: 3, To: 12})
	f.Add(small)
	for _, name := range []string{"manifest.json", "proofs.json", "entries.tsx", "keys.txt"} {
		list := slices.DeleteFunc(takeApart(f, small), func(m member) bool { return m.name == name })
		f.Add(putTogether(f, list))
	}
	o := w.trust()
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := verify.Package(context.Background(), bytes.NewReader(b), int64(len(b)), o)
		if err != nil && !errors.Is(err, verify.ErrNotPackage) {
			t.Fatal(err)
		}
		if err == nil && (r.Verdict == verify.Broken) != (r.Reason != "") {
			t.Fatalf("%+v", r)
		}
	})
}
