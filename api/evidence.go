package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Evidence makes evidence packages.
type Evidence interface {
	// Plan finds what a package will hold. Errors: *InvalidError for a range that
	// cannot be, ErrNotFound, ErrUnavailable, those of the context.
	Plan(ctx context.Context, id tenant.ID, req EvidenceRequest) (EvidencePackage, error)
}

// EvidenceRequest is what a package is to hold: numbers, or times.
type EvidenceRequest struct {
	// FromSeq and ToSeq are a range of entries, both ends included; 0 is the first
	// and the last under a checkpoint.
	FromSeq, ToSeq int64
	// From and Before, when set, are the time that usage occurred in.
	From, Before time.Time
	TimeZone     string
	Kept         []int64
	// Audit wants the audit rows of the time too.
	Audit bool
}

// EvidencePackage is a package that can be written.
type EvidencePackage interface {
	// Range is the entries and the size of the checkpoint that covers them.
	Range() (from, to, checkpoint int64)
	// Write writes the package in one pass. When it fails, what was written is no
	// package, and cannot be taken for one.
	Write(ctx context.Context, w io.Writer) error
}

const (
	evidencePath = "/v1/ledger/evidence"
	// evidencePiece is the size of the pieces of a gRPC stream.
	evidencePiece = 256 << 10
	// EvidenceHeader says, before the file, what it holds.
	EvidenceHeader = "X-Tallystick-Evidence"
)

// evidenceService serves tallystick.v1.EvidenceService.
type evidenceService struct {
	pb.UnimplementedEvidenceServiceServer
	s *Server
}

// GetEvidence streams a package.
func (e *evidenceService) GetEvidence(req *pb.GetEvidenceRequest, stream grpc.ServerStreamingServer[pb.GetEvidenceResponse]) error {
	_, err := e.s.call(stream.Context(), pb.EvidenceService_GetEvidence_FullMethodName, req, func(ctx context.Context, _ any) (any, error) {
		p, err := e.s.planEvidence(ctx, req)
		if err != nil {
			return nil, err
		}
		w := &pieceWriter{stream: stream}
		w.head.FromSeq, w.head.ToSeq, w.head.CheckpointSize = p.Range()
		if err := p.Write(ctx, w); err != nil {
			return nil, err
		}
		return nil, w.flush()
	})
	return err
}

// pieceWriter cuts a file into messages.
type pieceWriter struct {
	stream grpc.ServerStreamingServer[pb.GetEvidenceResponse]
	head   pb.GetEvidenceResponse // the first message, but for its data
	begun  bool
	buf    []byte
}

func (w *pieceWriter) Write(b []byte) (int, error) {
	w.buf = append(w.buf, b...)
	for len(w.buf) >= evidencePiece {
		if err := w.send(w.buf[:evidencePiece]); err != nil {
			return 0, err
		}
		w.buf = w.buf[:copy(w.buf, w.buf[evidencePiece:])]
	}
	return len(b), nil
}

func (w *pieceWriter) send(b []byte) error {
	m := &pb.GetEvidenceResponse{Data: b}
	if !w.begun {
		m.FromSeq, m.ToSeq, m.CheckpointSize = w.head.FromSeq, w.head.ToSeq, w.head.CheckpointSize
		w.begun = true
	}
	return w.stream.Send(m)
}

func (w *pieceWriter) flush() error { return w.send(w.buf) }

// planEvidence checks the request and plans the package.
func (s *Server) planEvidence(ctx context.Context, req *pb.GetEvidenceRequest) (EvidencePackage, error) {
	if s.deps.Evidence == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if err := s.serving(ctx, pb.EvidenceService_GetEvidence_FullMethodName, req); err != nil {
		return nil, err
	}
	r, err := parseEvidenceRequest(req)
	if err != nil {
		return nil, err
	}
	r.Audit = principal(ctx).Can(authn.Audit)
	return s.deps.Evidence.Plan(ctx, id, r)
}

// maxKept bounds the checkpoints of one request.
const maxKept = 64

// parseEvidenceRequest reads what is asked for.
func parseEvidenceRequest(req *pb.GetEvidenceRequest) (r EvidenceRequest, err error) {
	for _, size := range req.Kept {
		if size < 1 || len(req.Kept) > maxKept {
			return r, invalid("kept", "range", "are at most %d sizes of checkpoints, each at least 1", maxKept)
		}
	}
	if r, err = ParseEvidenceRange(req.From, req.To, req.TimeZone); err != nil {
		return r, err
	}
	r.Kept = req.Kept
	return r, nil
}

// ParseEvidenceRange reads a range as a request has it. The error is an
// *InvalidError.
func ParseEvidenceRange(fromText, toText, zoneName string) (r EvidenceRequest, err error) {
	r.TimeZone = zoneName
	zone := time.UTC
	if r.TimeZone == "" {
		r.TimeZone = "UTC"
	} else if zone, err = time.LoadLocation(r.TimeZone); err != nil || r.TimeZone == "Local" {
		return r, invalid("time_zone", "unknown", "is no time zone, such as Europe/Berlin")
	}
	from, fromTime, err1 := parseBound("from", fromText, zone, false)
	to, toTime, err2 := parseBound("to", toText, zone, true)
	if err := errors.Join(err1, err2); err != nil {
		return r, firstInvalid(err1, err2)
	}
	dated := !fromTime.IsZero() || !toTime.IsZero()
	switch {
	case dated && (fromTime.IsZero() || toTime.IsZero()):
		return r, invalid("from", "kind", "and to must both be numbers, or both dates or times")
	case dated && !fromTime.Before(toTime), !dated && to != 0 && to < from:
		return r, invalid("to", "range", "must not lie before from")
	case !dated && zoneName != "":
		return r, invalid("time_zone", "kind", "goes with dates only")
	}
	r.FromSeq, r.ToSeq, r.From, r.Before = from, to, fromTime, toTime
	return r, nil
}

func firstInvalid(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// parseBound reads one end of a range. A date as the end means its whole day.
func parseBound(field, text string, zone *time.Location, end bool) (seq int64, at time.Time, err error) {
	if text == "" {
		return 0, at, nil
	}
	if seq, err = strconv.ParseInt(text, 10, 64); err == nil && seq > 0 {
		return seq, at, nil
	}
	if at, err = time.ParseInLocation(time.DateOnly, text, zone); err == nil {
		if end {
			at = at.AddDate(0, 0, 1)
		}
		return 0, at, inRange(field, at)
	}
	if at, err = time.Parse(time.RFC3339, text); err == nil {
		return 0, at, inRange(field, at)
	}
	return 0, at, invalid(field, "syntax", "must be the number of an entry, a date (2026-11-01) or a time (RFC 3339)")
}

// inRange keeps times where their nanoseconds fit 64 bits.
func inRange(field string, at time.Time) error {
	if at.Year() < 1700 || at.Year() > 2200 {
		return invalid(field, "range", "must lie between 1700 and 2200")
	}
	return nil
}

// serveEvidence is GetEvidence as REST: the answer is the file.
func (s *Server) serveEvidence(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	req := &pb.GetEvidenceRequest{TenantId: q.Get("tenant_id"), From: q.Get("from"), To: q.Get("to"), TimeZone: q.Get("time_zone")}
	id := requestIDOf(r.Context())
	begun := false
	_, err := s.call(r.Context(), pb.EvidenceService_GetEvidence_FullMethodName, req, func(ctx context.Context, _ any) (any, error) {
		for _, text := range q["kept"] {
			size, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, invalid("kept", "syntax", "must be numbers")
			}
			req.Kept = append(req.Kept, size)
		}
		p, err := s.planEvidence(ctx, req)
		if err != nil {
			return nil, err
		}
		begun = true
		return nil, s.download(ctx, w, p, req)
	})
	if err == nil {
		return
	}
	f := s.fail(r.Context(), r.URL.Path, id, err)
	if begun { // nothing but a connection that breaks says so now
		panic(http.ErrAbortHandler)
	}
	s.writeProblem(w, f, id)
}

// download writes the package as a file. A reader that takes nothing for a while
// loses the connection.
func (s *Server) download(ctx context.Context, w http.ResponseWriter, p EvidencePackage, req *pb.GetEvidenceRequest) error {
	from, to, size := p.Range()
	h := w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="evidence-%s-%d-%d.zip"`, strings.ReplaceAll(fileName(ctx, req), "/", "-"), from, to))
	h.Set(EvidenceHeader, fmt.Sprintf("from_seq=%d; to_seq=%d; checkpoint_size=%d", from, to, size))
	return p.Write(ctx, &patientWriter{w: w, control: http.NewResponseController(w)})
}

// fileName is the tenant for a file's name.
func fileName(ctx context.Context, req *pb.GetEvidenceRequest) string {
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return "tenant"
	}
	return string(id)
}

// patientWriter moves the deadline of a connection on with every write: there is
// no limit to a whole download, only to standing still.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
	moved   time.Time
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if now := time.Now(); now.Sub(p.moved) > writeGrace/10 {
		p.moved = now
		// Not every ResponseWriter has deadlines; the server's own then count.
		_ = p.control.SetWriteDeadline(now.Add(writeGrace))
	}
	return p.w.Write(b)
}
