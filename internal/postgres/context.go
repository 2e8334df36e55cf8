package postgres

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"
)

// tokenLife is how long a tenant context may be entered after it was signed.
// It is entered at once; the life covers a slow connection and clocks that
// differ. It is no protection against replay: the token is of one transaction.
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

// transaction names one transaction of one server process, by the answer to
// askTransaction.
type transaction struct {
	pid   string
	start string // 16 hexadecimal digits: microseconds since 2000
}

// postgresEpoch is what the server counts its microseconds from.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// token is a context that makes the tenants those of that one transaction:
// "v2|kid|expiry|pid|start|a,b,c|mac", the MAC being HMAC-SHA-256 over all
// before its bar, as lower-case hexadecimal.
func (s *Signer) token(of transaction, tenants []string) string {
	size := len("v2||||||") + 20 + 16 + len(of.pid) + len(of.start) + 2*sha256.Size
	for _, t := range tenants {
		size += len(t) + 1
	}
	b := make([]byte, 0, size)
	b = append(b, "v2|"...)
	b = strconv.AppendInt(b, int64(s.kid), 10)
	b = append(b, '|')
	var expiry [8]byte
	binary.BigEndian.PutUint64(expiry[:], uint64(s.now().Add(tokenLife).Sub(postgresEpoch).Microseconds()))
	b = hex.AppendEncode(b, expiry[:])
	b = append(b, '|')
	b = append(b, of.pid...)
	b = append(b, '|')
	b = append(b, of.start...)
	b = append(b, '|')
	for i, t := range tenants {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, t...)
	}
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write(b)
	b = append(b, '|')
	var sum [sha256.Size]byte
	return string(hex.AppendEncode(b, mac.Sum(sum[:0])))
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
