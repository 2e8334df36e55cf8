package postgres

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// tokenLife is how long a tenant context may be entered after it was signed.
// It is entered at once; the life only has to cover a slow connection.
const tokenLife = 2 * time.Minute

// Signer signs tenant contexts. It is safe for concurrent use.
type Signer struct {
	kid int
	key [32]byte
	now func() time.Time
}

// NewSigner makes a signer of key number kid, whose key the database must have
// (Provision gives it).
func NewSigner(kid int, key [32]byte) *Signer {
	return &Signer{kid: kid, key: key, now: time.Now}
}

// Token is a context that names the tenants: "v1|kid|expiry|a,b,c|mac", the MAC
// being HMAC-SHA-256 over all before its bar, as lower-case hexadecimal.
func (s *Signer) Token(tenants []string) string {
	var b strings.Builder
	b.WriteString("v1|")
	b.WriteString(strconv.Itoa(s.kid))
	b.WriteByte('|')
	b.WriteString(strconv.FormatInt(s.now().Add(tokenLife).Unix(), 10))
	b.WriteByte('|')
	for i, t := range tenants {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(t)
	}
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write([]byte(b.String()))
	b.WriteByte('|')
	b.WriteString(hex.EncodeToString(mac.Sum(nil)))
	return b.String()
}

// pads are the two blocks that HMAC-SHA-256 puts before its message (RFC 2104);
// the database keeps them in place of the key.
func (s *Signer) pads() (ipad, opad []byte) {
	ipad, opad = make([]byte, sha256.BlockSize), make([]byte, sha256.BlockSize)
	for i := range ipad {
		var k byte
		if i < len(s.key) {
			k = s.key[i]
		}
		ipad[i], opad[i] = k^0x36, k^0x5c
	}
	return ipad, opad
}
