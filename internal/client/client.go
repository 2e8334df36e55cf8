// Package client speaks the REST API as a program outside would: it knows paths
// and JSON, and nothing of the server's code.
//
// It promises that money is handed on as the decimal text it came in, that an
// answer other than 200 is a *ProblemError with the server's reason, and that a
// token appears in no error. It never follows a redirect, which would carry the
// token elsewhere, and never tries again by itself.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Limits of what is read of an answer.
const (
	// maxAnswerBytes holds a page of 1,000 entries several times over.
	maxAnswerBytes  = 256 << 20
	maxProblemBytes = 64 << 10
)

// Client calls one server. It may be used by many goroutines.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// New makes a client of the server at base, such as "http://127.0.0.1:8321".
func New(base, token string) *Client {
	return &Client{base: strings.TrimRight(base, "/"), token: token, http: &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close closes the connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// get asks for a path and decodes the answer into out.
func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// post sends a JSON body and decodes the answer into out.
func (c *Client) post(ctx context.Context, path string, body, out any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, b, out)
}

// Call makes a request of a method by its path, with the messages of api/proto:
// a GET without a body, a POST with one.
func (c *Client) Call(ctx context.Context, path string, body, answer proto.Message) error {
	method, content := http.MethodGet, []byte(nil)
	if body != nil {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(body)
		if err != nil {
			return fmt.Errorf("client: %w", err)
		}
		method, content = http.MethodPost, b
	}
	var raw json.RawMessage
	if err := c.do(ctx, method, path, content, &raw); err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("client: the answer of %s cannot be read: %w", path, err)
	}
	return nil
}

// stallTimeout ends a download of which nothing comes.
const stallTimeout = 2 * time.Minute

// ErrStalled says that a download stood still.
var ErrStalled = errors.New("client: nothing came for two minutes")

// Download copies the file at a path to the writer that begin returns for the
// answer's header. An error means that what was written is not the whole file.
func (c *Client) Download(ctx context.Context, path string, query url.Values, begin func(http.Header) io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK {
		return problemOf(resp)
	}
	w := begin(resp.Header)
	watch := time.AfterFunc(stallTimeout, func() { cancel(ErrStalled) })
	defer watch.Stop()
	_, err = io.Copy(w, readerFunc(func(b []byte) (int, error) {
		n, err := resp.Body.Read(b)
		watch.Reset(stallTimeout)
		return n, err
	}))
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err != nil {
		return &UnreachableError{Base: c.base, Err: fmt.Errorf("the download broke off: %w", err)}
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK {
		return problemOf(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes)).Decode(out); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("client: the answer of %s cannot be read: %w", path, err)
	}
	return nil
}

// send sends a request. The caller closes the answer's body.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &UnreachableError{Base: c.base, Err: err}
	}
	return resp, nil
}

// UnreachableError says that no answer came.
type UnreachableError struct {
	Base string
	Err  error
}

func (e *UnreachableError) Error() string {
	err := e.Err
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // its own text repeats method and address
	}
	return fmt.Sprintf("no answer from %s: %v", e.Base, err)
}

// Unwrap gives the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// ProblemError is an answer other than 200.
type ProblemError struct {
	Status int
	// Type is the documented reason, such as "urn:tallystick:error:not_found".
	Type      string `json:"type"`
	Title     string `json:"title"`
	Detail    string `json:"detail"`
	RequestID string `json:"request_id"`
}

func (e *ProblemError) Error() string {
	text := e.Title
	if text == "" {
		text = http.StatusText(e.Status)
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	text = fmt.Sprintf("the server answered %d %s", e.Status, text)
	if e.RequestID != "" {
		text += " (request " + e.RequestID + ")"
	}
	return text
}

// problemOf reads as much of a refusal as there is.
func problemOf(resp *http.Response) error {
	p := &ProblemError{}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProblemBytes))
	if err != nil || json.Unmarshal(body, p) != nil {
		*p = ProblemError{}
	}
	p.Status = resp.StatusCode
	return p
}

// StatusOf is the HTTP status of an answer other than 200, 0 when err is none.
func StatusOf(err error) int {
	var p *ProblemError
	if errors.As(err, &p) {
		return p.Status
	}
	return 0
}

// Int is a 64-bit integer, which the API writes as a string.
type Int int64

// UnmarshalJSON reads both forms.
func (v *Int) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	if err != nil {
		return fmt.Errorf("client: %q is no integer", b)
	}
	*v = Int(n)
	return nil
}

// MarshalJSON writes the API's form.
func (v Int) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, strconv.FormatInt(int64(v), 10)), nil
}
