package postgres

import (
	"encoding/hex"
	"strconv"
	"time"
)

// SignerAt is the signer with another clock.
func SignerAt(s *Signer, now func() time.Time) *Signer {
	return &Signer{kid: s.kid, key: s.key, now: now}
}

// AskTransaction is the statement whose answer Token takes.
const AskTransaction = askTransaction

// Token signs tenants for a transaction that AskTransaction answered for.
func Token(s *Signer, pid int, start []byte, tenants []string) string {
	return s.token(transaction{strconv.Itoa(pid), hex.EncodeToString(start)}, tenants)
}
