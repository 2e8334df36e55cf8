package ingest_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// revocable is a credential that ends at some moment.
type revocable struct{ over atomic.Bool }

func (r *revocable) Authenticate(context.Context, string) (authn.Principal, error) {
	if r.over.Load() {
		return authn.Principal{}, authn.ErrUnauthenticated
	}
	return authn.Principal{Subject: "tok_1", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest}, nil
}

// A stream is not a way to outlive one's credential: the first frame after it
// was revoked ends it, and what was durable before stays.
func TestRevokedCredentialEndsItsStreams(t *testing.T) {
	log, auth := &fakeLog{}, &revocable{}
	e, err := ingest.New(log, fakeKeys{}, auth, ingest.Options{Topic: "events", EdgeID: "edge-1", EdgeEpoch: 7, Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := newClient(t, e).StreamEvents(as("whatever"))
	if err != nil {
		t.Fatal(err)
	}
	send := func(id string) error {
		return stream.Send(&tallystickv1.SendEventsRequest{Events: []*tallystickv1.UsageEvent{usage(id, "")}})
	}
	if err := send("before"); err != nil {
		t.Fatal(err)
	}
	for taken := 0; taken == 0; {
		taken = len(log.take())
	}
	auth.over.Store(true)
	_ = send("after") // the stream may end before it is all sent
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream ended with %v", err)
	}
	if n := len(log.take()); n != 0 {
		t.Errorf("%d events of a revoked credential are in the log", n)
	}
}

// What the edge refuses a credential is told, with who and from where; events
// of another tenant once for a whole request.
func TestRefusalsAreTold(t *testing.T) {
	type refusal struct{ subject, addr, client, reason string }
	var mu sync.Mutex
	var told []refusal
	e := newEdge(t, &fakeLog{}, func(o *ingest.Options) {
		o.Denied = func(p authn.Principal, from authn.Peer, reason string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, refusal{p.Subject, from.Addr, from.Client, reason})
		}
	})
	const event = `{"event_id":"e%d","tenant_id":"%s","occurred_at":"2026-03-01T12:00:00Z","provider":"openai","model":"gpt-5","tokens":{"input":1}}`
	foreign := make([]string, 50)
	for i := range foreign {
		foreign[i] = fmt.Sprintf(event, i, "umbrella")
	}
	for _, tc := range []struct {
		what, token, tenant, body string
		want                      []refusal
	}{
		{"no scope", "reader", "", `{"events":[]}`, []refusal{{"reader", "192.0.2.1", "test/1", "ingest: the credential lacks the scope ingest"}}},
		{"a foreign header", "acme", "umbrella", `{"events":[]}`, []refusal{{"acme", "192.0.2.1", "test/1", "ingest: the credential may not write for this tenant"}}},
		{"foreign events", "acme", "", `{"events":[` + strings.Join(foreign, ",") + `]}`, []refusal{{"acme", "192.0.2.1", "test/1", "ingest: the credential may not write for this tenant"}}},
		{"its own", "acme", "", `{"events":[` + fmt.Sprintf(event, 1, "acme") + `]}`, nil},
	} {
		told = nil
		r := httptest.NewRequest(http.MethodPost, ingest.EventsPath, strings.NewReader(tc.body))
		r.Header.Set("Authorization", "Bearer "+tc.token)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("User-Agent", "test/1")
		if tc.tenant != "" {
			r.Header.Set(ingest.TenantHeader, tc.tenant)
		}
		authn.TellPeer(e.Handler()).ServeHTTP(httptest.NewRecorder(), r)
		if fmt.Sprint(told) != fmt.Sprint(tc.want) {
			t.Errorf("%s: told of %v, want %v", tc.what, told, tc.want)
		}
	}
}
