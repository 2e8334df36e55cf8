package proxy

import (
	"io"
	"net/http"
)

// ReadyPath is where a load balancer asks whether calls would be forwarded; no
// provider's name or path begins with a dash.
const ReadyPath = "/-/ready"

// ready answers 200 "ok", or 503 with the reason for which calls are refused. It
// asks for no token and tells nothing of tenants.
func (p *Proxy) ready(w http.ResponseWriter) {
	code, text := http.StatusOK, "ok"
	switch {
	case p.parts.Room != nil && !p.opts.FailOpen && p.parts.Room.Full():
		code, text = http.StatusServiceUnavailable, "the spool is full"
	case p.calls.Load() >= p.opts.MaxCalls:
		code, text = http.StatusServiceUnavailable, "too many calls in hand"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text+"\n") // whoever asks may have gone
}
