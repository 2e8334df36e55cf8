package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// rule is who may call a method, and what the audit log keeps of the call.
type rule struct {
	scope    authn.Scope
	operator bool // for credentials of all tenants only
	// action is what a call is in the audit log; "" for a method that only reads.
	// A row with the outcome "attempted" is written before the call, which does
	// not happen otherwise, and one that says how it ended after it.
	action string
	// audited: the method writes its row itself, in the transaction of the change.
	audited bool
}

// access is the one table of what a credential needs, for gRPC, REST and what
// else calls services. A method that is not in it is refused to everybody, and a
// Server with one does not start.
var access = map[string]rule{
	pb.ReportService_QuerySummary_FullMethodName:    {scope: authn.Read},
	pb.ReportService_QueryTimeSeries_FullMethodName: {scope: authn.Read},
	pb.ReportService_QueryGroups_FullMethodName:     {scope: authn.Read},

	pb.LedgerService_GetHead_FullMethodName:       {scope: authn.Read},
	pb.LedgerService_ListEntries_FullMethodName:   {scope: authn.Read},
	pb.LedgerService_GetEntry_FullMethodName:      {scope: authn.Read},
	pb.LedgerService_VerifyLedger_FullMethodName:  {scope: authn.Read},
	pb.LedgerService_CompareLedger_FullMethodName: {scope: authn.Read},
	pb.IngestService_GetEvent_FullMethodName:      {scope: authn.Read},

	// A package holds audit rows only for who may also see the audit log.
	pb.EvidenceService_GetEvidence_FullMethodName: {scope: authn.Export, action: "ledger.export"},
	ledgerExportName: {scope: authn.Export, action: "ledger.export"},

	pb.AdminService_CreateTenants_FullMethodName: {scope: authn.Admin, operator: true, action: "tenant.create"},
	pb.AdminService_ListTenants_FullMethodName:   {scope: authn.Read},
	pb.AdminService_GetPipeline_FullMethodName:   {scope: authn.Read, operator: true},

	pb.SubjectService_GetSubject_FullMethodName:          {scope: authn.Decrypt, audited: true},
	pb.SubjectService_FindSubject_FullMethodName:         {scope: authn.Decrypt, audited: true},
	pb.SubjectService_EraseSubject_FullMethodName:        {scope: authn.Admin, audited: true},
	pb.SubjectService_ReadmitSubject_FullMethodName:      {scope: authn.Admin, audited: true},
	pb.SubjectService_OpenEntry_FullMethodName:           {scope: authn.Decrypt, audited: true},
	pb.SubjectService_GetConfidentialTags_FullMethodName: {scope: authn.Read},
	pb.SubjectService_SetConfidentialTags_FullMethodName: {scope: authn.Admin, audited: true},

	pb.KeyService_ListKeys_FullMethodName:           {scope: authn.Read},
	pb.KeyService_RotateKeys_FullMethodName:         {scope: authn.Admin, action: "key.rotate"},
	pb.KeyService_DestroySealingKeys_FullMethodName: {scope: authn.Admin, operator: true, action: "key.destroy"},
	pb.KeyService_RewrapKeys_FullMethodName:         {scope: authn.Admin, operator: true, action: "key.rewrap"},

	pb.PriceService_StartRerate_FullMethodName: {scope: authn.Admin, audited: true},
	pb.PriceService_GetRerate_FullMethodName:   {scope: authn.Read},
	// Prices are those of all tenants.
	pb.PriceService_ListPriceBooks_FullMethodName:      {scope: authn.Read, operator: true},
	pb.PriceService_GetPriceBook_FullMethodName:        {scope: authn.Read, operator: true},
	pb.PriceService_ProposePrices_FullMethodName:       {scope: authn.Admin, operator: true, audited: true},
	pb.PriceService_ListPriceCandidates_FullMethodName: {scope: authn.Read, operator: true},
	pb.PriceService_GetPriceCandidate_FullMethodName:   {scope: authn.Read, operator: true},
	pb.PriceService_ApprovePrices_FullMethodName:       {scope: authn.Admin, operator: true, audited: true},
	pb.PriceService_RejectPrices_FullMethodName:        {scope: authn.Admin, operator: true, audited: true},

	pb.MappingService_GetMappingRules_FullMethodName:  {scope: authn.Read},
	pb.MappingService_PutMappingRules_FullMethodName:  {scope: authn.Admin, audited: true},
	pb.MappingService_GetDefaultOwners_FullMethodName: {scope: authn.Read},
	pb.MappingService_PutDefaultOwners_FullMethodName: {scope: authn.Admin, audited: true},

	pb.ConnectionService_CreateConnection_FullMethodName:   {scope: authn.Admin, audited: true},
	pb.ConnectionService_ListConnections_FullMethodName:    {scope: authn.Admin},
	pb.ConnectionService_PauseConnection_FullMethodName:    {scope: authn.Admin, audited: true},
	pb.ConnectionService_RemoveConnection_FullMethodName:   {scope: authn.Admin, audited: true},
	pb.ConnectionService_GetBedrockSettings_FullMethodName: {scope: authn.Read},
	pb.ConnectionService_SetBedrockSettings_FullMethodName: {scope: authn.Admin, audited: true},

	pb.ProviderService_AddProviderKey_FullMethodName:    {scope: authn.Admin, audited: true},
	pb.ProviderService_ListProviderKeys_FullMethodName:  {scope: authn.Admin},
	pb.ProviderService_RotateProviderKey_FullMethodName: {scope: authn.Admin, audited: true},
	pb.ProviderService_RevokeProviderKey_FullMethodName: {scope: authn.Admin, audited: true},
	pb.ProviderService_ThrowKillSwitch_FullMethodName:   {scope: authn.Admin, audited: true},
	pb.ProviderService_ListKillSwitches_FullMethodName:  {scope: authn.Read},
	pb.ProviderService_LiftKillSwitch_FullMethodName:    {scope: authn.Admin, audited: true},
	pb.ProviderService_SetKeyLimit_FullMethodName:       {scope: authn.Admin, audited: true},
	pb.ProviderService_ListKeyLimits_FullMethodName:     {scope: authn.Read},
	pb.ProviderService_SetSpendCap_FullMethodName:       {scope: authn.Admin, audited: true},
	pb.ProviderService_ListSpendCaps_FullMethodName:     {scope: authn.Read},
	pb.ProviderService_GetCapture_FullMethodName:        {scope: authn.Read},
	pb.ProviderService_SetCapture_FullMethodName:        {scope: authn.Admin, audited: true},

	pb.CheckpointService_GetCheckpoint_FullMethodName:       {scope: authn.Read},
	pb.CheckpointService_ListCheckpoints_FullMethodName:     {scope: authn.Read},
	pb.CheckpointService_GetInclusionProof_FullMethodName:   {scope: authn.Read},
	pb.CheckpointService_GetConsistencyProof_FullMethodName: {scope: authn.Read},
	pb.CheckpointService_ListSigningKeys_FullMethodName:     {scope: authn.Read},

	pb.AuditService_ListAuditEvents_FullMethodName: {scope: authn.Audit},
	auditExportName: {scope: authn.Audit | authn.Export, action: "audit.export"},

	// Showing a credential is as much as having it, so it takes what making one does.
	pb.AgentService_CreateAgent_FullMethodName: {scope: authn.Admin, audited: true},
	pb.AgentService_ListAgents_FullMethodName:  {scope: authn.Read},
	pb.AgentService_IssueAgent_FullMethodName:  {scope: authn.Admin, audited: true},
	pb.AgentService_RevokeAgent_FullMethodName: {scope: authn.Admin, audited: true},

	pb.AccessService_CreateToken_FullMethodName:  {scope: authn.Admin, audited: true},
	pb.AccessService_ListTokens_FullMethodName:   {scope: authn.Admin},
	pb.AccessService_RevokeToken_FullMethodName:  {scope: authn.Admin, audited: true},
	pb.AccessService_AddSecret_FullMethodName:    {scope: authn.Admin, audited: true},
	pb.AccessService_ListSecrets_FullMethodName:  {scope: authn.Admin},
	pb.AccessService_RotateSecret_FullMethodName: {scope: authn.Admin, audited: true},
	pb.AccessService_RevokeSecret_FullMethodName: {scope: authn.Admin, audited: true},
	pb.AccessService_RevealSecret_FullMethodName: {scope: authn.Decrypt, audited: true},
}

// edgeMethods authenticate at the ingest edge, which asks for the scope ingest.
var edgeMethods = []string{pb.IngestService_SendEvents_FullMethodName, pb.IngestService_StreamEvents_FullMethodName}

// Auditor keeps who did what; *audit.Log and *audit.Recorder together are one.
type Auditor interface {
	// Record writes a row that is durable on return. Where it cannot be written,
	// the call that it is about does not happen.
	Record(ctx context.Context, ev audit.Event) error
	// Denied keeps a refusal, within bounds.
	Denied(ctx context.Context, ev audit.Event)
}

// call runs a method for the caller of a context if the table lets it, and
// audits it as the table says. It is the only way to a service.
func (s *Server) call(ctx context.Context, method string, req any, handler grpc.UnaryHandler) (any, error) {
	r, ok := access[method]
	p := callerOf(ctx)
	var err error
	switch {
	case !ok:
		err = errForbidden
	case !p.Can(r.scope):
		err = fmt.Errorf("%w: %s", errForbiddenScope, r.scope)
	case r.operator && !p.AllTenants:
		err = errNotOperator
	}
	if err != nil {
		s.denied(ctx, method, req, err)
		return nil, err
	}
	if err := checkText(req); err != nil {
		return nil, err
	}
	ctx = context.WithValue(ctx, permittedKey, p)
	if err := s.serving(ctx, method, req); err != nil {
		return nil, err
	}
	if r.action == "" {
		res, err := handler(ctx, req)
		s.denied(ctx, method, req, err)
		return res, err
	}
	ev := s.event(ctx, req)
	ev.Action, ev.Outcome = r.action, audit.Attempted
	if ev.Resource == "" {
		ev.Resource = subject(req)
	}
	if err := s.deps.Audit.Record(ctx, ev); err != nil {
		return nil, err
	}
	res, err := handler(ctx, req)
	ev.Outcome = outcome(err)
	if err != nil {
		ev.Reason = translate(err).reason
	}
	// What was done is done, also when the caller has gone meanwhile. Without the
	// second row the caller gets no success: the first one stands, and says that
	// it may have happened.
	return res, errors.Join(err, s.deps.Audit.Record(context.WithoutCancel(ctx), ev))
}

func outcome(err error) string {
	switch {
	case err == nil:
		return audit.OK
	case errors.Is(err, errForbidden), errors.Is(err, errForbiddenScope), errors.Is(err, errNotOperator):
		return audit.Denied
	}
	return audit.Failed
}

// denied keeps that a caller was refused, if err says so.
func (s *Server) denied(ctx context.Context, method string, req any, err error) {
	if outcome(err) != audit.Denied {
		return
	}
	ev := s.event(ctx, req)
	ev.Action, ev.Reason = audit.Authorize, err.Error()
	// The row is in the log of who tried, not of whom they tried it with.
	ev.Tenant = callerOf(ctx).Chain()
	ev.Resource = strings.TrimPrefix(method, "/")
	if t, ok := req.(interface{ GetTenantId() string }); ok && tenant.ValidID(t.GetTenantId()) {
		ev.Resource += " tenant/" + t.GetTenantId()
	}
	s.deps.Audit.Denied(ctx, ev)
}

// event is who calls, from where, and in whose log it stands: that of the tenant
// that the request names, of the caller's own, or of the installation.
func (s *Server) event(ctx context.Context, req any) audit.Event {
	p, peer := callerOf(ctx), authn.PeerOf(ctx)
	ev := audit.Event{Tenant: p.Chain(), Actor: p.Subject, Addr: peer.Addr, Client: peer.Client, RequestID: peer.RequestID}
	if t, ok := req.(interface{ GetTenantId() string }); ok && t.GetTenantId() != "" {
		if id, err := tenant.ParseID(t.GetTenantId()); err == nil && p.May(id) {
			ev.Tenant = id
		}
	}
	return ev
}

// subject is what a request is about, where its fields say so.
func subject(req any) string {
	switch r := req.(type) {
	case *pb.CreateTenantsRequest:
		return "tenants " + strings.Join(r.GetTenantIds(), " ")
	case interface{ GetTenantId() string }:
		if r.GetTenantId() != "" {
			return "tenant/" + r.GetTenantId()
		}
	}
	return ""
}

// guardHTTP serves what is no method of a service, such as a download, under a
// name in the table of access.
func (s *Server) guardHTTP(name string, next func(w http.ResponseWriter, r *http.Request) error) http.Handler {
	return s.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &begun{ResponseWriter: w}
		_, err := s.call(r.Context(), name, download{r.URL.Query().Get("tenant_id")}, func(ctx context.Context, _ any) (any, error) {
			return nil, next(out, r.WithContext(ctx))
		})
		if err == nil {
			return
		}
		id := requestIDOf(r.Context())
		f := s.fail(r.Context(), r.URL.Path, id, err)
		if out.answered {
			panic(http.ErrAbortHandler) // the client must not take it for whole
		}
		s.writeProblem(w, f, id)
	}))
}

// download is a request without a message.
type download struct{ tenantID string }

// GetTenantId is the tenant that the request names.
func (d download) GetTenantId() string { return d.tenantID }

// begun notes that an answer has begun.
type begun struct {
	http.ResponseWriter
	answered bool
}

// WriteHeader implements http.ResponseWriter.
func (b *begun) WriteHeader(code int) {
	b.answered = true
	b.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (b *begun) Write(p []byte) (int, error) {
	b.answered = true
	return b.ResponseWriter.Write(p)
}

// Unwrap gives http.ResponseController the writer beneath.
func (b *begun) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// checkAccess reports methods without a rule, and rules without a method.
func checkAccess(methods []string) error {
	var errs []error
	for _, m := range methods {
		if _, ok := access[m]; !ok && !slices.Contains(edgeMethods, m) {
			errs = append(errs, fmt.Errorf("api: %s has no rule in api/access.go: say which scope it needs and how it is audited", m))
		}
	}
	return errors.Join(errs...)
}
