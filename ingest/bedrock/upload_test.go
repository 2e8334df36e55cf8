package bedrock

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

func TestUpload(t *testing.T) {
	w := newWorld(t)
	all := bytes.Join([][]byte{logs(t, files[0].name), logs(t, files[1].name), []byte("no record\n")}, nil)
	post := func(token, tenantID, object string, body []byte) (int, Report) {
		t.Helper()
		reader := authn.Principal{Subject: "r", Tenants: []tenant.ID{"acme"}, Scopes: authn.Read}
		auth := authn.First{authn.NewStatic("token", admin), authn.NewStatic("reader", reader)}
		server := httptest.NewServer(NewUploader(auth, w.edge, w.ring, w.store, w.asked, nil))
		defer server.Close()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+UploadPath, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set(ObjectHeader, object)
		if tenantID != "" {
			req.Header.Set(ingest.TenantHeader, tenantID)
		}
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var r Report
		if res.StatusCode == http.StatusOK {
			if err := json.NewDecoder(res.Body).Decode(&r); err != nil {
				t.Fatal(err)
			}
		} else if got := res.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%d with %s", res.StatusCode, got)
		}
		return res.StatusCode, r
	}
	code, r := post("token", "", "a", all)
	if code != http.StatusOK || r.Records != 21 || r.Accepted != 21 || r.Malformed != 1 || r.Statuses["error"] != 9 || r.Tokens["input"] == 0 || r.Damaged {
		t.Fatalf("%d %+v", code, r)
	}
	if _, again := post("token", "acme", "a", all); again.Accepted != 21 || len(w.log.ids()) != 19 {
		t.Errorf("again: %+v, %d ids", again, len(w.log.ids()))
	}
	for _, c := range []struct {
		token, tenant, object string
		want                  int
	}{
		{"wrong", "", "a", 401}, {"reader", "", "a", 403}, {"token", "umbrella", "a", 403}, {"token", "nobody", "a", 403},
		{"token", "", strings.Repeat("x", maxText+1), 400},
	} {
		if code, _ := post(c.token, c.tenant, c.object, all); code != c.want {
			t.Errorf("%+v: %d", c, code)
		}
	}
	w.log.before = func() error { return kafka.ErrClosed }
	if code, _ := post("token", "", "a", all); code != http.StatusServiceUnavailable {
		t.Errorf("with the log away: %d", code)
	}
}
