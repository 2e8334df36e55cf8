// Package vaultkms wraps root keys under a key of the transit engine of
// HashiCorp Vault or OpenBao, and reads secrets of the same server.
//
// The binding of a root key is the associated data of its encryption, which the
// engine authenticates for keys of the AES-GCM and ChaCha20-Poly1305 types.
// Rotation of the key needs nothing here: wrapped keys name their version, and
// Rewrap moves them to the newest. The token is read from its file at each
// call, so that an agent can renew it.
package vaultkms

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/tallystick/tallystick/internal/keyring"
)

// Options name a key of a transit engine, or a field of a secret.
type Options struct {
	Address   string // URL of the server
	Key       string // mount and name, such as "transit/tallystick"; NewSecret's is MOUNT/PATH#FIELD
	Token     string
	TokenFile string // read at each call; goes before Token
	Namespace string // of Vault Enterprise and OpenBao; may be empty
	CA        []byte // PEM roots in place of the system's; nil: the system's
}

// Key is a keyring.KMS. It may be used from many goroutines.
type Key struct {
	access
	mount, name string
}

// New makes a Key. It asks nothing of the server yet.
func New(o Options) (*Key, error) {
	i := strings.LastIndexByte(o.Key, '/')
	if i <= 0 || i == len(o.Key)-1 {
		return nil, fmt.Errorf("vaultkms: %q is not the mount and name of a key, such as transit/tallystick", o.Key)
	}
	a, err := newAccess(o)
	if err != nil {
		return nil, err
	}
	return &Key{a, o.Key[:i], o.Key[i+1:]}, nil
}

// ID implements keyring.KMS.
func (k *Key) ID() string { return "vault:" + k.o.Key }

// Wrap implements keyring.KMS.
func (k *Key) Wrap(ctx context.Context, secret []byte, at keyring.Binding) ([]byte, error) {
	var out struct {
		Data struct{ Ciphertext string }
	}
	in := map[string][]byte{"plaintext": secret, "associated_data": at.Bytes()} // bytes travel in base64
	if err := k.post(ctx, "encrypt", in, &out); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(out.Data.Ciphertext, "vault:") {
		return nil, fmt.Errorf("%w: vaultkms: no ciphertext in the answer", keyring.ErrUnavailable)
	}
	return []byte(out.Data.Ciphertext), nil
}

// Unwrap implements keyring.KMS.
func (k *Key) Unwrap(ctx context.Context, wrapped []byte, at keyring.Binding) ([]byte, error) {
	var out struct {
		Data struct{ Plaintext []byte }
	}
	in := map[string]any{"ciphertext": string(wrapped), "associated_data": at.Bytes()}
	if err := k.post(ctx, "decrypt", in, &out); err != nil {
		return nil, err
	}
	return out.Data.Plaintext, nil
}

func (k *Key) post(ctx context.Context, what string, in, out any) error {
	header, err := k.header()
	if err != nil {
		return err
	}
	path := "/v1/" + k.mount + "/" + what + "/" + url.PathEscape(k.name)
	if err := k.calls.Post(ctx, path, header, in, out); err != nil {
		return fmt.Errorf("vaultkms: %s: %w", what, err)
	}
	return nil
}

func (a *access) token() (string, error) {
	if a.o.TokenFile == "" {
		return a.o.Token, nil
	}
	raw, err := os.ReadFile(a.o.TokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(raw))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("%s does not hold one token", a.o.TokenFile)
	}
	return token, nil
}
