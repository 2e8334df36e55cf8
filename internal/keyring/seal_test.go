package keyring_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// TestXAES holds the cipher against the vectors of c2sp.org/XAES-256-GCM.
func TestXAES(t *testing.T) {
	for _, c := range []struct {
		key, nonce, text, aad, want string
	}{
		{"01", "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM", "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{"03", "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM", "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		b, err := hex.DecodeString(c.key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := keyring.XAESSeal([32]byte(bytes.Repeat(b, 32)), []byte(c.nonce), []byte(c.text), []byte(c.aad))
		if err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("key %s: %x, %v; want %s", c.key, got, err, c.want)
		}
	}
}

var sealing = []keyring.Purpose{keyring.SealTags, keyring.SealSubject, keyring.SealSecret}

// TestSealOpens: what was sealed opens at its place, and nowhere else.
func TestSealOpens(t *testing.T) {
	r := mustOpen(t, t.TempDir())
	mustCreate(t, r, "acme", "beta")
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z0-9.]{0,6}`)
		id, p := rapid.SampledFrom([]tenant.ID{"acme", "beta"}).Draw(t, "tenant"), rapid.SampledFrom(sealing).Draw(t, "purpose")
		at := keyring.Place{Table: word.Draw(t, "table"), Column: word.Draw(t, "column"), Row: word.Draw(t, "row")}
		plain := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "plain")
		sealed, err := r.Seal([]byte("before"), id, p, at, plain)
		if err != nil || len(sealed) != len("before")+keyring.SealOverhead+len(plain) {
			t.Fatalf("Seal: %d bytes, %v", len(sealed), err)
		}
		sealed = sealed[len("before"):]
		got, err := r.Open([]byte("x"), id, p, at, sealed)
		if err != nil || !bytes.Equal(got, append([]byte("x"), plain...)) {
			t.Fatalf("Open: %q, %v", got, err)
		}

		otherID, otherP := rapid.SampledFrom([]tenant.ID{"acme", "beta"}).Draw(t, "tenant 2"), rapid.SampledFrom(sealing).Draw(t, "purpose 2")
		other := keyring.Place{Table: word.Draw(t, "table 2"), Column: word.Draw(t, "column 2"), Row: word.Draw(t, "row 2")}
		if rapid.Bool().Draw(t, "shift a byte between fields") {
			other = keyring.Place{Table: at.Table + at.Column, Row: at.Row}
		}
		_, err = r.Open(nil, otherID, otherP, other, sealed)
		if same := otherID == id && otherP == p && other == at; same != (err == nil) {
			t.Fatalf("sealed for %s %s %v, opened for %s %s %v: %v", id, p, at, otherID, otherP, other, err)
		} else if !same && !errors.Is(err, keyring.ErrSealed) {
			t.Fatalf("%v, want ErrSealed", err)
		}

		bad := bytes.Clone(sealed)
		bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if _, err := r.Open(nil, id, p, at, bad); !errors.Is(err, keyring.ErrSealed) {
			t.Fatalf("changed bytes: %v, want ErrSealed", err)
		}
		if _, err := r.Open(nil, id, p, at, sealed[:rapid.IntRange(0, len(sealed)-1).Draw(t, "cut")]); !errors.Is(err, keyring.ErrSealed) {
			t.Fatalf("cut bytes: %v, want ErrSealed", err)
		}
	})
}

func TestSealRefuses(t *testing.T) {
	r := mustOpen(t, t.TempDir())
	mustCreate(t, r, "acme")
	for _, c := range []struct {
		id   tenant.ID
		p    keyring.Purpose
		want error
	}{
		{"acme", keyring.MAC, keyring.ErrPurpose}, {"acme", "", keyring.ErrPurpose}, {"nobody", keyring.SealTags, keyring.ErrNoKey},
	} {
		if _, err := r.Seal(nil, c.id, c.p, keyring.Place{}, nil); !errors.Is(err, c.want) {
			t.Errorf("Seal(%s, %q): %v, want %v", c.id, c.p, err, c.want)
		}
		if _, err := r.Open(nil, c.id, c.p, keyring.Place{}, make([]byte, 100)); !errors.Is(err, c.want) {
			t.Errorf("Open(%s, %q): %v, want %v", c.id, c.p, err, c.want)
		}
	}
	for _, p := range sealing {
		if _, err := r.Derive("acme", p, 1); !errors.Is(err, keyring.ErrPurpose) {
			t.Errorf("Derive gives a sealing key away: %v", err)
		}
	}
}

// TestSealedByAnotherProcess opens what another ring of the directory sealed.
func TestSealedByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	a, b := mustOpen(t, dir), mustOpen(t, dir)
	mustCreate(t, a, "acme")
	at := keyring.Place{Table: "subject", Column: "identity", Row: "7"}
	sealed, err := a.Seal(nil, "acme", keyring.SealSubject, at, []byte("ann@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Open(nil, "acme", keyring.SealSubject, at, sealed); err != nil || string(got) != "ann@example.org" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSigningKey(t *testing.T) {
	r := mustOpen(t, t.TempDir())
	mustCreate(t, r, "acme", "beta")
	epoch := r.Epoch("acme", keyring.Checkpoint)
	if epoch != 1 || r.Epoch("acme", keyring.Dedupe) != 0 || r.Epoch("nobody", keyring.Checkpoint) != 0 {
		t.Errorf("epoch %d", epoch)
	}
	key, err := r.SigningKey("acme", epoch)
	if err != nil {
		t.Fatal(err)
	}
	public, err := r.VerifyKey("acme", epoch)
	if err != nil || !ed25519.Verify(public, []byte("note"), ed25519.Sign(key, []byte("note"))) {
		t.Errorf("the halves do not fit: %v", err)
	}
	seed := mustDerive(t, r, "acme", keyring.Checkpoint, epoch)
	if !bytes.Equal(key.Seed(), seed[:]) {
		t.Error("the seed is not the documented one")
	}
	if other, err := r.SigningKey("beta", epoch); err != nil || other.Equal(key) {
		t.Errorf("tenants share a key: %v", err)
	}
}

func BenchmarkSeal(b *testing.B) {
	r := mustOpen(b, b.TempDir())
	mustCreate(b, r, "acme")
	at := keyring.Place{Table: "subject", Column: "identity", Row: "0198b0a0-0000-7000-8000-000000000000"}
	plain, buf := make([]byte, 64), make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Seal(buf, "acme", keyring.SealSubject, at, plain); err != nil {
			b.Fatal(err)
		}
	}
}
