package event

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/tallystick/tallystick/internal/tokens"
)

// DerivedID is the event id of a call whose producer gave it none that can be
// relied on: a UUID of version 8 made of SHA-256 over tenant, source, upstream id,
// start in unix nanoseconds, model, tokens by class and attempt, each behind its
// length. A provider's id alone is never enough: it repeats, and may be empty.
func DerivedID(tenant, source, upstream string, start int64, model string, v *tokens.Vector, attempt int64) string {
	b := append(make([]byte, 0, 256), "tallystick/derived-id/v1\x00"...)
	for _, s := range [...]string{tenant, source, upstream, model} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(start))
	b = binary.BigEndian.AppendUint64(b, uint64(attempt))
	for c, n := range v {
		if n != 0 { // so that a class more changes no id
			b = binary.BigEndian.AppendUint64(append(b, byte(c)), uint64(n))
		}
	}
	sum := sha256.Sum256(b)
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	x := hex.EncodeToString(sum[:KeySize])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}
