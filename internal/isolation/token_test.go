package isolation

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// The context token once more, from docs/security.md and the migration's
// comment, so that attempts can be made that internal/postgres has no way to
// make. The keys are those of internal/testenv.

// contextKey is the installation's key of number 1.
var contextKey = [32]byte{1, 2, 3}

// bound is a transaction as the server names it.
type bound struct {
	pid   int
	start []byte
}

type tokenOf struct {
	version string
	kid     int
	key     [32]byte
	expires time.Time
	in      bound
	tenants string // separated by commas
}

// genuine is what internal/postgres would sign.
func genuine(in bound, tenants string) tokenOf {
	return tokenOf{"v2", 1, contextKey, time.Now().Add(time.Minute), in, tenants}
}

func (t tokenOf) String() string {
	var expiry [8]byte
	binary.BigEndian.PutUint64(expiry[:], uint64(t.expires.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds()))
	text := fmt.Sprintf("%s|%d|%x|%d|%x|%s", t.version, t.kid, expiry, t.in.pid, t.in.start, t.tenants)
	mac := hmac.New(sha256.New, t.key[:])
	mac.Write([]byte(text))
	return text + "|" + hex.EncodeToString(mac.Sum(nil))
}

// tampered is the token with the tenants changed after it was signed.
func (t tokenOf) tampered(tenants string) string {
	return strings.Replace(t.String(), "|"+t.tenants+"|", "|"+tenants+"|", 1)
}
