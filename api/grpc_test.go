package api_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// dial serves a Server by gRPC in this process and connects to it.
func dial(t *testing.T, s *api.Server) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(s.ServerOptions()...)
	s.RegisterGRPC(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func as(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "x-request-id", "test-request")
}

func TestGRPC(t *testing.T) {
	conn := dial(t, testServer(t, nil))
	ledger, ctx := pb.NewLedgerServiceClient(conn), t.Context()
	var header metadata.MD
	h, err := ledger.GetHead(as(ctx, "acme"), &pb.GetHeadRequest{}, grpc.Header(&header))
	if err != nil || h.TenantId != "acme" || h.Seq != 22 || header.Get("x-request-id")[0] != "test-request" {
		t.Errorf("head: %v, %v, %v", h, err, header)
	}
	sum, err := pb.NewReportServiceClient(conn).QuerySummary(as(ctx, "acme"), &pb.SummaryRequest{Window: &pb.Window{Name: "7d"}})
	if err != nil || sum.Totals.CostUsd != "1.234567890123" || sum.Coverage.HeadHash[:4] != "ab01" {
		t.Errorf("summary: %v, %v", sum, err)
	}
	for _, c := range []struct {
		what string
		call func() error
		code codes.Code
	}{
		{"no token", func() error { _, err := ledger.GetHead(ctx, &pb.GetHeadRequest{}); return err }, codes.Unauthenticated},
		{"wrong token", func() error { _, err := ledger.GetHead(as(ctx, "x"), &pb.GetHeadRequest{}); return err }, codes.Unauthenticated},
		{"broken store of tokens", func() error { _, err := ledger.GetHead(as(ctx, "broken"), &pb.GetHeadRequest{}); return err }, codes.Internal},
		{"foreign tenant", func() error {
			_, err := ledger.GetHead(as(ctx, "acme"), &pb.GetHeadRequest{TenantId: "bravo"})
			return err
		}, codes.PermissionDenied},
		{"no such tenant", func() error {
			_, err := ledger.GetHead(as(ctx, "root"), &pb.GetHeadRequest{TenantId: "nobody"})
			return err
		}, codes.NotFound},
		{"a check that takes too long", func() error {
			_, err := ledger.VerifyLedger(as(ctx, "acme"), &pb.VerifyLedgerRequest{FromSeq: 13})
			return err
		}, codes.DeadlineExceeded},
		{"pipeline of one tenant", func() error {
			_, err := pb.NewAdminServiceClient(conn).GetPipeline(as(ctx, "acme"), &pb.GetPipelineRequest{})
			return err
		}, codes.PermissionDenied},
	} {
		if err := c.call(); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", c.what, err, c.code)
		}
	}
}

func TestGRPCErrorDetails(t *testing.T) {
	conn := dial(t, testServer(t, nil))
	_, err := pb.NewReportServiceClient(conn).QueryGroups(as(t.Context(), "acme"), &pb.GroupsRequest{GroupBy: []string{"shoe_size"}, Window: &pb.Window{Name: "7d"}})
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument || len(st.Details()) != 2 {
		t.Fatalf("%v: %v", err, st.Details())
	}
	info, ok := st.Details()[0].(*errdetails.ErrorInfo)
	if !ok || info.Reason != "INVALID_ARGUMENT" || info.Metadata["request_id"] != "test-request" {
		t.Errorf("error info %v", st.Details()[0])
	}
	bad, ok := st.Details()[1].(*errdetails.BadRequest)
	if !ok || len(bad.FieldViolations) != 1 || bad.FieldViolations[0].Field != "group_by[0]" {
		t.Errorf("violations %v", st.Details()[1])
	}
}

// Health and reflection answer without a token: they tell nothing of anybody.
func TestGRPCHealthAndReflection(t *testing.T) {
	s := testServer(t, nil)
	conn := dial(t, s)
	health := grpc_health_v1.NewHealthClient(conn)
	check := func(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		r, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "tallystick.v1.LedgerService"})
		if err != nil || r.Status != want {
			t.Errorf("health %v, %v; want %v", r, err, want)
		}
	}
	check(grpc_health_v1.HealthCheckResponse_SERVING)
	s.SetServing(false)
	check(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	s.SetServing(true)
	check(grpc_health_v1.HealthCheckResponse_SERVING)

	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || len(r.GetListServicesResponse().GetService()) < 4 {
		t.Errorf("reflection %v, %v", r, err)
	}
}

// A part that does not run in this process answers so, and nothing panics.
func TestMissingParts(t *testing.T) {
	conn := dial(t, testServer(t, func(d *api.Deps, _ *api.Options) { *d = api.Deps{Auth: d.Auth, Audit: d.Audit} }))
	ctx := as(t.Context(), "root")
	ledger, admin, reports := pb.NewLedgerServiceClient(conn), pb.NewAdminServiceClient(conn), pb.NewReportServiceClient(conn)
	calls := map[string]func() error{
		"head":    func() error { _, err := ledger.GetHead(ctx, &pb.GetHeadRequest{TenantId: "acme"}); return err },
		"entries": func() error { _, err := ledger.ListEntries(ctx, &pb.ListEntriesRequest{TenantId: "acme"}); return err },
		"entry": func() error {
			_, err := ledger.GetEntry(ctx, &pb.GetEntryRequest{TenantId: "acme", Seq: 1})
			return err
		},
		"verify": func() error {
			_, err := ledger.VerifyLedger(ctx, &pb.VerifyLedgerRequest{TenantId: "acme"})
			return err
		},
		"create": func() error {
			_, err := admin.CreateTenants(ctx, &pb.CreateTenantsRequest{TenantIds: []string{"a"}})
			return err
		},
		"tenants":  func() error { _, err := admin.ListTenants(ctx, &pb.ListTenantsRequest{}); return err },
		"pipeline": func() error { _, err := admin.GetPipeline(ctx, &pb.GetPipelineRequest{}); return err },
		"summary":  func() error { _, err := reports.QuerySummary(ctx, &pb.SummaryRequest{TenantId: "acme"}); return err },
	}
	for what, call := range calls {
		if err := call(); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", what, err)
		}
	}
}

type panicking struct{ api.LedgerReader }

func (panicking) Head(context.Context, tenant.ID) (api.Head, error) { panic("a bug") }

func TestPanicIsOneFailedCall(t *testing.T) {
	s := testServer(t, func(d *api.Deps, _ *api.Options) { d.Ledger = panicking{} })
	if got := serve(t, s.HTTPHandler(), "GET /v1/ledger/head\ntoken: acme\n"); !strings.HasPrefix(got, "500\n") || strings.Contains(got, "a bug") {
		t.Errorf("by REST: %s", got)
	}
	conn := dial(t, s)
	for range 2 {
		_, err := pb.NewLedgerServiceClient(conn).GetHead(as(t.Context(), "acme"), &pb.GetHeadRequest{})
		if status.Code(err) != codes.Internal {
			t.Errorf("%v", err)
		}
	}
}

// Every page follows the one before, in both directions, whatever its size.
func TestPaging(t *testing.T) {
	s := testServer(t, nil)
	conn := dial(t, s)
	ctx, ledger := as(t.Context(), "acme"), pb.NewLedgerServiceClient(conn)
	for _, size := range []int32{1, 3, 21, 22, 23, 5000} {
		for _, descending := range []bool{false, true} {
			var seqs []int64
			for token := ""; ; {
				page, err := ledger.ListEntries(ctx, &pb.ListEntriesRequest{PageSize: size, PageToken: token, Descending: descending})
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range page.Entries {
					seqs = append(seqs, e.Seq)
				}
				if token = page.NextPageToken; token == "" {
					break
				}
			}
			want := make([]int64, 22)
			for i := range want {
				want[i] = int64(i + 1)
				if descending {
					want[i] = int64(22 - i)
				}
			}
			if fmt.Sprint(seqs) != fmt.Sprint(want) {
				t.Errorf("size %d, descending %v: %v", size, descending, seqs)
			}
		}
	}
	tenants := pb.NewAdminServiceClient(conn)
	n := 0
	for token := ""; ; {
		page, err := tenants.ListTenants(as(t.Context(), "root"), &pb.ListTenantsRequest{PageSize: 7, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.Tenants)
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if n != 122 {
		t.Errorf("%d tenants", n)
	}
}

// A token is good for the very list it was given for.
func TestPageTokensAreBound(t *testing.T) {
	conn := dial(t, testServer(t, nil))
	ledger := pb.NewLedgerServiceClient(conn)
	page, err := ledger.ListEntries(as(t.Context(), "two"), &pb.ListEntriesRequest{TenantId: "bravo", PageSize: 1})
	if err != nil || page.NextPageToken == "" {
		t.Fatalf("%v, %v", page, err)
	}
	token := page.NextPageToken
	other, err := pb.NewLedgerServiceClient(dial(t, testServer(t, func(_ *api.Deps, o *api.Options) { o.PageKey = [32]byte{} }))).
		ListEntries(as(t.Context(), "two"), &pb.ListEntriesRequest{TenantId: "bravo", PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for what, req := range map[string]*pb.ListEntriesRequest{
		"another tenant":      {TenantId: "acme", PageToken: token},
		"another direction":   {TenantId: "bravo", PageToken: token, Descending: true},
		"a changed character": {TenantId: "bravo", PageToken: token[:5] + "_" + token[6:]},
		"a cut one":           {TenantId: "bravo", PageToken: token[:len(token)-2]},
		"another key":         {TenantId: "bravo", PageToken: other.NextPageToken},
		"no base64":           {TenantId: "bravo", PageToken: "%%%"},
	} {
		if _, err := ledger.ListEntries(as(t.Context(), "two"), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ledger.ListEntries(as(t.Context(), "two"), &pb.ListEntriesRequest{TenantId: "bravo", PageToken: token}); err != nil {
		t.Errorf("the token itself: %v", err)
	}
}

func TestOptions(t *testing.T) {
	if err := (api.Options{RequestTimeout: -1, MaxBodyBytes: -1}).Validate(); err == nil {
		t.Error("negative limits are accepted")
	}
	if _, err := api.New(api.Deps{}, api.Options{}); err == nil {
		t.Error("a server without authentication")
	}
	if _, err := api.New(api.Deps{Auth: credentials}, api.Options{}); err == nil {
		t.Error("a server without an audit log")
	}
	if s := testServer(t, nil).HTTPServer(); s.ReadHeaderTimeout < time.Second || s.MaxHeaderBytes == 0 {
		t.Errorf("limits of the server: %+v", s)
	}
}
