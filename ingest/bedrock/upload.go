package bedrock

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// UploadPath is where an Uploader is to be served, for the method POST.
const UploadPath = "/v1/bedrock/logs"

// ObjectHeader names the uploaded file, so that records without a request id have
// a place: the same file under the same name is the same records.
const ObjectHeader = "X-Tallystick-Object"

const (
	// stallTime ends an upload of which nothing comes.
	stallTime = 30 * time.Second
	// MaxUploads bounds the files that are read at once; one more gets 503.
	MaxUploads = 8
)

// Uploader takes one log file as a request's body, of any size and compressed or
// not, for the command line and for tenants without a connection. It answers
//
//   - 200 with a Report when every event is durable or was refused, whatever
//     became of single records;
//   - 401 and 403 as usual, 408 when the body stood still;
//   - 503 when events could not be made durable, or it cannot be found out which calls
//     the metering proxy has entries of. What was is not lost, and the whole file may
//     be sent again: its records have the same ids.
//
// Like every front door it needs the scope ingest.
type Uploader struct {
	auth     ingest.Authenticator
	sink     Sink
	keys     Keys
	settings Settings
	calls    Calls
	log      *slog.Logger
	places   chan struct{}
}

// NewUploader makes an uploader. Nil calls are not asked, and a nil log discards.
func NewUploader(auth ingest.Authenticator, sink Sink, keys Keys, settings Settings, calls Calls, log *slog.Logger) *Uploader {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Uploader{auth, sink, keys, settings, calls, log, make(chan struct{}, MaxUploads)}
}

// Report is the answer to an upload, as JSON.
type Report struct {
	Records   int64 `json:"records"`
	Accepted  int64 `json:"accepted"`
	Malformed int64 `json:"malformed"`
	Damaged   bool  `json:"damaged"` // the file could not be read to its end
	Estimated int64 `json:"estimated"`
	// Metered are records of calls that the metering proxy has entries of, and that are
	// no events therefore; of Differing ones the record states other tokens.
	Metered   int64            `json:"metered"`
	Differing int64            `json:"differing"`
	Refused   map[string]int64 `json:"refused"`  // by "rule.field"
	Statuses  map[string]int64 `json:"statuses"` // of the events
	Tokens    map[string]int64 `json:"tokens"`   // by class
}

// report is the summary in the form of the answer.
func report(sum *Summary) Report {
	r := Report{
		Records: sum.Records, Accepted: sum.Accepted, Malformed: sum.Malformed, Damaged: sum.Damaged > 0, Estimated: sum.Estimated,
		Metered: sum.Metered, Differing: sum.Differing, Refused: sum.Refused, Statuses: sum.Statuses, Tokens: map[string]int64{},
	}
	for c, n := range sum.Tokens {
		if n != 0 {
			r.Tokens[tokens.Class(c).String()] = n
		}
	}
	return r
}

// Add adds another file's report.
func (r *Report) Add(more *Report) {
	r.Records += more.Records
	r.Accepted += more.Accepted
	r.Malformed += more.Malformed
	r.Estimated += more.Estimated
	r.Metered += more.Metered
	r.Differing += more.Differing
	r.Damaged = r.Damaged || more.Damaged
	for _, m := range [...]struct {
		to   *map[string]int64
		from map[string]int64
	}{{&r.Refused, more.Refused}, {&r.Statuses, more.Statuses}, {&r.Tokens, more.Tokens}} {
		if *m.to == nil {
			*m.to = map[string]int64{}
		}
		for k, n := range m.from {
			(*m.to)[k] += n
		}
	}
}

// ServeHTTP implements http.Handler.
func (u *Uploader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	job, status, text := u.admit(r)
	if status != 0 {
		refuse(w, status, text)
		return
	}
	select {
	case u.places <- struct{}{}:
		defer func() { <-u.places }()
	default:
		refuse(w, http.StatusServiceUnavailable, "too many log files are being read; send it again later")
		return
	}
	var sum Summary
	body := &patient{r: r.Body, control: http.NewResponseController(w)}
	err := job.Import(r.Context(), u.sink, r.Header.Get(ObjectHeader), body, &sum)
	switch {
	case err == nil:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(report(&sum))
	case errors.Is(err, ingest.ErrNotAllowed):
		refuse(w, http.StatusForbidden, "the token lacks the scope ingest")
	case body.stalled:
		refuse(w, http.StatusRequestTimeout, "the file stood still")
	case errors.Is(err, ErrUnasked):
		u.log.WarnContext(r.Context(), "bedrock: a log file could not be taken", "tenant", job.Tenant, "err", err)
		refuse(w, http.StatusServiceUnavailable, "it cannot be found out now which of the calls the metering proxy has entries of; send the file again later")
	default:
		u.log.WarnContext(r.Context(), "bedrock: a log file could not be taken", "tenant", job.Tenant, "err", err)
		refuse(w, http.StatusServiceUnavailable, "not every event is known to be durable; send the file again")
	}
}

// admit finds out for whom the file is; a status refuses it.
func (u *Uploader) admit(r *http.Request) (job Job, status int, text string) {
	who, err := u.auth.Authenticate(r.Context(), authn.BearerToken(r.Header.Get("Authorization")))
	switch {
	case errors.Is(err, authn.ErrUnauthenticated):
		return job, http.StatusUnauthorized, "a bearer token is needed"
	case err != nil:
		return job, http.StatusServiceUnavailable, "the token cannot be verified now"
	case !who.Can(authn.Ingest):
		return job, http.StatusForbidden, "the token lacks the scope ingest"
	}
	id, ok := who.Single()
	if named := r.Header.Get(ingest.TenantHeader); named != "" {
		id, ok = tenant.ID(named), tenant.ValidID(named) && who.May(tenant.ID(named))
	}
	if !ok {
		return job, http.StatusForbidden, "name a tenant that the token is for in " + ingest.TenantHeader
	}
	if name := r.Header.Get(ObjectHeader); len(name) > maxText || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' }) {
		return job, http.StatusBadRequest, ObjectHeader + " is too long"
	}
	// An event beyond its tenant is impossible here: the job has one.
	who = authn.Principal{Subject: who.Subject, Tenants: []tenant.ID{id}, Scopes: who.Scopes}
	job, err = NewJob(r.Context(), u.keys, u.settings, id, who)
	switch {
	case errors.Is(err, keyring.ErrNoKey):
		return job, http.StatusForbidden, "name a tenant that the token is for in " + ingest.TenantHeader
	case err != nil:
		u.log.WarnContext(r.Context(), "bedrock: a tenant cannot be served", "tenant", id, "err", err)
		return job, http.StatusServiceUnavailable, "the tenant cannot be served now"
	}
	job.Calls, job.Pauses = u.calls, []time.Duration{time.Second, 2 * time.Second}
	return job, 0, ""
}

// patient is a request's body that may take any time, as long as something comes.
type patient struct {
	r       io.Reader
	control *http.ResponseController
	stalled bool
}

// Read implements io.Reader.
func (p *patient) Read(b []byte) (int, error) {
	// Where the connection has no deadlines the server's own limits hold.
	_ = p.control.SetReadDeadline(time.Now().Add(stallTime))
	n, err := p.r.Read(b)
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		p.stalled = true
	}
	return n, err
}

// refuse writes an RFC 9457 problem.
func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/problem+json")
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": text})
}

var (
	_ http.Handler = (*Uploader)(nil)
	_ Sink         = (*ingest.Edge)(nil)
)
