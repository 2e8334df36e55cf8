package checkpoint_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/ledger/checkpoint"
)

// TestText reads the example of C2SP tlog-checkpoint, and texts that are none.
func TestText(t *testing.T) {
	const text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	h, err := checkpoint.ParseText(text)
	if err != nil || h.Size != 20852163 || h.Text() != text {
		t.Fatalf("%+v, %v", h, err)
	}
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"))
	if err != nil || checkpoint.Hash(tree.Hash) != h.Root {
		t.Errorf("another reader: %v, %v", tree, err)
	}
	if x, err := checkpoint.ParseText(text + "an extension\n"); err != nil || x != h {
		t.Errorf("with an extension line: %+v, %v", x, err)
	}
	for name, bad := range map[string]string{
		"empty": "", "no end": strings.TrimSuffix(text, "\n"), "two lines": "a\n1\n", "no origin": "\n" + text, "empty line": text + "\n",
		"leading zero": strings.Replace(text, "2085", "02085", 1), "plus": strings.Replace(text, "2085", "+2085", 1),
		"too large": strings.Replace(text, "20852163", "9223372036854775808", 1), "negative": strings.Replace(text, "2085", "-2085", 1),
		"short root": strings.Replace(text, "CsUY", "", 1), "loose root": strings.Replace(text, "q2I=", "q2J=", 1), "url base64": strings.Replace(text, "/", "_", 1),
		"huge": text + strings.Repeat("x", 70_000) + "\n",
	} {
		if name == "url base64" {
			bad = strings.Replace(text, "om/Xajj", "om_Xajj", 1)
		}
		if _, err := checkpoint.ParseText(bad); !errors.Is(err, checkpoint.ErrText) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpen(t *testing.T) {
	seed := sha256.Sum256([]byte("a"))
	s, err := checkpoint.NewSigner("a.example/ledger/acme", ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	h := checkpoint.Head{Origin: s.Name(), Size: 3, Root: checkpoint.Hash{1}}
	signed, err := s.SignHead(&h)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := s.SignHead(&h); again != signed {
		t.Error("the same head is signed with other bytes")
	}
	if got, err := checkpoint.Open(signed, s.Name(), s); err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := checkpoint.Open(signed, "a.example/ledger/other", s); !errors.Is(err, checkpoint.ErrText) {
		t.Errorf("as another origin's: %v", err)
	}
	if _, err := s.SignHead(&checkpoint.Head{Origin: "b", Size: 1}); !errors.Is(err, checkpoint.ErrSignature) {
		t.Errorf("a head of another origin was signed: %v", err)
	}
	for i := range len(signed) {
		b := []byte(signed)
		b[i] ^= 1
		if got, err := checkpoint.Open(string(b), s.Name(), s); err == nil && got != h {
			t.Fatalf("byte %d changed: opens as %+v", i, got)
		}
	}
}

func TestDirectory(t *testing.T) {
	d, err := checkpoint.OpenDir(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := d.Newest("ledger", "acme"); ok || err != nil {
		t.Errorf("an empty directory: %v, %v", ok, err)
	}
	for _, size := range []int64{9, 100, 20} {
		for range 2 { // the same once more is no error
			if err := d.Add("ledger", "acme", size, strings.Repeat("x", int(size))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Add("ledger", "acme", 20, "another"); !errors.Is(err, checkpoint.ErrConflict) {
		t.Errorf("a note was replaced: %v", err)
	}
	if err := d.AddKey("ledger", "acme", &checkpoint.Statement{Epoch: 1, Note: "k"}); err != nil {
		t.Fatal(err)
	}
	if err := d.AddCosignature("ledger", "acme", 100, 7, "line"); err != nil {
		t.Fatal(err)
	}
	if err := d.AddCosignature("ledger", "acme", 100, 7, "a later line"); err != nil {
		t.Fatal(err)
	}
	size, note, ok, err := d.Newest("ledger", "acme")
	if size != 100 || len(note) != 100 || !ok || err != nil {
		t.Errorf("%d, %d bytes, %v, %v", size, len(note), ok, err)
	}
	for path, want := range map[string]string{
		"ledger/acme/00000000000000000009": "xxxxxxxxx", "ledger/acme/key-0000000001": "k", "ledger/acme/00000000000000000100.00000007": "line",
	} {
		if b, err := os.ReadFile(filepath.Join(d.Path(), path)); string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if err := d.Add("ledger", "system/0", 1, "s"); err != nil {
		t.Fatal(err)
	}
	if n, _, _, _ := d.Newest("ledger", "system/0"); n != 1 {
		t.Errorf("system/0 at %d", n)
	}
}

func FuzzText(f *testing.F) {
	f.Add("example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n")
	f.Add("a\n0\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\nx\n")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := checkpoint.ParseText(text)
		if err == nil && !strings.HasPrefix(text, h.Text()) {
			t.Fatalf("%q was read as %q", text, h.Text())
		}
		if g, err := checkpoint.OpenUnverified(text + "\n— x y\n"); err == nil && (g != h && !strings.Contains(text, "\n\n")) {
			t.Fatalf("%+v and %+v", g, h)
		}
	})
}
