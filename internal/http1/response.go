package http1

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	// sendAt is how much of a response is gathered before it is sent.
	sendAt = 4 << 10
	// maxPooled keeps one large write from pinning its memory.
	maxPooled = 128 << 10
)

// outs are buffers of what is to be sent.
var outs = sync.Pool{New: func() any { return new([]byte) }}

// How a response's end is known.
type framing uint8

const (
	noBody  framing = iota
	counted         // by its Content-Length
	chunked
	untilClose
)

// Response is the http.ResponseWriter of one call. It and the request's body are its
// handler's until that returns, or, once it is parked, of whoever resumes it until End:
// both are the next call's then. One goroutine at a time may use them. What is written
// is sent when the handler flushes or returns, or when there is much of it.
type Response struct {
	conn     *conn
	header   http.Header
	trailers []string // names that the header announced
	cancel   context.CancelCauseFunc
	http10   bool
	head     bool // the request was HEAD
	begun    bool // the header is written
	close    bool // the connection is closed behind it
	framing  framing
	left     int64   // of counted
	out      *[]byte // nil is empty
	err      error   // why it is cut
}

func (w *Response) reset(c *conn, r *http.Request) {
	header := w.header
	if header == nil {
		header = http.Header{}
	}
	clear(header)
	*w = Response{conn: c, header: header, close: true}
	c.body = body{conn: c, ended: true}
	if r == nil {
		return
	}
	w.http10, w.head = !r.ProtoAtLeast(1, 1), r.Method == http.MethodHead
	w.close = r.Close || w.http10
	if r.Body != nil && r.Body != http.NoBody {
		c.body = body{ReadCloser: r.Body, conn: c, long: r.ContentLength > maxDrain, expect: !w.http10 && r.Header.Get("Expect") != ""}
		r.Body = &c.body
	}
}

// Header implements http.ResponseWriter.
func (w *Response) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. Interim responses (1xx) are not sent.
func (w *Response) WriteHeader(code int) {
	if w.begun || code < 200 {
		return
	}
	w.begun = true
	w.frame(code)
	if w.conn.srv.closing.Load() || !w.conn.body.ended && (w.conn.body.expect || w.conn.body.long) {
		w.close = true
	}
	out := w.buffer()
	b := append(*out, "HTTP/1.1 "...)
	b = append(append(append(strconv.AppendInt(b, int64(code), 10), ' '), http.StatusText(code)...), "\r\n"...)
	for name, values := range w.header {
		if code == http.StatusNotModified && name == "Content-Type" {
			continue // it is of the representation that the client has
		}
		if name == "Transfer-Encoding" || name == "Connection" || name == "Content-Length" || !httpguts.ValidHeaderFieldName(name) {
			continue
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	if w.header["Date"] == nil {
		b = append(time.Now().UTC().AppendFormat(append(b, "Date: "...), http.TimeFormat), "\r\n"...)
	}
	switch w.framing {
	case counted:
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), w.left, 10), "\r\n"...)
	case chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if w.close {
		b = append(b, "Connection: close\r\n"...)
	}
	*out = append(b, "\r\n"...)
	if w.head {
		w.framing = noBody
	}
}

// frame decides how the response's end is known.
func (w *Response) frame(code int) {
	for _, list := range w.header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if httpguts.ValidHeaderFieldName(name) && httpguts.ValidTrailerHeader(name) {
				w.trailers = append(w.trailers, name)
			}
		}
	}
	w.close = w.close || httpguts.HeaderValuesContainsToken(w.header["Connection"], "close")
	length, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64)
	switch {
	case code == http.StatusNoContent || code == http.StatusNotModified:
	case err == nil && length >= 0:
		w.framing, w.left = counted, length
	case w.http10:
		w.framing, w.close = untilClose, true
	default:
		w.framing = chunked
	}
}

// appendField appends a line of a header. What would end the line is a blank instead.
func appendField(b []byte, name, value string) []byte {
	b = append(append(b, name...), ": "...)
	if !httpguts.ValidHeaderFieldValue(value) {
		value = strings.Map(func(r rune) rune {
			if r < ' ' && r != '\t' || r == 0x7f {
				return ' '
			}
			return r
		}, value)
	}
	return append(append(b, value...), "\r\n"...)
}

func (w *Response) buffer() *[]byte {
	if w.out == nil {
		w.out = outs.Get().(*[]byte)
	}
	return w.out
}

// Write implements http.ResponseWriter.
func (w *Response) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	if w.err != nil {
		return 0, w.err
	}
	if len(p) == 0 {
		return 0, nil // an empty chunk would be the end
	}
	switch w.framing {
	case noBody:
		if w.head {
			return len(p), nil
		}
		return 0, http.ErrBodyNotAllowed
	case counted:
		if int64(len(p)) > w.left {
			return 0, http.ErrContentLength
		}
		w.left -= int64(len(p))
	}
	out := w.buffer()
	if w.framing == chunked {
		*out = append(append(append(strconv.AppendInt(*out, int64(len(p)), 16), "\r\n"...), p...), "\r\n"...)
	} else {
		*out = append(*out, p...)
	}
	if len(*out) >= sendAt {
		if err := w.send(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// send sends what is gathered.
func (w *Response) send() error {
	out := w.out
	if out == nil {
		return w.err
	}
	w.out = nil
	if w.err == nil {
		w.err = w.conn.write(*out)
	}
	if cap(*out) <= maxPooled {
		*out = (*out)[:0]
		outs.Put(out)
	}
	return w.err
}

// FlushError lets http.ResponseController flush it.
func (w *Response) FlushError() error {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return w.send()
}

// SetReadDeadline lets http.ResponseController bound the reading of the body, to
// SweepInterval. The zero time is no bound. A connection whose deadline has passed is
// closed behind the answer.
func (w *Response) SetReadDeadline(t time.Time) error {
	d := time.Duration(0)
	if !t.IsZero() {
		d = max(time.Until(t), 1)
	}
	if w.conn.allow(d) {
		w.conn.until.Store(expired)
		w.close = true
	}
	return nil
}

// finish sends what is left and the end.
func (w *Response) finish() error {
	if !w.begun {
		if w.header["Content-Length"] == nil && !w.head {
			w.header["Content-Length"] = []string{"0"}
		}
		w.WriteHeader(http.StatusOK)
	}
	if w.framing == counted && w.left > 0 {
		w.err = errShort
		return w.err
	}
	if w.framing == chunked {
		out := w.buffer()
		b := append(*out, "0\r\n"...)
		for _, name := range w.trailers {
			for _, v := range w.header[name] {
				b = appendField(b, name, v)
			}
		}
		*out = append(b, "\r\n"...)
	}
	return w.send()
}

// errShort is a response that is shorter than its Content-Length.
var errShort = errors.New("http1: the response is shorter than its Content-Length")

// Cancel is what ends the request's context, as the client's leaving does. It may be
// called from any goroutine, and when the call is over.
func (w *Response) Cancel() context.CancelCauseFunc { return w.cancel }

// Park leaves the response until other can be read or ctx, which is the request's, ends;
// resume is called then, once, in a goroutine of its own. All that was written must be
// flushed. Park may be called by the handler, which must return and touch nothing any
// more then, and again by resume; one of them calls End instead. A resume that panics
// cuts the response, as a handler's panic does. False changes nothing: the caller goes on.
func (w *Response) Park(ctx context.Context, other syscall.RawConn, resume func()) bool {
	c := w.conn
	if w.out != nil || w.err != nil || other == nil || c.socket == nil {
		return false
	}
	c.mu.Lock()
	c.watchClient()
	c.mu.Unlock()
	if c.in != nil && c.in.Buffered() == 0 && c.body.ended { // else the body reads from it
		c.giveReader()
	}
	c.turn.Add(1)
	if !c.srv.poller.park(ctx, other, func() { c.guard(resume) }) {
		c.turn.Add(-1)
		return false
	}
	return true
}

// End ends a response that was parked; err is why it is cut, nil is that it is whole.
// The connection goes on to the client's next request, in this goroutine: End returns
// when another has it or it is closed.
func (w *Response) End(err error) {
	c := w.conn
	if err != nil && w.err == nil {
		w.err = err
	}
	if !c.over() {
		c.close()
		return
	}
	c.loop()
}
