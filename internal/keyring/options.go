package keyring

import (
	"log/slog"
	"time"
)

// Defaults of Options.
const (
	// DefaultTimeout bounds one call of a key service.
	DefaultTimeout = 2 * time.Second
	// failurePause is how long a failed call is remembered in place of a new one.
	failurePause = time.Second
)

// Options say where root keys are wrapped. The zero value wraps them under a
// master key in the ring's own directory.
type Options struct {
	// KMS wraps new keys. nil: the local master key.
	KMS KMS
	// Previous still open keys that they wrapped, until a Rewrap.
	Previous []KMS
	// Passphrase seals the local master key. nil: it lies in the open, mode
	// 0600. At least 12 bytes.
	Passphrase []byte
	// ReadOnly refuses every change, and changes no byte of the directory.
	ReadOnly bool
	// Timeout bounds one call of a key service. 0: DefaultTimeout.
	Timeout time.Duration
	// Now is the clock of rotation. nil: time.Now.
	Now func() time.Time
	// Log gets what an operator must know. nil discards.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
