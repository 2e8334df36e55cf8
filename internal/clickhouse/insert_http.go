package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"
)

var utc = time.UTC

const (
	// maxErrorBytes of an answer are read; an exception's text fits well.
	maxErrorBytes = 64 << 10
	// maxFrameBytes is the most that one compressed frame carries.
	maxFrameBytes = 1 << 20
	// maxFreeBuffers are kept, each while it is below maxKeptBytes: an insert of
	// 100,000 entries takes 40 MB.
	maxFreeBuffers = 1
	maxKeptBytes   = 64 << 20
	// exceptionMarker starts an error that a server reports after its status.
	exceptionMarker = "__exception__\r\n"
)

// httpInserter sends blocks by one POST each, encoded straight from their
// columns. clickhouse-go's own batch takes values one by one by reflection.
//
// Of several hosts it uses one until that cannot be reached, then the next; the
// caller's repeat of the insert, with its token, goes there.
type httpInserter struct {
	client   *http.Client
	base     url.URL // without a host
	hosts    []string
	failures atomic.Uint32 // hosts[failures % len] is in use
	settings url.Values
	header   http.Header
	method   ch.CompressionMethod
	buffers  chan *insertBuffer // free; a sync.Pool would forget them at each collection
}

// insertBuffer is reused by inserts, one at a time.
type insertBuffer struct {
	plain  proto.Buffer
	packed []byte
	writer *compress.Writer
}

func newHTTPInserter(opt *ch.Options) *httpInserter {
	h := &httpInserter{
		base:     url.URL{Scheme: "http", Path: "/"},
		buffers:  make(chan *insertBuffer, maxFreeBuffers),
		hosts:    opt.Addr,
		settings: url.Values{},
		header:   http.Header{},
	}
	if opt.TLS != nil {
		h.base.Scheme = "https"
	}
	if opt.HttpUrlPath != "" {
		h.base.Path = opt.HttpUrlPath
	}
	if opt.Compression != nil {
		h.method = opt.Compression.Method
	}
	if opt.Auth.Database != "" {
		h.settings.Set("database", opt.Auth.Database)
	}
	for name, value := range opt.Settings {
		h.settings.Set(name, fmt.Sprint(value))
	}
	h.settings.Set("wait_end_of_query", "1")
	for name, value := range opt.HttpHeaders {
		h.header.Set(name, value)
	}
	if opt.Auth.Username != "" {
		h.header.Set("X-ClickHouse-User", opt.Auth.Username)
		h.header.Set("X-ClickHouse-Key", opt.Auth.Password)
	}
	h.client = &http.Client{Transport: insertTransport(opt)}
	return h
}

func insertTransport(opt *ch.Options) http.RoundTripper {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       opt.TLS,
		MaxIdleConnsPerHost:   maxIdleConns,
		IdleConnTimeout:       time.Minute,
		ResponseHeaderTimeout: opt.ReadTimeout,
		DisableCompression:    true,
		WriteBufferSize:       256 << 10,
	}
	dialer := &net.Dialer{Timeout: opt.DialTimeout}
	t.DialContext = dialer.DialContext
	if opt.DialContext != nil {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) { return opt.DialContext(ctx, addr) }
	}
	return t
}

func (h *httpInserter) close() { h.client.CloseIdleConnections() }

// insert sends the block and waits for the commit.
func (h *httpInserter) insert(ctx context.Context, sql, token string, rows int, block Block) error {
	buffer := h.buffer()
	data, err := h.encode(buffer, rows, block)
	if err != nil {
		return err
	}
	body := &sentBody{Reader: bytes.NewReader(data)}
	defer func() {
		// After an early answer or a cancellation the transport may still be
		// reading; then the buffer is left to it and the collector.
		if body.closed.Load() {
			h.recycle(buffer)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.target(sql, token), body)
	if err != nil {
		return err
	}
	req.ContentLength = int64(len(data))
	for name, values := range h.header {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := h.client.Do(req)
	if err != nil {
		h.failures.Add(1)
		// The URL in net/http's error holds the statement; its cause does not.
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return err
	}
	return readAnswer(resp)
}

// buffer is a free buffer, or a new one.
func (h *httpInserter) buffer() *insertBuffer {
	select {
	case b := <-h.buffers:
		return b
	default:
		return &insertBuffer{}
	}
}

// recycle keeps a buffer for the next insert.
func (h *httpInserter) recycle(b *insertBuffer) {
	if cap(b.plain.Buf) > maxKeptBytes {
		return
	}
	select {
	case h.buffers <- b:
	default:
	}
}

// sentBody knows when the transport is done with it.
type sentBody struct {
	*bytes.Reader
	closed atomic.Bool
}

func (b *sentBody) Close() error {
	b.closed.Store(true)
	return nil
}

// encode returns the body, which lives in buffer.
func (h *httpInserter) encode(buffer *insertBuffer, rows int, block Block) ([]byte, error) {
	buffer.plain.Reset()
	if err := encodeBlock(&buffer.plain, rows, block); err != nil {
		return nil, err
	}
	if !h.compressed() {
		return buffer.plain.Buf, nil
	}
	if buffer.writer == nil {
		buffer.writer = compress.NewWriter(compress.LevelZero, compress.Method(h.method))
	}
	buffer.packed = buffer.packed[:0]
	for data := buffer.plain.Buf; len(data) > 0; {
		n := min(len(data), maxFrameBytes)
		if err := buffer.writer.Compress(data[:n]); err != nil {
			return nil, err
		}
		buffer.packed = append(buffer.packed, buffer.writer.Data...)
		data = data[n:]
	}
	return buffer.packed, nil
}

// compressed reports whether bodies travel in ClickHouse's own frames. Other
// methods compress whole HTTP bodies and cost more than they save here.
func (h *httpInserter) compressed() bool {
	return h.method == ch.CompressionLZ4 || h.method == ch.CompressionZSTD
}

// target is the URL of one insert.
func (h *httpInserter) target(sql, token string) string {
	query := make(url.Values, len(h.settings)+8)
	for name, values := range h.settings {
		query[name] = values
	}
	for name, value := range insertSettings(token) {
		query.Set(name, fmt.Sprint(value))
	}
	query.Set("query", sql+" FORMAT Native")
	if h.compressed() {
		query.Set("decompress", "1")
	}
	u := h.base
	u.Host = h.hosts[int(h.failures.Load())%len(h.hosts)]
	u.RawQuery = query.Encode()
	return u.String()
}

// readAnswer turns an answer into an error. A status of 200 is not yet success:
// a failure after the server sent its headers stands in the body.
func readAnswer(resp *http.Response) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	text := string(body)
	if resp.StatusCode == http.StatusOK {
		if _, failure, found := strings.Cut(text, exceptionMarker); found {
			return parseException(failure, 0)
		}
		return nil
	}
	code, _ := strconv.ParseInt(resp.Header.Get("X-ClickHouse-Exception-Code"), 10, 32)
	if exception := parseException(text, int32(code)); exception.Code > 0 {
		return &ch.HTTPError{StatusCode: resp.StatusCode, Err: exception}
	}
	return &ch.HTTPError{StatusCode: resp.StatusCode, Err: fmt.Errorf("the server gave no reason")}
}

var exceptionText = regexp.MustCompile(`(?s)Code:\s*(\d+)\.\s*([A-Za-z:]+Exception):\s*(.*)`)

// parseException reads "Code: 60. DB::Exception: …" as clickhouse-go does.
func parseException(text string, code int32) *ch.Exception {
	exception := &ch.Exception{Code: code, Message: strings.TrimSpace(text)}
	m := exceptionText.FindStringSubmatch(text)
	if m == nil {
		return exception
	}
	if code == 0 {
		n, _ := strconv.ParseInt(m[1], 10, 32)
		exception.Code = int32(n)
	}
	exception.Name, exception.Message = m[2], strings.TrimSpace(m[3])
	return exception
}
