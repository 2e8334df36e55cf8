// Package gcpkms wraps root keys under a key of Google Cloud KMS.
//
// The binding of a root key is the additional authenticated data of its
// encryption. Credentials are Google's application default ones: a file that
// GOOGLE_APPLICATION_CREDENTIALS names, workload identity, or the machine's
// metadata server. Rotation of the key needs nothing here: a ciphertext names
// its version, and Rewrap moves it to the primary one. Checksums guard both ways.
package gcpkms

import (
	"context"
	"fmt"
	"hash/crc32"
	"net/http"
	"regexp"
	"strconv"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/jsoncall"
)

const (
	endpoint = "https://cloudkms.googleapis.com"
	scope    = "https://www.googleapis.com/auth/cloudkms"
)

var nameForm = regexp.MustCompile(`^projects/[^/?#\s]+/locations/[^/?#\s]+/keyRings/[^/?#\s]+/cryptoKeys/[^/?#\s]+$`)

// Options name a key of Google Cloud KMS.
type Options struct {
	Key      string             // projects/…/locations/…/keyRings/…/cryptoKeys/…
	Endpoint string             // URL in place of Google's own; "": Google's
	CA       []byte             // PEM roots in place of the system's; nil: the system's
	Tokens   oauth2.TokenSource // nil: application default credentials
}

// Key is a keyring.KMS. It may be used from many goroutines.
type Key struct {
	name  string
	calls *jsoncall.Client

	mu     sync.Mutex // protects tokens
	tokens oauth2.TokenSource
}

// New makes a Key. It asks nothing of Google yet.
func New(o Options) (*Key, error) {
	if !nameForm.MatchString(o.Key) {
		return nil, fmt.Errorf("gcpkms: %q is not projects/…/locations/…/keyRings/…/cryptoKeys/…", o.Key)
	}
	if o.Endpoint == "" {
		o.Endpoint = endpoint
	}
	calls, err := jsoncall.New(o.Endpoint, o.CA)
	if err != nil {
		return nil, fmt.Errorf("gcpkms: %w", err)
	}
	return &Key{name: o.Key, calls: calls, tokens: o.Tokens}, nil
}

// ID implements keyring.KMS.
func (k *Key) ID() string { return "gcp:" + k.name }

// Wrap implements keyring.KMS.
func (k *Key) Wrap(ctx context.Context, secret []byte, at keyring.Binding) ([]byte, error) {
	in := map[string]any{
		"plaintext": secret, "plaintextCrc32c": sum(secret), // bytes travel in base64, numbers of 64 bits in quotes
		"additionalAuthenticatedData": at.Bytes(), "additionalAuthenticatedDataCrc32c": sum(at.Bytes()),
	}
	var out struct {
		Ciphertext              []byte
		CiphertextCrc32c        string
		VerifiedPlaintextCrc32c bool
	}
	if err := k.post(ctx, "encrypt", in, &out); err != nil {
		return nil, err
	}
	if !out.VerifiedPlaintextCrc32c || out.CiphertextCrc32c != sum(out.Ciphertext) {
		return nil, fmt.Errorf("%w: gcpkms: a checksum is wrong", keyring.ErrUnavailable)
	}
	return out.Ciphertext, nil
}

// Unwrap implements keyring.KMS.
func (k *Key) Unwrap(ctx context.Context, wrapped []byte, at keyring.Binding) ([]byte, error) {
	in := map[string]any{
		"ciphertext": wrapped, "ciphertextCrc32c": sum(wrapped),
		"additionalAuthenticatedData": at.Bytes(), "additionalAuthenticatedDataCrc32c": sum(at.Bytes()),
	}
	var out struct {
		Plaintext       []byte
		PlaintextCrc32c string
	}
	if err := k.post(ctx, "decrypt", in, &out); err != nil {
		return nil, err
	}
	if out.PlaintextCrc32c != sum(out.Plaintext) {
		return nil, fmt.Errorf("%w: gcpkms: a checksum is wrong", keyring.ErrUnavailable)
	}
	return out.Plaintext, nil
}

func (k *Key) post(ctx context.Context, what string, in, out any) error {
	token, err := k.token(ctx)
	if err != nil {
		return fmt.Errorf("%w: gcpkms: credentials: %w", keyring.ErrUnavailable, err)
	}
	header := http.Header{"Authorization": {token.Type() + " " + token.AccessToken}}
	if err := k.calls.Post(ctx, "/v1/"+k.name+":"+what, header, in, out); err != nil {
		return fmt.Errorf("gcpkms: %s: %w", what, err)
	}
	return nil
}

// token is a fresh enough token, found in as long as ctx allows.
func (k *Key) token(ctx context.Context) (*oauth2.Token, error) {
	type result struct {
		token *oauth2.Token
		err   error
	}
	got := make(chan result, 1)
	go func() { // a token source knows no context
		source, err := k.source()
		if err != nil {
			got <- result{nil, err}
			return
		}
		token, err := source.Token()
		got <- result{token, err}
	}()
	select {
	case r := <-got:
		return r.token, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (k *Key) source() (oauth2.TokenSource, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tokens != nil {
		return k.tokens, nil
	}
	// Kept for the life of the program, hence not a caller's context.
	found, err := google.FindDefaultCredentials(context.Background(), scope)
	if err != nil {
		return nil, err
	}
	k.tokens = found.TokenSource
	return k.tokens, nil
}

// sum is a checksum as the service writes it.
func sum(b []byte) string {
	return strconv.FormatUint(uint64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))), 10)
}
