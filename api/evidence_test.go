package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// fakeEvidence makes packages of repeated bytes.
type fakeEvidence struct {
	asked  api.EvidenceRequest
	of     tenant.ID
	size   int
	planed error // of Plan
	broken error // of Write, half way
}

func (f *fakeEvidence) Plan(_ context.Context, id tenant.ID, req api.EvidenceRequest) (api.EvidencePackage, error) {
	f.of, f.asked = id, req
	return f, f.planed
}

func (f *fakeEvidence) Range() (from, to, checkpoint int64) { return 3, 9, 12 }

func (f *fakeEvidence) Write(_ context.Context, w io.Writer) error {
	half := bytes.Repeat([]byte("package "), f.size/16)
	if _, err := w.Write(half); err != nil || f.broken != nil {
		return errors.Join(err, f.broken)
	}
	_, err := w.Write(half)
	return err
}

func evidenceServer(t *testing.T, f *fakeEvidence) (*httptest.Server, *fakeAudit) {
	t.Helper()
	log := &fakeAudit{}
	s := testServer(t, func(d *api.Deps, _ *api.Options) {
		d.Evidence, d.Audit = f, log
		d.Auth = testTokens{
			"acme": credentials["acme"], "two": credentials["two"], "root": credentials["root"],
			"exporter": {Subject: "exporter", Tenants: []tenant.ID{"bravo"}, Scopes: authn.Export},
		}
	})
	web := httptest.NewServer(s.HTTPHandler())
	t.Cleanup(web.Close)
	return web, log
}

func fetch(t *testing.T, url, token string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // it is read to its end
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

func TestEvidenceDownload(t *testing.T) {
	f := &fakeEvidence{size: 1 << 20}
	web, log := evidenceServer(t, f)
	res, b, err := fetch(t, web.URL+"/v1/ledger/evidence?tenant_id=acme&from=3&to=9&kept=4&kept=5", "acme")
	if err != nil || res.StatusCode != http.StatusOK || len(b) != 1<<20 || !strings.HasPrefix(string(b), "package package ") {
		t.Fatalf("%d, %d bytes, %v", res.StatusCode, len(b), err)
	}
	h := res.Header
	if h.Get("Content-Type") != "application/zip" || h.Get("Content-Disposition") != `attachment; filename="evidence-acme-3-9.zip"` ||
		h.Get(api.EvidenceHeader) != "from_seq=3; to_seq=9; checkpoint_size=12" {
		t.Errorf("%v", h)
	}
	want := api.EvidenceRequest{FromSeq: 3, ToSeq: 9, TimeZone: "UTC", Kept: []int64{4, 5}, Audit: true}
	if f.of != "acme" || !cmp.Equal(f.asked, want) {
		t.Errorf("asked %s: %+v", f.of, f.asked)
	}
	if len(log.rows) != 2 || log.rows[0].Action != "ledger.export" || log.rows[0].Outcome != audit.Attempted || log.rows[1].Outcome != audit.OK || log.rows[0].Tenant != "acme" {
		t.Errorf("audited: %+v", log.rows)
	}
	// Whoever may not see the audit log gets a package without it.
	if res, b, _ := fetch(t, web.URL+"/v1/ledger/evidence?tenant_id=bravo", "exporter"); res.StatusCode != http.StatusOK || f.asked.Audit || f.of != "bravo" {
		t.Errorf("%d %s: %+v", res.StatusCode, b, f.asked)
	}
}

func TestEvidenceIsRefused(t *testing.T) {
	f := &fakeEvidence{size: 16}
	web, log := evidenceServer(t, f)
	for name, c := range map[string]struct {
		query, token string
		want         int
	}{
		"no credential":       {"tenant_id=acme", "", 401},
		"another tenant":      {"tenant_id=bravo", "acme", 403},
		"no scope":            {"tenant_id=acme", "two", 403},
		"no tenant":           {"", "root", 400},
		"mixed range":         {"tenant_id=acme&from=3&to=2026-11-30", "acme", 400},
		"half a range":        {"tenant_id=acme&from=2026-11-01", "acme", 400},
		"backwards":           {"tenant_id=acme&from=9&to=3", "acme", 400},
		"backwards days":      {"tenant_id=acme&from=2026-11-02&to=2026-11-01", "acme", 400},
		"no number":           {"tenant_id=acme&from=-3", "acme", 400},
		"a far day":           {"tenant_id=acme&from=0001-01-01&to=2026-11-01", "acme", 400},
		"no zone":             {"tenant_id=acme&from=2026-11-01&to=2026-11-01&time_zone=Nowhere", "acme", 400},
		"the machine's zone":  {"tenant_id=acme&from=2026-11-01&to=2026-11-01&time_zone=Local", "acme", 400},
		"a zone of numbers":   {"tenant_id=acme&from=1&time_zone=UTC", "acme", 400},
		"kept of nothing":     {"tenant_id=acme&kept=0", "acme", 400},
		"kept that is a word": {"tenant_id=acme&kept=x", "acme", 400},
	} {
		if res, b, _ := fetch(t, web.URL+"/v1/ledger/evidence?"+c.query, c.token); res.StatusCode != c.want || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", name, res.StatusCode, b)
		}
	}
	f.planed = api.ErrUnavailable
	if res, _, _ := fetch(t, web.URL+"/v1/ledger/evidence?tenant_id=acme", "acme"); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a store that is away: %d", res.StatusCode)
	}
	f.planed, log.err = nil, audit.ErrUnwritten
	if res, _, _ := fetch(t, web.URL+"/v1/ledger/evidence?tenant_id=acme", "acme"); res.StatusCode == http.StatusOK {
		t.Error("an export that cannot be audited goes out")
	}
}

// What breaks off looks broken: the connection ends before the answer does.
func TestEvidenceThatBreaksOff(t *testing.T) {
	f := &fakeEvidence{size: 1 << 20, broken: errors.New("the store went away")}
	web, log := evidenceServer(t, f)
	if _, b, err := fetch(t, web.URL+"/v1/ledger/evidence?tenant_id=acme", "acme"); err == nil {
		t.Errorf("%d bytes end like a whole file", len(b))
	}
	if len(log.rows) != 2 || log.rows[1].Outcome != audit.Failed {
		t.Errorf("audited: %+v", log.rows)
	}
}

func TestEvidenceRanges(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	day := func(d int, zone *time.Location) time.Time { return time.Date(2026, 10, d, 0, 0, 0, 0, zone) }
	for name, c := range map[string]struct {
		from, to, zone string
		want           api.EvidenceRequest
	}{
		"everything":     {"", "", "", api.EvidenceRequest{TimeZone: "UTC"}},
		"numbers":        {"7", "9", "", api.EvidenceRequest{FromSeq: 7, ToSeq: 9, TimeZone: "UTC"}},
		"up to a number": {"", "9", "", api.EvidenceRequest{ToSeq: 9, TimeZone: "UTC"}},
		"a day":          {"2026-10-01", "2026-10-01", "", api.EvidenceRequest{From: day(1, time.UTC), Before: day(2, time.UTC), TimeZone: "UTC"}},
		"a day of 25 hours": {
			"2026-10-25", "2026-10-25", "Europe/Berlin",
			api.EvidenceRequest{From: day(25, berlin), Before: day(26, berlin), TimeZone: "Europe/Berlin"},
		},
		"times": {
			"2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z", "",
			api.EvidenceRequest{From: day(1, time.UTC), Before: day(2, time.UTC), TimeZone: "UTC"},
		},
	} {
		got, err := api.ParseEvidenceRange(c.from, c.to, c.zone)
		if err != nil || got.FromSeq != c.want.FromSeq || got.ToSeq != c.want.ToSeq || !got.From.Equal(c.want.From) || !got.Before.Equal(c.want.Before) || got.TimeZone != c.want.TimeZone {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if d := day(26, berlin).Sub(day(25, berlin)); d != 25*time.Hour {
		t.Errorf("the clocks went back by %s", 24*time.Hour-d)
	}
}

// The same package by gRPC: pieces that come to the file, and errors as of any
// other method.
func TestEvidenceByGRPC(t *testing.T) {
	f := &fakeEvidence{size: 1 << 20}
	log := &fakeAudit{}
	s := testServer(t, func(d *api.Deps, _ *api.Options) { d.Evidence, d.Audit = f, log })
	c := pb.NewEvidenceServiceClient(dial(t, s))
	read := func(token string, req *pb.GetEvidenceRequest) (first *pb.GetEvidenceResponse, n int, err error) {
		stream, err := c.GetEvidence(as(t.Context(), token), req)
		if err != nil {
			return nil, 0, err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return first, n, nil
			}
			if err != nil {
				return first, n, err
			}
			if first == nil {
				first = m
			}
			n += len(m.Data)
		}
	}
	first, n, err := read("acme", &pb.GetEvidenceRequest{TenantId: "acme", From: "3"})
	if err != nil || n != 1<<20 || first.FromSeq != 3 || first.ToSeq != 9 || first.CheckpointSize != 12 || f.asked.FromSeq != 3 {
		t.Errorf("%d bytes, %v, asked %+v", n, err, f.asked)
	}
	for _, bad := range []struct {
		token string
		req   *pb.GetEvidenceRequest
		want  codes.Code
	}{
		{"", &pb.GetEvidenceRequest{TenantId: "acme"}, codes.Unauthenticated},
		{"acme", &pb.GetEvidenceRequest{TenantId: "bravo"}, codes.PermissionDenied},
		{"two", &pb.GetEvidenceRequest{TenantId: "acme"}, codes.PermissionDenied},
		{"acme", &pb.GetEvidenceRequest{TenantId: "acme", From: "x"}, codes.InvalidArgument},
	} {
		if _, _, err := read(bad.token, bad.req); status.Code(err) != bad.want {
			t.Errorf("%s %v: %v", bad.token, bad.req, err)
		}
	}
	f.broken = errors.New("the store went away")
	if _, _, err := read("acme", &pb.GetEvidenceRequest{TenantId: "acme"}); status.Code(err) != codes.Internal {
		t.Errorf("broken off: %v", err)
	}
	if last := log.rows[len(log.rows)-1]; last.Action != "ledger.export" || last.Outcome != audit.Failed {
		t.Errorf("audited: %+v", last)
	}
}
