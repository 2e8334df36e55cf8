package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/sigv4"
	"github.com/tallystick/tallystick/internal/sigv4/sigv4test"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/testenv/testlog"
)

const (
	awsSecret  = "TheSecretAccessKeyOfTheTest+/0000000cAnR"
	awsSession = "TheSessionTokenOfTheTest+/000000000cAnR=="
)

// judge is what AWS knows of the tenant's temporary credential.
var judge = sigv4test.Key{ID: "ASIATHETENANTSKEY001", Secret: awsSecret, Token: awsSession, Region: "us-east-1", Service: "bedrock"}

// credential is the same as the tenant has given it to us.
var credential = sigv4.Credential{AccessKeyID: judge.ID, SecretAccessKey: awsSecret, SessionToken: awsSession}.Text()

// oneKey is the same key for everybody.
type oneKey struct{ secret, base string }

func (k oneKey) ProviderKey(context.Context, tenant.ID, string) (proxy.ProviderKey, error) {
	return proxy.ProviderKey{ID: "key_aws", Secret: k.secret, Base: k.base}, nil
}

// signedByClient is what an AWS SDK puts into a request with credentials of no worth
// for the proxy's host, and our token beside it.
func signedByClient(req *http.Request) {
	req.Header.Set("X-Api-Key", token)
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIADUMMYDUMMY000001/20261122/us-east-1/bedrock/aws4_request, SignedHeaders=host;x-amz-date, Signature="+strings.Repeat("0", 64))
	req.Header.Set("X-Amz-Date", "20261122T000000Z")
	req.Header.Set("X-Amz-Security-Token", "dummy-session-token")
	req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	req.Header.Set("Amz-Sdk-Invocation-Id", "8b1d")
	req.Header.Set("X-Amzn-Bedrock-Guardrailidentifier", "g-1")
}

// wrong says what AWS would refuse of a request, and what it must not have got.
func wrong(r *http.Request, body []byte) string {
	if err := sigv4test.Verify(r, body, judge, time.Now()); err != nil {
		return err.Error()
	}
	said := fmt.Sprint(r.Header, r.RequestURI)
	for _, not := range []string{token, "DUMMY", "dummy", awsSecret, "UNSIGNED"} {
		if strings.Contains(said, not) {
			return not + " arrived"
		}
	}
	if r.Header.Get("X-Amzn-Bedrock-Guardrailidentifier") != "g-1" || r.Header.Get("Amz-Sdk-Invocation-Id") == "" {
		return "headers of the call are missing"
	}
	return ""
}

// bedrockExchanges are the recorded calls of Bedrock.
func bedrockExchanges(t *testing.T) (list []testenv.Exchange) {
	t.Helper()
	streams := 0
	for _, e := range testenv.Exchanges(t) {
		if strings.HasPrefix(e.Host, "bedrock-runtime.") {
			list = append(list, e)
			if e.Stream {
				streams++
			}
		}
	}
	if len(list) < 50 || streams == 0 {
		t.Fatalf("%d exchanges of Bedrock, %d of them streams", len(list), streams)
	}
	return list
}

// toServer sends what is meant for AWS's hosts to a server of the test.
func toServer(s *httptest.Server) http.RoundTripper {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a test's
	}
}

// Every recorded call of Bedrock goes upstream signed with the tenant's credential as
// AWS would have it, whatever its client signed; what is answered passes byte for byte,
// and is metered. Once AWS's own hosts are meant, in the region of the path, and once
// another address, whose region is configured.
func TestSignedForAWS(t *testing.T) {
	all := bedrockExchanges(t)
	var served atomic.Int64
	provider := func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		e := &all[served.Add(1)-1]
		if what := wrong(r, body); what != "" {
			t.Errorf("%s: %s", r.RequestURI, what)
		}
		// Anthropic's SDK leaves colons as they are, AWS's escape them.
		if r.RequestURI != strings.ReplaceAll(e.Path, ":", "%3A") || !bytes.Equal(body, e.Request) {
			t.Errorf("%s arrived as %s with %d bytes of %d", e.Path, r.RequestURI, len(body), len(e.Request))
		}
		for k, v := range e.Headers {
			rw.Header().Set(k, v)
		}
		rw.Header().Del("Content-Encoding")
		rw.Header().Set("Content-Type", e.ContentType())
		rw.Header().Set("X-Amzn-Requestid", fmt.Sprint("request-", served.Load()))
		rw.WriteHeader(e.Status)
		for b := e.Body; len(b) > 0; { // chunks that end within messages
			size := min(len(b), 97)
			_, _ = rw.Write(b[:size])
			_ = http.NewResponseController(rw).Flush()
			b = b[size:]
		}
	}
	var logged testlog.Buffer
	logger := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	aws := httptest.NewTLSServer(http.HandlerFunc(provider))
	t.Cleanup(aws.Close)
	for name, change := range map[string]func(*proxy.Parts, *proxy.Options){
		"/bedrock/us-east-1": func(p *proxy.Parts, o *proxy.Options) {
			o.Providers, p.Upstream = proxy.BuiltinProviders(), toServer(aws)
		},
		"/bedrock": func(_ *proxy.Parts, o *proxy.Options) {
			at := o.Providers[len(o.Providers)-1] // where newWorld has put a provider
			for _, v := range o.Providers {
				if v.Name == "bedrock" {
					at = v
				}
			}
			var err error
			if o.Providers, err = proxy.ParseProvider("bedrock="+at.Base+" like=bedrock-runtime.us-east-1.amazonaws.com region=us-east-1", o.Providers); err != nil {
				t.Fatal(err)
			}
		},
	} {
		served.Store(0)
		w := newWorld(t, provider, func(p *proxy.Parts, o *proxy.Options) {
			p.Keys, o.Logger = oneKey{secret: credential}, logger
			change(p, o)
		})
		for i := range all {
			e := &all[i]
			req := w.request(e.Method, name+e.Path, string(e.Request))
			signedByClient(req)
			resp := w.do(req)
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != e.Status || !bytes.Equal(got, e.Body) {
				t.Fatalf("%s%s: status %d, %d bytes of %d, %v: %.200s", name, e.Path, resp.StatusCode, len(got), len(e.Body), err, got)
			}
			events := w.sink.take()
			checkRecorded(t, i, e, events)
			if len(events) == 1 && (events[0].Provider != "bedrock" || events[0].Region != "us-east-1" || strings.Contains(events[0].Model, "%")) {
				t.Errorf("the event is of %s %s", events[0].Provider, events[0].Model)
			}
			// What the invocation logs name, of whatever operation and status.
			if want := fmt.Sprint("request-", i+1); len(events) == 1 && events[0].ProviderRequestID != want {
				t.Errorf("%s: the request is %q, want %q", e.Path, events[0].ProviderRequestID, want)
			}
			if said := fmt.Sprintf("%v %+v", resp.Header, events); strings.Contains(said, "cAnR") {
				t.Errorf("a part of the credential is told: %s", said)
			}
		}
		if n := int(served.Load()); n != len(all) {
			t.Errorf("%s: %d of %d calls arrived", name, n, len(all))
		}
	}
	if strings.Contains(logged.String(), "cAnR") {
		t.Errorf("a part of the credential is logged: %s", logged.String())
	}
}

// Model ids may come escaped or not, a client may show its token as bearer alone, and
// what it signed in the query ends with us.
func TestSignedHoweverItComes(t *testing.T) {
	var arrived []string
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived = append(arrived, r.RequestURI)
		if err := sigv4test.Verify(r, body, judge, time.Now()); err != nil {
			t.Errorf("%s: %v", r.RequestURI, err)
		}
	}, func(p *proxy.Parts, o *proxy.Options) {
		p.Keys = oneKey{secret: credential}
		for i := range o.Providers {
			if o.Providers[i].Name == "bedrock" {
				o.Providers[i].Region = "us-east-1"
			}
		}
	})
	const arn = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.x-v1%3A0/converse"
	for _, c := range []struct{ path, want string }{
		{"/model/x-v1:0/converse", "/model/x-v1%3A0/converse"},
		{"/model/x-v1%3a0/converse", "/model/x-v1%3A0/converse"},
		{"/model/arn:aws:bedrock:us-east-1:123456789012:inference-profile%2Fus.x-v1:0/converse", arn},
		{arn, arn},
		{"/model/x/invoke?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIADUMMY&X-Amz-Signature=00&b=%2F&a=1", "/model/x/invoke?a=1&b=%2F"},
		{"/model/x/invoke?X-Amz-Signature=%zz", "/model/x/invoke"},
	} {
		arrived = nil
		req := w.request("POST", "/bedrock"+c.path, `{}`)
		if resp := w.do(req); resp.StatusCode != 200 || len(arrived) != 1 || arrived[0] != c.want {
			t.Errorf("%s: status %d, arrived %q, want %q", c.path, resp.StatusCode, arrived, c.want)
		}
	}
}

// An API key of Bedrock goes as bearer.
func TestBedrockAPIKey(t *testing.T) {
	var got http.Header
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header }, nil)
	req := w.request("POST", "/bedrock/model/x/converse", `{}`)
	signedByClient(req)
	if resp := w.do(req); resp.StatusCode != 200 || got.Get("Authorization") != "Bearer "+providerKey || got.Get("X-Amz-Security-Token") != "" || got.Get("X-Amz-Date") != "" {
		t.Errorf("status %d, %v", resp.StatusCode, got)
	}
}

// What cannot be signed goes nowhere, and its client is told why, where AWS's SDKs look
// for it, without a word of the credential.
func TestNotSigned(t *testing.T) {
	for _, c := range []struct {
		name, secret, region, path string
		auth                       func(*http.Request)
		code                       int
		kind, says                 string
	}{
		{name: "a signature and no token", auth: func(r *http.Request) { signedByClient(r); r.Header.Del("X-Api-Key") }, code: 401, kind: "unauthenticated", says: "AWS_BEARER_TOKEN_BEDROCK"},
		{name: "another token", auth: func(r *http.Request) { signedByClient(r); r.Header.Set("X-Api-Key", "tly_x") }, code: 401, kind: "unauthenticated"},
		{name: "no region", region: "-", code: 502, kind: "no_region", says: "region="},
		{name: "half a credential", secret: judge.ID + ":" + awsSecret, code: 502, kind: "no_provider_key", says: "no whole AWS credential"},
		{name: "climbing", path: "/bedrock/model/%2e%2E/x/converse", code: 404, kind: "unknown_route"},
		{name: "both directions", path: "/bedrock/model/amazon.nova-sonic-v1%3A0/invoke-with-bidirectional-stream", code: 501, kind: "no_duplex"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var logged testlog.Buffer
			w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s arrived", r.RequestURI) }, func(p *proxy.Parts, o *proxy.Options) {
				p.Keys = oneKey{secret: credential}
				if c.secret != "" {
					p.Keys = oneKey{secret: c.secret}
				}
				o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
				for i := range o.Providers {
					if o.Providers[i].Name == "bedrock" && c.region == "" {
						o.Providers[i].Region = "us-east-1"
					}
				}
			})
			path := c.path
			if path == "" {
				path = "/bedrock/model/x/converse"
			}
			req := w.request("POST", path, `{}`)
			if c.auth != nil {
				c.auth(req)
			}
			resp := w.do(req)
			b, err := io.ReadAll(resp.Body)
			var body struct{ Message string }
			if err != nil || json.Unmarshal(b, &body) != nil || resp.StatusCode != c.code || resp.Header.Get("X-Amzn-Errortype") != "tallystick_"+c.kind || !strings.Contains(body.Message, c.says) {
				t.Errorf("status %d, %v, %s, %v", resp.StatusCode, resp.Header, b, err)
			}
			if said := fmt.Sprintf("%s %v %+v %s", b, resp.Header, w.sink.take(), &logged); strings.Contains(said, "cAnR") {
				t.Errorf("a part of the credential is told: %s", said)
			}
		})
	}
}
