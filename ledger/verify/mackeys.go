package verify

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrMACKeys says that a file of MAC keys is none.
var ErrMACKeys = errors.New("verify: not a file of MAC keys")

// errNoMACKey is a key that the file does not hold.
var errNoMACKey = errors.New("it is not among the MAC keys given")

// MACKeys are the MAC keys of one tenant.
type MACKeys struct {
	// Tenant is whose they are; "" when the file does not say.
	Tenant string
	// Ledger and Audit are nil for a log of which the file has no key: its MACs
	// stay unchecked.
	Ledger, Audit Keys
}

// ParseMACKeys reads the MAC keys of one tenant: a line of "tenant" and its id,
// and lines of "mac" or "audit", the key epoch, and 32 bytes in hexadecimal.
// Empty lines and those that begin with # do not count.
func ParseMACKeys(text []byte) (m MACKeys, err error) {
	found := map[string]map[uint32][32]byte{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) == 2 && f[0] == "tenant" {
			if m.Tenant != "" {
				return m, fmt.Errorf("%w: it is of two tenants", ErrMACKeys)
			}
			m.Tenant = f[1]
			continue
		}
		if len(f) != 3 || f[0] != "mac" && f[0] != "audit" {
			return m, fmt.Errorf("%w: a line is not `tenant ID`, `mac EPOCH KEY` or `audit EPOCH KEY`", ErrMACKeys)
		}
		epoch, err1 := strconv.ParseUint(f[1], 10, 31)
		key, err2 := hex.DecodeString(f[2])
		if err1 != nil || err2 != nil || epoch == 0 || len(key) != 32 {
			return m, fmt.Errorf("%w: the %s key of epoch %.20q", ErrMACKeys, f[0], f[1])
		}
		if found[f[0]] == nil {
			found[f[0]] = map[uint32][32]byte{}
		}
		found[f[0]][uint32(epoch)] = [32]byte(key)
	}
	if len(found) == 0 {
		return m, fmt.Errorf("%w: it holds no key", ErrMACKeys)
	}
	m.Ledger, m.Audit = keysOf(found["mac"]), keysOf(found["audit"])
	return m, nil
}

func keysOf(keys map[uint32][32]byte) Keys {
	if keys == nil {
		return nil
	}
	return func(epoch uint32) ([32]byte, error) {
		key, ok := keys[epoch]
		if !ok {
			return key, errNoMACKey
		}
		return key, nil
	}
}
