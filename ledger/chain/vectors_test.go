package chain

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

var rewrite = flag.Bool("rewrite", false, "write the computed values into testdata")

// TestVectors holds the encoder and the formulas against testdata/chain-*.txt,
// which docs/ledger-format.md describes: a header, then the entries of one
// chain, each with its fields and what they come to.
func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/chain-*.txt")
	if err != nil || len(files) < 2 {
		t.Fatalf("test files %v: %v", files, err)
	}
	seen := map[Kind]bool{}
	fields := map[string]bool{}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := computeVectors(t, string(text), seen, fields)
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("%s is not what the code computes; -rewrite and look at the difference", file)
			}
		})
	}
	for k := Usage; k <= DeclaredLoss; k++ {
		if !seen[k] {
			t.Errorf("no vector of kind %s", k)
		}
	}
	for _, f := range event.Fields {
		if !fields[f.Name] {
			t.Errorf("no vector has the field %s", f.Name)
		}
	}
}

// computeVectors reads a file and gives it back with every value computed anew.
func computeVectors(t *testing.T, text string, seen map[Kind]bool, fields map[string]bool) string {
	t.Helper()
	blocks := strings.Split(strings.TrimSuffix(text, "====\n"), "====\n")
	header := lines(blocks[0])
	tenantID := header["tenant"]
	root, err := hex.DecodeString(header["integrity_root"])
	if err != nil || len(root) != 32 || tenantID == "" {
		t.Fatalf("the header %v: %v", header, err)
	}
	prev := Genesis(tenantID)
	var out strings.Builder
	fmt.Fprintf(&out, "tenant %s\nintegrity_root %x\n", tenantID, root)
	for epoch := range uint32(2) {
		fmt.Fprintf(&out, "mac_key.%d %x\n", epoch+1, vectorKey(t, root, tenantID, epoch+1))
	}
	fmt.Fprintf(&out, "genesis %x\n====\n", prev)
	epoch := uint32(1)
	for _, b := range blocks[1:] {
		input, _, _ := strings.Cut(b, "----\n")
		e := parseVector(t, input, fields)
		seen[e.Kind] = true
		if e.ControlKind == event.ControlKeyEpoch {
			n, err := strconv.ParseUint(e.ControlVersion, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			epoch = uint32(n)
		}
		canonical := e.Append(nil)
		var again Entry
		if err := again.Decode(canonical); err != nil || !bytes.Equal(again.Append(nil), canonical) {
			t.Errorf("entry %d does not survive decoding: %v", e.Seq, err)
		}
		h := NewHasher()
		leaf := h.Leaf(canonical)
		prev = h.Next(&prev, &leaf)
		mac := NewMACKey(vectorKey(t, root, tenantID, epoch), epoch).MAC(e.Seq, &prev)
		fmt.Fprintf(&out, "%s----\ncanonical %x\nleaf %x\nchain %x\nkey_epoch %d\nmac %x\n====\n", input, canonical, leaf, prev, epoch, mac)
	}
	return out.String()
}

// vectorKey is the derivation of internal/keyring's package comment, written
// out: the document promises it to whoever holds an integrity root.
func vectorKey(t *testing.T, root []byte, tenantID string, epoch uint32) (key [32]byte) {
	t.Helper()
	info := binary.BigEndian.AppendUint32([]byte("tallystick/mac\x00"+tenantID+"\x00"), epoch)
	b, err := hkdf.Key(sha256.New, root, nil, string(info), 32)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(b)
}

func lines(text string) map[string]string {
	m := map[string]string{}
	for l := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		m[name] = value
	}
	return m
}

// parseVector reads an entry's fields, one a line: its name, a space, its value.
func parseVector(t *testing.T, text string, fields map[string]bool) *Entry {
	t.Helper()
	e := &Entry{}
	for l := range strings.Lines(text) {
		l = strings.TrimSuffix(l, "\n")
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		name, value, _ := strings.Cut(l, " ")
		base, member, _ := strings.Cut(name, ".")
		fields[base] = true
		if err := setVectorField(e, base, member, value); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
	}
	return e
}

func setVectorField(e *Entry, name, member, value string) error {
	if f, ok := event.FieldByName(name); ok {
		return setEventField(&e.Event, f, member, value)
	}
	strs := map[string]*string{
		"price_row": &e.PriceRow, "unpriced_reason": &e.UnpricedReason, "reject_reason": &e.RejectReason, "reject_field": &e.RejectField,
		"control_kind": &e.ControlKind, "control_version": &e.ControlVersion, "edge_id": &e.EdgeID,
	}
	if p, ok := strs[name]; ok {
		*p = value
		return nil
	}
	hashes := map[string][]byte{
		"topic_id": e.Position.TopicID[:], "key": e.Key[:], "price_book": e.PriceBook[:], "body_hash": e.BodyHash[:], "control_hash": e.ControlHash[:],
	}
	if p, ok := hashes[name]; ok {
		return setBytes(p, value)
	}
	if name == "kind" {
		i := slices.Index(kindNames[:], value)
		e.Kind = Kind(i)
		return require(i > 0)
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return err
	}
	if name == "token_deltas" {
		c, ok := tokens.ParseClass(member)
		if ok {
			e.Corrected.Tokens[c] = n
		}
		return require(ok)
	}
	if name == "net_cost" {
		e.Corrected.Priced, e.Corrected.NetCost = true, money.Pico(n)
		return nil
	}
	if name == "partition" {
		e.Position.Partition = int32(n)
		return nil
	}
	if name == "cost" {
		e.Priced, e.Cost = true, money.Pico(n)
		return nil
	}
	if name == "reasons" {
		e.Reasons = append(e.Reasons, event.ReasonCount{Reason: member, N: n})
		return nil
	}
	ints := map[string]*int64{
		"seq": &e.Seq, "offset": &e.Position.Offset, "pricing_version": &e.PricingVersion, "body_size": &e.BodySize,
		"corrects_seq": &e.Corrected.Seq, "unpriced_delta": &e.Corrected.Unpriced, "estimated_delta": &e.Corrected.Estimated, "gpu_us_delta": &e.Corrected.GPUMicros,
		"edge_epoch": &e.EdgeEpoch, "accepted": &e.Accepted, "refused": &e.Refused,
	}
	if p, ok := ints[name]; ok {
		*p = n
		return nil
	}
	return errors.New("no such field")
}

func setEventField(e *event.Event, f *event.Field, member, value string) error {
	switch f.Kind {
	case event.String:
		*e.StringPtr(f.Num) = value
		return nil
	case event.Bytes:
		e.HasContentMAC = true
		return setBytes(e.ContentMAC[:], value)
	case event.Blob:
		b, err := hex.DecodeString(value)
		e.SealedTags = b
		return errors.Join(err, require(len(b) > 0))
	case event.TagMap:
		e.Tags = append(e.Tags, event.Tag{Key: member, Value: value})
		return nil
	case event.Bool:
		*e.BoolPtr(f.Num) = true
		return require(value == "true")
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return err
	}
	switch f.Kind {
	case event.Int:
		*e.IntPtr(f.Num) = n
	case event.Time:
		*e.TimePtr(f.Num) = n
	case event.TokenMap:
		c, ok := tokens.ParseClass(member)
		if ok {
			e.Tokens[c] = n
		}
		return require(ok)
	}
	return nil
}

func setBytes(dst []byte, value string) error {
	b, err := hex.DecodeString(value)
	copy(dst, b)
	return errors.Join(err, require(len(b) == len(dst)))
}

func require(ok bool) error {
	if !ok {
		return errors.New("not a value of this field")
	}
	return nil
}

// TestInvalidVectors: bytes that are no canonical entry are refused.
func TestInvalidVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/invalid.txt")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		f := strings.Fields(l)
		b, err := hex.DecodeString(f[1])
		if err != nil {
			t.Fatal(err)
		}
		var e Entry
		switch err := e.Decode(b); {
		case f[0] == "version" && !errors.Is(err, ErrVersion), f[0] != "version" && !errors.Is(err, ErrFormat):
			t.Errorf("%s: %v", l, err)
		}
	}
}
