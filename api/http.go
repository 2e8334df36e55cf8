package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const (
	problemTypePrefix = "urn:tallystick:error:"
	retryAfterSeconds = 2
	coverageHeader    = "X-Tallystick-Coverage"
	reportsPath       = "/v1/reports/"
	verifyPath        = "/v1/ledger:verify"
	comparePath       = "/v1/ledger:compare"
)

// routes builds the mux: health, and the gateway behind authentication.
func (s *Server) routes() error {
	gateway, err := s.gateway()
	if err != nil {
		return err
	}
	s.mux.Handle("/v1/", s.guard(gateway))
	// The gateway cannot take an id with a slash in it, which an event id may have.
	s.mux.Handle(auditExportName, s.guardHTTP(auditExportName, s.exportAudit))
	s.mux.Handle(ledgerExportName, s.guardHTTP(ledgerExportName, s.exportLedger))
	s.mux.Handle("GET /v1/events/{event_id}", s.guardHTTP(pb.IngestService_GetEvent_FullMethodName, s.serveEvent))
	s.mux.Handle("GET "+evidencePath, s.guard(http.HandlerFunc(s.serveEvidence)))
	s.mux.HandleFunc("/healthz", s.healthz)
	s.mux.HandleFunc("/readyz", s.readyz)
	return nil
}

// gateway is REST over the services, called in this process without a network.
func (s *Server) gateway() (http.Handler, error) {
	jsonForm := newJSONMarshaler()
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, jsonForm),
		runtime.WithMarshalerOption("application/json", jsonForm),
		runtime.WithMarshalerOption(csvType, csvMarshaler{jsonForm}),
		runtime.WithErrorHandler(s.gatewayError),
		runtime.WithRoutingErrorHandler(s.routingError),
		runtime.WithForwardResponseOption(showCoverage),
		// Nothing of the transport's metadata is for the client or for us.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithDisablePathLengthFallback(),
	)
	conn := newLocal(s.localCall)
	s.register(conn)
	if err := checkAccess(conn.names()); err != nil {
		return nil, err
	}
	ctx := context.Background() // the registrations use it for nothing
	return mux, errors.Join(
		pb.RegisterReportServiceHandlerClient(ctx, mux, pb.NewReportServiceClient(conn)),
		pb.RegisterLedgerServiceHandlerClient(ctx, mux, pb.NewLedgerServiceClient(conn)),
		pb.RegisterAdminServiceHandlerClient(ctx, mux, pb.NewAdminServiceClient(conn)),
		pb.RegisterSubjectServiceHandlerClient(ctx, mux, pb.NewSubjectServiceClient(conn)),
		pb.RegisterPriceServiceHandlerClient(ctx, mux, pb.NewPriceServiceClient(conn)),
		pb.RegisterKeyServiceHandlerClient(ctx, mux, pb.NewKeyServiceClient(conn)),
		pb.RegisterAccessServiceHandlerClient(ctx, mux, pb.NewAccessServiceClient(conn)),
		pb.RegisterAgentServiceHandlerClient(ctx, mux, pb.NewAgentServiceClient(conn)),
		pb.RegisterProviderServiceHandlerClient(ctx, mux, pb.NewProviderServiceClient(conn)),
		pb.RegisterAuditServiceHandlerClient(ctx, mux, pb.NewAuditServiceClient(conn)),
		pb.RegisterCheckpointServiceHandlerClient(ctx, mux, pb.NewCheckpointServiceClient(conn)),
		pb.RegisterConnectionServiceHandlerClient(ctx, mux, pb.NewConnectionServiceClient(conn)),
		pb.RegisterMappingServiceHandlerClient(ctx, mux, pb.NewMappingServiceClient(conn)),
	)
}

// localCall is what the gateway calls services by: authenticated by guard, and
// let in by the same table as gRPC's callers.
func (s *Server) localCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return s.call(ctx, info.FullMethod, req, handler)
}

// guard does what every request needs before a service sees it.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := newRequestID(r.Header.Get(requestIDHeader))
		s.secure(w.Header(), id)
		defer s.recovered(w, r, id)
		r, err := s.authenticateHTTP(r, id)
		if err != nil {
			s.writeProblem(w, s.fail(context.Background(), "http", id, err), id)
			return
		}
		limit := s.timeout(r.URL.Path)
		// Not every ResponseWriter has deadlines; the server's own then count.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit + writeGrace))
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, s.opts.MaxBodyBytes)
		if err := negotiate(r); err != nil {
			s.writeProblem(w, s.fail(ctx, r.URL.Path, id, err), id)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// recovered makes a handler's panic one failed request.
func (s *Server) recovered(w http.ResponseWriter, r *http.Request, requestID string) {
	switch p := recover(); p {
	case nil:
	case http.ErrAbortHandler:
		panic(p)
	default:
		s.writeProblem(w, s.fail(r.Context(), r.URL.Path, requestID, fmt.Errorf("%w: %v", errPanic, p)), requestID)
	}
}

// negotiate leaves one plain media type in Accept, which is all that the
// gateway understands, and refuses a body that is not JSON.
func negotiate(r *http.Request) error {
	accept := ""
	if strings.HasPrefix(r.URL.Path, reportsPath) {
		accept = preferred(r.Header.Get("Accept"))
	}
	r.Header.Set("Accept", accept)
	if r.Method != http.MethodPost {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.Header.Get("Content-Type") != "" && (err != nil || kind != "application/json") {
		return errMediaType
	}
	r.Header.Set("Content-Type", "application/json")
	return nil
}

// preferred is text/csv when the client wants it more than JSON.
func preferred(accept string) string {
	best, bestWeight := "application/json", 0
	for part := range strings.SplitSeq(accept, ",") {
		kind, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		weight := 1000
		if q, ok := params["q"]; ok {
			weight = parseWeight(q)
		}
		if weight > bestWeight && (kind == csvType || kind == "application/json") {
			best, bestWeight = kind, weight
		}
	}
	return best
}

// parseWeight reads "0.8" as 800.
func parseWeight(q string) int {
	whole, part, _ := strings.Cut(q, ".")
	n, err := strconv.Atoi(whole + (part + "000")[:3])
	if err != nil || n < 0 || n > 1000 {
		return 0
	}
	return n
}

// secure sets the headers of every answer of the API, errors included.
func (s *Server) secure(h http.Header, requestID string) {
	h.Set(requestIDHeader, requestID)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// timeout bounds a request by its path or method.
func (s *Server) timeout(method string) time.Duration {
	switch method {
	case verifyPath, comparePath, pb.LedgerService_VerifyLedger_FullMethodName, pb.LedgerService_CompareLedger_FullMethodName:
		return s.opts.VerifyTimeout
	case evidencePath, auditExportPath, ledgerExportPath, pb.EvidenceService_GetEvidence_FullMethodName:
		return maxDownloadTime
	}
	return s.opts.RequestTimeout
}

// showCoverage puts what a report covers into a header, where CSV readers find it.
func showCoverage(_ context.Context, w http.ResponseWriter, m proto.Message) error {
	c, ok := m.(interface{ GetCoverage() *pb.Coverage })
	if !ok {
		return nil
	}
	v := c.GetCoverage()
	w.Header().Set(coverageHeader, fmt.Sprintf("from_seq=%d; to_seq=%d; head_hash=%s; exact=%t; lag_entries=%d",
		v.GetFromSeq(), v.GetToSeq(), v.GetHeadHash(), v.GetExact(), v.GetLagEntries()))
	return nil
}

// problem is an RFC 9457 body.
type problem struct {
	Type       string      `json:"type"`
	Title      string      `json:"title"`
	Status     int         `json:"status"`
	Detail     string      `json:"detail,omitempty"`
	RequestID  string      `json:"request_id"`
	Violations []Violation `json:"violations,omitempty"`
}

func (s *Server) writeProblem(w http.ResponseWriter, f *failure, requestID string) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Del("Content-Length")
	if f.http == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="tallystick"`)
	}
	if f.retry {
		h.Set("Retry-After", strconv.Itoa(retryAfterSeconds))
	}
	title := http.StatusText(f.http)
	if title == "" {
		title = "Client Closed Request"
	}
	w.WriteHeader(f.http)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(problem{problemTypePrefix + f.reason, title, f.http, f.detail, requestID, f.violations}) // the client has gone
}

// gatewayError answers what a service or the gateway's decoding returned.
func (s *Server) gatewayError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var custom *runtime.HTTPStatusError
	if errors.As(err, &custom) {
		err = custom.Err
	}
	id := requestIDOf(r.Context())
	s.writeProblem(w, s.fail(r.Context(), r.URL.Path, id, err), id)
}

// routingError answers a path or method that there is not.
func (s *Server) routingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	f := failure{http: code, reason: reasonNotFound, detail: "there is no such path"}
	switch code {
	case http.StatusMethodNotAllowed:
		f.reason, f.detail = reasonMethod, "the path does not take this method"
	case http.StatusBadRequest:
		f.reason, f.detail = reasonMalformed, "the path is malformed"
	}
	s.writeProblem(w, &f, requestIDOf(r.Context()))
}
