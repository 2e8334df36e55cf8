package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// ourMethods are all methods of the protos that this API can serve.
func ourMethods() (all []string) {
	protoregistry.GlobalFiles.RangeFilesByPackage("tallystick.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if s.Name() == "AgentGateway" {
				continue // proofs, and no tokens, on a listener of its own: ingest/agent
			}
			for j := range s.Methods().Len() {
				all = append(all, "/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name()))
			}
		}
		return true
	})
	return all
}

// Every method of the protos has a rule, and one that does more than read is
// audited. A name says which it is.
func TestEveryMethodHasARule(t *testing.T) {
	methods := ourMethods()
	if len(methods) < 20 {
		t.Fatalf("only %d methods are found", len(methods))
	}
	reads := []string{"Get", "List", "Query", "Verify", "Compare", "Prove", "Find"}
	for _, m := range methods {
		scope, _, isAudited, ok := api.AccessRule(m)
		name := m[strings.LastIndex(m, "/")+1:]
		edge := m == pb.IngestService_SendEvents_FullMethodName || m == pb.IngestService_StreamEvents_FullMethodName
		switch {
		case edge != !ok:
			t.Errorf("%s: rule %v, of the edge %v", m, ok, edge)
		case edge:
		case scope == 0:
			t.Errorf("%s needs no scope", m)
		case !isAudited && !hasPrefix(name, reads):
			t.Errorf("%s is not audited and its name does not say that it only reads", m)
		case !isAudited && (scope.Has(authn.Decrypt) || scope.Has(authn.Export)):
			t.Errorf("%s shows what is secret, or takes a ledger away, and is not audited", m)
		}
	}
}

func hasPrefix(name string, list []string) bool {
	for _, p := range list {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// A service that is served with a method without a rule is no server at all.
func TestUnruledMethodIsRefused(t *testing.T) {
	if err := api.CheckAccess([]string{"/tallystick.v1.AdminService/DropEverything"}); err == nil {
		t.Error("a method without a rule is served")
	}
	_, err := api.Call(testServer(t, nil), t.Context(), "/tallystick.v1.AdminService/DropEverything", nil,
		func(context.Context, any) (any, error) { t.Error("it is called"); return nil, nil })
	if err == nil {
		t.Error("a method without a rule is let in")
	}
}

// The gateway reaches services by the table only: its other way would go around it.
func TestGatewayHasOneWay(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if ok && strings.HasPrefix(sel.Sel.Name, "Register") && strings.HasSuffix(sel.Sel.Name, "HandlerServer") {
				t.Errorf("%s uses %s, which goes around the table of access", name, sel.Sel.Name)
			}
			return true
		})
	}
}

// A credential without the scope is refused alike by gRPC and by REST, and both
// refusals are kept.
func TestScopesHoldOnBothWays(t *testing.T) {
	log := &fakeAudit{}
	s := testServer(t, func(d *api.Deps, _ *api.Options) { d.Audit = log })
	conn := dial(t, s)
	for _, tc := range []struct {
		what, token string
		grpc        func(ctx context.Context) error
		method, url string
		code        codes.Code
		http        int
	}{
		{"read with ingest", "sender", func(ctx context.Context) error {
			_, err := pb.NewLedgerServiceClient(conn).GetHead(ctx, &pb.GetHeadRequest{})
			return err
		}, "GET", "/v1/ledger/head", codes.PermissionDenied, 403},
		{"an event with ingest", "sender", nil, "GET", "/v1/events/x", codes.PermissionDenied, 403},
		{"admin with read", "two", func(ctx context.Context) error {
			_, err := pb.NewAccessServiceClient(conn).ListTokens(ctx, &pb.ListTokensRequest{TenantId: "acme"})
			return err
		}, "GET", "/v1/tokens?tenant_id=acme", codes.PermissionDenied, 403},
		{"audit with read", "two", func(ctx context.Context) error {
			_, err := pb.NewAuditServiceClient(conn).ListAuditEvents(ctx, &pb.ListAuditEventsRequest{TenantId: "acme"})
			return err
		}, "GET", "/v1/audit?tenant_id=acme", codes.PermissionDenied, 403},
		{"an export with read", "two", nil, "GET", "/v1/audit:export?tenant_id=acme", codes.PermissionDenied, 403},
		{"all tenants with one", "acme", func(ctx context.Context) error {
			_, err := pb.NewAdminServiceClient(conn).GetPipeline(ctx, &pb.GetPipelineRequest{})
			return err
		}, "GET", "/v1/pipeline", codes.PermissionDenied, 403},
		{"read with read", "two", func(ctx context.Context) error {
			_, err := pb.NewLedgerServiceClient(conn).GetHead(ctx, &pb.GetHeadRequest{TenantId: "acme"})
			return err
		}, "GET", "/v1/ledger/head?tenant_id=acme", codes.OK, 200},
	} {
		before := len(log.denied)
		calls := 0
		if tc.grpc != nil {
			calls++
			if err := tc.grpc(as(t.Context(), tc.token)); status.Code(err) != tc.code {
				t.Errorf("%s by gRPC: %v", tc.what, err)
			}
		}
		calls++
		r := httptest.NewRequest(tc.method, tc.url, nil)
		r.Header.Set("Authorization", "Bearer "+tc.token)
		r.Header.Set("User-Agent", "test-client/1")
		w := httptest.NewRecorder()
		s.HTTPHandler().ServeHTTP(w, r)
		if w.Code != tc.http {
			t.Errorf("%s by REST: %d %s", tc.what, w.Code, w.Body)
		}
		if tc.http == 200 {
			calls = 0
		}
		if n := len(log.denied) - before; n != calls {
			t.Errorf("%s: %d refusals are kept, want %d", tc.what, n, calls)
		}
	}
	last := log.denied[len(log.denied)-1]
	if last.Actor != "acme-key" || last.Addr != "192.0.2.1" || last.Client != "test-client/1" || last.Action != audit.Authorize ||
		last.Tenant != "acme" || last.RequestID == "" || !strings.Contains(last.Resource, "GetPipeline") {
		t.Errorf("the row of a refusal: %+v", last)
	}
}

// A tenant tried with a foreign credential is told of in the log of who tried.
func TestForeignTenantIsAudited(t *testing.T) {
	log := &fakeAudit{}
	conn := dial(t, testServer(t, func(d *api.Deps, _ *api.Options) { d.Audit = log }))
	_, err := pb.NewLedgerServiceClient(conn).GetHead(as(t.Context(), "acme"), &pb.GetHeadRequest{TenantId: "bravo"})
	if status.Code(err) != codes.PermissionDenied || len(log.denied) != 1 {
		t.Fatalf("%v, %+v", err, log.denied)
	}
	if ev := log.denied[0]; ev.Tenant != "acme" || !strings.HasSuffix(ev.Resource, "GetHead tenant/bravo") {
		t.Errorf("%+v", ev)
	}
}

// What changes something is audited before it happens and when it has; it does
// not happen when that cannot be written.
func TestChangesAreAuditedOrDoNotHappen(t *testing.T) {
	log, tenants := &fakeAudit{}, &fakeTenants{}
	s := testServer(t, func(d *api.Deps, _ *api.Options) { d.Audit, d.Tenants = log, tenants })
	conn := dial(t, s)
	create := func(id string) error {
		_, err := pb.NewAdminServiceClient(conn).CreateTenants(as(t.Context(), "root"), &pb.CreateTenantsRequest{TenantIds: []string{id}})
		return err
	}
	if err := create("first"); err != nil {
		t.Fatal(err)
	}
	if err := create("-bad"); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	var got []string
	for _, ev := range log.rows {
		got = append(got, ev.Action+" "+ev.Resource+" "+ev.Outcome+" "+ev.Reason)
		if ev.Actor != "root" || ev.RequestID != "test-request" {
			t.Errorf("%+v", ev)
		}
	}
	want := "tenant.create tenants first attempted ,tenant.create tenants first ok ,tenant.create tenants -bad attempted ,tenant.create tenants -bad failed invalid_argument"
	if strings.Join(got, ",") != want {
		t.Errorf("rows:\n%s\nwant:\n%s", strings.Join(got, ","), want)
	}
	log.err = errors.Join(audit.ErrUnwritten, errors.New("the store is away"))
	if err := create("second"); status.Code(err) != codes.Unavailable {
		t.Errorf("an unaudited change by gRPC: %v", err)
	}
	r := httptest.NewRequest("POST", "/v1/tenants:batchCreate", strings.NewReader(`{"tenant_ids":["third"]}`))
	r.Header.Set("Authorization", "Bearer root")
	w := httptest.NewRecorder()
	s.HTTPHandler().ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "store is away") {
		t.Errorf("an unaudited change by REST: %d %s", w.Code, w.Body)
	}
	// Without the tenant there is nothing to write the row into, and no use in
	// asking again.
	log.err = errors.Join(audit.ErrUnwritten, keyring.ErrNoKey)
	if err := create("fourth"); status.Code(err) != codes.NotFound {
		t.Errorf("a change for an unknown tenant: %v", err)
	}
	if len(tenants.created) != 1 {
		t.Errorf("made: %v", tenants.created)
	}
}

// A service that is reached around the table finds no caller.
func TestServiceWithoutCallIsNobodys(t *testing.T) {
	s := testServer(t, nil)
	if _, err := s.GetEvent(t.Context(), &pb.GetEventRequest{TenantId: "acme", EventId: "x"}); err == nil {
		t.Error("a call that nobody let in is answered")
	}
}

// An answer by REST is what gRPC answers, messages within messages included.
func TestRESTHandsOnWholeAnswers(t *testing.T) {
	s := testServer(t, nil)
	r := httptest.NewRequest("GET", "/v1/ledger/entries?tenant_id=acme&page_size=3", nil)
	r.Header.Set("Authorization", "Bearer acme")
	w := httptest.NewRecorder()
	s.HTTPHandler().ServeHTTP(w, r)
	var page struct {
		Entries []struct{ Seq string }
		Next    string `json:"next_page_token"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || len(page.Entries) != 3 || page.Entries[2].Seq != "3" || page.Next == "" {
		t.Errorf("%+v, %v: %s", page, err, w.Body)
	}
}
