package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// Upload posts a body of size bytes, -1 for unknown, as it is read, and decodes
// the answer into out. Headers of the server's own go beside it.
func (c *Client) Upload(ctx context.Context, path string, header http.Header, body io.Reader, size int64, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, io.NopCloser(body))
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &UnreachableError{Base: c.base, Err: err}
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK {
		return problemOf(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxProblemBytes)).Decode(out); err != nil {
		return fmt.Errorf("client: the answer of %s cannot be read: %w", path, err)
	}
	return nil
}
