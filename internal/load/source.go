package load

import (
	"path/filepath"

	"github.com/tallystick/tallystick/internal/tokens"
)

// call is one call of a model as the source has it, before faults.
type call struct {
	position int64 // 0, 1, 2 … in the source
	at       int64 // unix nanoseconds, whole microseconds
	profile  int32
	model    int32
	// client decides the tenant; a tenant >= 0 overrides it.
	client  int32
	tenant  int32
	tokens  tokens.Vector
	status  status
	batch   bool // service tier "batch"
	stream  bool
	latency int64 // microseconds, 0 unknown
	ttft    int64
	user    int32 // 0 none
}

// status of a call; the numbers index statuses.
type status uint8

const (
	statusOK status = iota
	statusError
	statusRateLimited
	statusTruncated
	statusCancelled
	statusBlocked
	statusKilled
)

// statuses are the words and codes that go with a status.
var statuses = [...]struct {
	text, errorType string
	http            int64
	action, policy  string
}{
	statusOK:          {text: "ok", http: 200},
	statusError:       {text: "error", errorType: "server_error", http: 500},
	statusRateLimited: {text: "error", errorType: "rate_limit", http: 429},
	statusTruncated:   {text: "truncated", http: 200, errorType: "client_closed"},
	statusCancelled:   {text: "cancelled", http: 499},
	statusBlocked:     {text: "blocked", http: 429, action: "block", policy: "budget"},
	statusKilled:      {text: "killed", http: 451, action: "kill", policy: "kill-switch"},
}

// source gives calls in order. It is used by one goroutine.
type source interface {
	// next fills c or returns errEnd.
	next(c *call) error
	// models and profiles are complete from the start: calls refer to positions.
	models() []model
	profiles() []profile
	close()
}

func openSource(o *Options) (source, error) {
	if o.Trace == "" {
		return newSynthetic(o), nil
	}
	return openTrace(o)
}

func baseName(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Base(path)
}
