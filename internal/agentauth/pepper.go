package agentauth

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// PepperOverlap is how long the older of two peppers lives, from when the newer
	// one was first seen.
	PepperOverlap = 24 * time.Hour
	// PepperPoll is how often the pepper's source is read again.
	PepperPoll = 10 * time.Second
	// MinPepperBytes refuses a pepper that can be guessed.
	MinPepperBytes = 32
	maxPepperBytes = 4096
)

// PepperSource gives one or two peppers, the newest first, separated by white
// space: the content of a file or of an environment variable, or what a secrets
// manager answers.
type PepperSource func(ctx context.Context) (string, error)

// PepperLog remembers when peppers were first seen. *Register does.
type PepperLog interface {
	// FirstSeen is when a pepper was first the newest one, which it is from now on
	// if it never was, and the age of that by the same clock.
	FirstSeen(ctx context.Context, fingerprint []byte) (since time.Time, age time.Duration, err error)
	// AnySeen reports whether any pepper was ever in use.
	AnySeen(ctx context.Context) (bool, error)
}

// PepperFile reads peppers from a file that only its owner can read.
func PepperFile(path string) PepperSource {
	return func(context.Context) (string, error) {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return "", err
		}
		if info.Mode().Perm()&0o077 != 0 {
			return "", fmt.Errorf("%w: %s must be readable by its owner only (mode 0600)", ErrPepper, path)
		}
		b := make([]byte, maxPepperBytes+1)
		n, err := f.Read(b)
		if err != nil || n > maxPepperBytes {
			return "", fmt.Errorf("%w: %s cannot be read, or is too long", ErrPepper, path)
		}
		return string(b[:n]), nil
	}
}

// PepperText is a source that never changes, such as an environment variable.
func PepperText(text string) PepperSource {
	return func(context.Context) (string, error) { return text, nil }
}

// NewPepper makes a pepper of 256 random bits.
func NewPepper() string {
	var b [32]byte
	rand.Read(b[:]) // crypto/rand.Read never returns an error
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// CreatePepperFile makes a file with a pepper at the path if there is none. It
// makes none where a pepper was ever in use: agents' secrets are made of it.
func CreatePepperFile(ctx context.Context, path string, log PepperLog) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	seen, err := log.AnySeen(ctx)
	if err != nil {
		return err
	}
	if seen {
		return fmt.Errorf("%w: %s is missing, and agents have secrets that were made of it", ErrPepper, path)
	}
	return writePepper(path, NewPepper()+"\n")
}

// RotatePepperFile puts a new pepper before the newest one of the file, and
// drops older ones.
func RotatePepperFile(ctx context.Context, path string) error {
	text, err := PepperFile(path)(ctx)
	if err != nil {
		return err
	}
	newest, _, err := splitPeppers(text)
	if err != nil {
		return err
	}
	if err := writePepper(path+".new", NewPepper()+"\n"+string(newest)+"\n"); err != nil {
		return err
	}
	return errors.Join(os.Rename(path+".new", path), syncDir(filepath.Dir(path)))
}

// writePepper makes a file of mode 0600 that is whole or not there.
func writePepper(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the pepper: %w", err)
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// splitPeppers reads one or two peppers.
func splitPeppers(text string) (newest, previous []byte, err error) {
	words := strings.Fields(text)
	if len(words) == 0 || len(words) > 2 {
		return nil, nil, fmt.Errorf("%w: one or two are needed, the newest first; there are %d", ErrPepper, len(words))
	}
	for _, w := range words {
		if len(w) < MinPepperBytes || len(w) > maxPepperBytes {
			return nil, nil, fmt.Errorf("%w: it must have %d to %d characters", ErrPepper, MinPepperBytes, maxPepperBytes)
		}
	}
	if len(words) == 2 && words[0] != words[1] {
		previous = []byte(words[1])
	}
	return []byte(words[0]), previous, nil
}

// Peppers are those in force. Its methods may be called from many goroutines.
type Peppers struct {
	source PepperSource
	seen   PepperLog
	log    *slog.Logger
	now    func() time.Time
	nobody []byte // stands for a pepper that is not there, so that the work is the same

	mu       sync.RWMutex // protects what follows
	newest   []byte
	previous []byte
	until    time.Time // the end of previous
}

// LoadPeppers reads the source and registers the newest pepper.
func LoadPeppers(ctx context.Context, source PepperSource, seen PepperLog, log *slog.Logger) (*Peppers, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Peppers{source: source, seen: seen, log: log, now: time.Now, nobody: []byte(NewPepper())}
	return p, p.reload(ctx)
}

// Run reads the source again every PepperPoll until ctx ends. What cannot be
// read or used leaves the peppers as they are, loudly.
func (p *Peppers) Run(ctx context.Context) error {
	tick := time.NewTicker(PepperPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := p.reload(ctx); err != nil && ctx.Err() == nil {
			p.log.ErrorContext(ctx, "the agents' pepper cannot be read; the one in use stays", "err", err)
		}
	}
}

func (p *Peppers) reload(ctx context.Context) error {
	text, err := p.source(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPepper, err)
	}
	newest, previous, err := splitPeppers(text)
	if err != nil {
		return err
	}
	p.mu.RLock()
	same := string(newest) == string(p.newest) && string(previous) == string(p.previous)
	p.mu.RUnlock()
	if same {
		return nil
	}
	_, age, err := p.seen.FirstSeen(ctx, fingerprint(newest))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	until := p.now().Add(PepperOverlap - age)
	p.mu.Lock()
	changed := p.newest != nil
	p.newest, p.previous, p.until = newest, previous, until
	p.mu.Unlock()
	if changed {
		p.log.InfoContext(ctx, "the agents' pepper has changed", "previous_until", until)
	}
	return nil
}

// fingerprint names a pepper and tells nothing of it.
func fingerprint(pepper []byte) []byte {
	b, err := hkdf.Key(sha256.New, pepper, nil, "tallystick/agent-pepper-fingerprint/v1", 16)
	if err != nil {
		panic("agentauth: " + err.Error())
	}
	return b
}

// Credential is the agent's credential under the newest pepper.
func (p *Peppers) Credential(k Key) Credential {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return Credential{k, Derive(p.newest, k)}
}

// Verify checks a proof: that mac was made over the message with a secret of the
// agent. It takes the same steps for every agent, whether it exists or not, and
// for every number of live peppers. until is when the secret ends because its
// pepper does; zero when that is the newest. Error: ErrRefused.
func (p *Peppers) Verify(k Key, message, mac []byte) (until time.Time, err error) {
	p.mu.RLock()
	newest, previous, end := p.newest, p.nobody, p.until
	if p.previous != nil && p.now().Before(p.until) {
		previous = p.previous
	}
	p.mu.RUnlock()
	var match [2]int
	for i, pepper := range [][]byte{newest, previous} {
		secret := Derive(pepper, k)
		want := Sign(&secret, message)
		match[i] = subtle.ConstantTimeCompare(want[:], mac)
	}
	switch {
	case match[0] == 1:
		return time.Time{}, nil
	case match[1] == 1:
		return end, nil
	}
	return time.Time{}, ErrRefused
}
