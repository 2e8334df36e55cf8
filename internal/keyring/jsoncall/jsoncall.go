// Package jsoncall makes the HTTP calls of those key services that need no
// more of a client: one JSON object there, one back.
//
// It follows no redirect (a credential must not travel to where an answer
// points), speaks plain HTTP with loopback only, bounds what it reads, and
// puts neither a credential nor a body into an error.
package jsoncall

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
)

// maxAnswerBytes is far above a wrapped key and what surrounds it.
const maxAnswerBytes = 1 << 20

// ErrAddress says that an address cannot be used.
var ErrAddress = errors.New("not an https address, nor http on loopback")

// Client calls one service. It may be used from many goroutines.
type Client struct {
	base string
	http *http.Client
}

// New makes a Client of a base address such as "https://vault.example:8200".
// ca holds PEM roots in place of the system's; nil is the system's.
func New(address string, ca []byte) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fmt.Errorf("%w: %q", ErrAddress, address)
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != nil {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("the file of roots holds no PEM certificate")
		}
	}
	return &Client{strings.TrimSuffix(address, "/"), &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: settings, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Post sends in to a path and decodes the answer into out. Errors:
// keyring.ErrMasterKey when the service says that the request is wrong (400),
// keyring.ErrUnavailable for every other failure.
func (c *Client) Post(ctx context.Context, path string, header http.Header, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header.Clone()
	req.Header.Set("Content-Type", "application/json")
	return c.do(req, out)
}

// Get asks for a path and decodes the answer into out. Errors as Post's.
func (c *Client) Get(ctx context.Context, path string, header http.Header, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	req.Header = header.Clone()
	return c.do(req, out)
}

func (c *Client) do(req *http.Request, out any) error {
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", keyring.ErrUnavailable, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", keyring.ErrUnavailable, err)
	case resp.StatusCode == http.StatusBadRequest:
		return fmt.Errorf("%w: %s answers %s", keyring.ErrMasterKey, c.base, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: %s answers %s", keyring.ErrUnavailable, c.base, resp.Status)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%w: %s answers what is no JSON of ours", keyring.ErrUnavailable, c.base)
	}
	return nil
}
