package vaultkms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/jsoncall"
)

// Secret is a field of a secret in a key/value engine, version 2, of the same server.
// It may be used from many goroutines.
type Secret struct {
	access
	mount, path, field string
}

// ErrSecretName says that a text does not name a field of a secret.
var ErrSecretName = errors.New("not MOUNT/PATH#FIELD of a secret, such as secret/tallystick#pepper")

// SplitSecret reads "MOUNT/PATH#FIELD"; the mount is the first part. Error:
// ErrSecretName.
func SplitSecret(name string) (mount, path, field string, err error) {
	place, field, ok := strings.Cut(name, "#")
	mount, path, below := strings.Cut(place, "/")
	if !ok || !below || mount == "" || field == "" || strings.Contains("/"+path+"/", "//") || strings.ContainsAny(field, "#/") {
		return "", "", "", fmt.Errorf("%q is %w", name, ErrSecretName)
	}
	return mount, path, field, nil
}

// NewSecret makes a Secret of the name that stands in o.Key. It asks nothing of the
// server yet.
func NewSecret(o Options) (*Secret, error) {
	mount, path, field, err := SplitSecret(o.Key)
	if err != nil {
		return nil, fmt.Errorf("vaultkms: %w", err)
	}
	a, err := newAccess(o)
	if err != nil {
		return nil, err
	}
	return &Secret{a, mount, path, field}, nil
}

// Read gives the newest version's text. Error: keyring.ErrUnavailable, also when the
// secret or the field is not there; it never holds a part of the secret.
func (s *Secret) Read(ctx context.Context) (string, error) {
	header, err := s.header()
	if err != nil {
		return "", err
	}
	parts := strings.Split(s.path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	var out struct {
		Data struct{ Data map[string]any }
	}
	path := "/v1/" + url.PathEscape(s.mount) + "/data/" + strings.Join(parts, "/")
	if err := s.calls.Get(ctx, path, header, &out); err != nil {
		return "", fmt.Errorf("vaultkms: read: %w", err)
	}
	text, ok := out.Data.Data[s.field].(string)
	if !ok {
		return "", fmt.Errorf("%w: vaultkms: %s/%s has no text in the field %s", keyring.ErrUnavailable, s.mount, s.path, s.field)
	}
	return text, nil
}

// access is what every call to the server needs.
type access struct {
	o     Options
	calls *jsoncall.Client
}

func newAccess(o Options) (access, error) {
	if o.Token == "" && o.TokenFile == "" {
		return access{}, errors.New("vaultkms: no token, and no file with one")
	}
	calls, err := jsoncall.New(o.Address, o.CA)
	if err != nil {
		return access{}, fmt.Errorf("vaultkms: %w", err)
	}
	return access{o, calls}, nil
}

// header are the headers of a call, with the token as it is now.
func (a *access) header() (http.Header, error) {
	token, err := a.token()
	if err != nil {
		return nil, fmt.Errorf("%w: vaultkms: %w", keyring.ErrUnavailable, err)
	}
	h := http.Header{"X-Vault-Token": {token}, "X-Vault-Request": {"true"}}
	if a.o.Namespace != "" {
		h.Set("X-Vault-Namespace", a.o.Namespace)
	}
	return h, nil
}
