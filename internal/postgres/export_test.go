package postgres

import "time"

// SignerAt is the signer with another clock.
func SignerAt(s *Signer, now func() time.Time) *Signer {
	return &Signer{kid: s.kid, key: s.key, now: now}
}
