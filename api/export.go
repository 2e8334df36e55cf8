package api

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Exporter writes a log of a tenant as a file that verifies anywhere
// (docs/ledger-format.md, "The export file").
type Exporter interface {
	// Export writes records from..to, both included; 0 is the first and the last.
	// ErrNotFound when there are none. When it fails later, what was written has
	// no end, which the verifier says.
	Export(ctx context.Context, id tenant.ID, from, to int64, w io.Writer) error
}

// Where logs are downloaded, and what that is in the table of access.
const (
	auditExportPath  = "/v1/audit:export"
	auditExportName  = "GET " + auditExportPath
	ledgerExportPath = "/v1/ledger:export"
	ledgerExportName = "GET " + ledgerExportPath
)

// exportType is the media type of an export file.
const exportType = "application/vnd.tallystick.export"

// exportAudit streams an audit log.
func (s *Server) exportAudit(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	id, err := auditTenant(r.Context(), &pb.ListAuditEventsRequest{TenantId: q.Get("tenant_id"), Installation: q.Get("installation") == "true"})
	if err != nil {
		return err
	}
	return s.export(w, r, "export the audit log", s.deps.AuditExporter, id)
}

// exportLedger streams a ledger.
func (s *Server) exportLedger(w http.ResponseWriter, r *http.Request) error {
	id, err := tenantOf(r.Context(), r.URL.Query().Get("tenant_id"))
	if err != nil {
		return err
	}
	return s.export(w, r, "export the ledger", s.deps.LedgerExporter, id)
}

func (s *Server) export(w http.ResponseWriter, r *http.Request, what string, from Exporter, id tenant.ID) error {
	if from == nil {
		return errUnimplemented
	}
	var limits [2]int64
	for i, name := range []string{"from_seq", "to_seq"} {
		if v := r.URL.Query().Get(name); v != "" {
			var err error
			if limits[i], err = strconv.ParseInt(v, 10, 64); err != nil || limits[i] < 0 {
				return invalid(name, "syntax", "must be a number that is not negative")
			}
		}
	}
	if limits[1] > 0 && limits[1] < limits[0] {
		return invalid("to_seq", "range", "must not lie before from_seq")
	}
	w.Header().Set("Content-Type", exportType)
	patient := &patientWriter{w: w, control: http.NewResponseController(w)}
	return classifyStore(r.Context(), what, from.Export(r.Context(), id, limits[0], limits[1], patient))
}
