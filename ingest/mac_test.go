package ingest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"
)

// The prepared keys must give the HMAC of the standard library, with one hash
// object for many keys.
func TestMACIsHMAC(t *testing.T) {
	h := newMACHash()
	rapid.Check(t, func(t *rapid.T) {
		key := [sha256.Size]byte(rapid.SliceOfN(rapid.Byte(), sha256.Size, sha256.Size).Draw(t, "key"))
		msg := rapid.SliceOf(rapid.Byte()).Draw(t, "msg")
		prepared, err := newMACKey(key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.mac(prepared, msg)
		if err != nil {
			t.Fatal(err)
		}
		want := hmac.New(sha256.New, key[:])
		want.Write(msg)
		if !bytes.Equal(got[:], want.Sum(nil)) {
			t.Fatalf("%x, want %x", got, want.Sum(nil))
		}
	})
}

func TestMACDoesNotAllocate(t *testing.T) {
	key, err := newMACKey([sha256.Size]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	h, msg := newMACHash(), make([]byte, 300)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := h.mac(key, msg); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
