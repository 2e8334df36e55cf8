package sigv4_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/sigv4"
	"github.com/tallystick/tallystick/internal/sigv4/sigv4test"
)

// The example credential of AWS's documentation, and an id as real ones are.
const (
	id      = "AKIAIOSFODNN7EXAMPLE"
	secret  = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	tempID  = "ASIAIOSFODNN7EXAMPLE"
	session = "IQoJb3JpZ2luX2VjEXAMPLE//8BEAEaDDEyMzQ1Njc4OTAxMiIM+example=="
)

// published are requests of AWS's Signature Version 4 test suite (awslabs/aws-c-auth,
// tests/aws-signing-test-suite/v4) with the signatures that it gives them, by
// credential AKIDEXAMPLE at 2015-08-30T12:36:00Z in us-east-1 for "service".
var published = []struct {
	name, method, wire, token, body, signed, signature string
	headers                                            [][2]string
}{
	{name: "get-utf8", method: "GET", wire: "/%E1%88%B4", signed: "host;x-amz-date",
		signature: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
	{name: "get-space-normalized", method: "GET", wire: "/example%20space/", signed: "host;x-amz-date",
		signature: "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
	{name: "get-vanilla-query-order-encoded", method: "GET", wire: "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1", signed: "host;x-amz-date",
		signature: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
	{name: "get-header-value-trim", method: "GET", wire: "/", signed: "host;my-header1;my-header2;x-amz-date",
		headers:   [][2]string{{"My-Header1", " value1"}, {"My-Header2", ` "a   b   c"`}},
		signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
	{name: "get-vanilla-with-session-token", method: "GET", wire: "/", signed: "host;x-amz-date;x-amz-security-token",
		headers:   [][2]string{{"X-Amz-Security-Token", "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"}},
		signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
	{name: "post-x-www-form-urlencoded", method: "POST", wire: "/", body: "Param1=value1",
		signed: "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
		headers: [][2]string{
			{"Content-Type", "application/x-www-form-urlencoded"},
			{"X-Amz-Content-Sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"},
		},
		signature: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"},
}

// The judge of these tests comes to the signatures that AWS has published.
func TestJudge(t *testing.T) {
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	k := sigv4test.Key{ID: "AKIDEXAMPLE", Secret: secret, Region: "us-east-1", Service: "service"}
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, p := range published {
		r := &http.Request{Method: p.method, RequestURI: p.wire, Host: "example.amazonaws.com", Header: http.Header{}, ContentLength: int64(len(p.body))}
		r.Header.Set("X-Amz-Date", "20150830T123600Z")
		hash := empty
		for _, h := range p.headers {
			r.Header.Set(h[0], h[1])
			if h[0] == "X-Amz-Content-Sha256" {
				hash = h[1]
			}
		}
		// The suite's paths stand there as a person reads them and are escaped once.
		if plain, err := url.PathUnescape(p.wire); err == nil && !strings.Contains(p.wire, "?") {
			r.RequestURI = plain
		}
		if got := sigv4test.Signature(r, hash, strings.Split(p.signed, ";"), k, at); got != p.signature {
			t.Errorf("%s: %s, published is %s", p.name, got, p.signature)
		}
	}
}

// bedrock is what Bedrock's requests are signed for.
var bedrock = sigv4.Scope{Region: "eu-west-1", Service: "bedrock"}

// sent sends a request that was signed and gives it as the server got it.
func sent(t *testing.T, c sigv4.Credential, path string, body []byte, header http.Header) (*http.Request, error) {
	t.Helper()
	var got *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer s.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	if err := c.Sign(req, body, bedrock, time.Now(), "X-Amzn-Bedrock-"); err != nil {
		return nil, err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return got, nil
}

// What is signed is what AWS would accept, in whichever way a client has escaped the
// model's id, and what was in the request of another signature is gone.
func TestSign(t *testing.T) {
	body := []byte(`{"messages":[]}`)
	const arn = "arn%3Aaws%3Abedrock%3Aeu-west-1%3A123456789012%3Ainference-profile%2Feu.anthropic.claude-v1%3A0"
	for _, c := range []struct{ path, wire string }{
		{"/model/anthropic.claude-3-5-sonnet-20240620-v1:0/converse", "/model/anthropic.claude-3-5-sonnet-20240620-v1%3A0/converse"},
		{"/model/anthropic.claude-3-5-sonnet-20240620-v1%3A0/converse", "/model/anthropic.claude-3-5-sonnet-20240620-v1%3A0/converse"},
		{"/model/anthropic.claude-3-5-sonnet-20240620-v1%3a0/converse", "/model/anthropic.claude-3-5-sonnet-20240620-v1%3A0/converse"},
		{"/model/" + arn + "/converse-stream", "/model/" + arn + "/converse-stream"},
		{"/model/arn:aws:bedrock:eu-west-1:123456789012:inference-profile%2Feu.anthropic.claude-v1:0/converse-stream", "/model/" + arn + "/converse-stream"},
		{"/model/m/invoke?b=2&a=x%20y&a=%C3%A4", "/model/m/invoke?a=%C3%A4&a=x%20y&b=2"},
		{"/model/a%20b+c*d/invoke", "/model/a%20b%2Bc%2Ad/invoke"},
		{"", "/"},
	} {
		for _, k := range []sigv4.Credential{{AccessKeyID: id, SecretAccessKey: secret}, {AccessKeyID: tempID, SecretAccessKey: secret, SessionToken: session}} {
			h := http.Header{
				"Content-Type": {"application/json"}, "X-Amzn-Bedrock-Guardrailidentifier": {"g-1"}, "X-Forwarded-Something": {"a"},
				"Authorization": {"AWS4-HMAC-SHA256 Credential=dummy"}, "X-Amz-Security-Token": {"dummy"}, "X-Amz-Date": {"20010101T000000Z"},
			}
			r, err := sent(t, k, c.path, body, h)
			if err != nil {
				t.Fatalf("%s: %v", c.path, err)
			}
			if r.RequestURI != c.wire {
				t.Errorf("%s went as %s, want %s", c.path, r.RequestURI, c.wire)
			}
			judge := sigv4test.Key{ID: k.AccessKeyID, Secret: k.SecretAccessKey, Token: k.SessionToken, Region: "eu-west-1", Service: "bedrock"}
			if err := sigv4test.Verify(r, body, judge, time.Now()); err != nil {
				t.Errorf("%s: %v", c.path, err)
			}
			if got := r.Header.Get("Authorization"); !strings.Contains(got, "x-amzn-bedrock-guardrailidentifier") || strings.Contains(got, "x-forwarded") {
				t.Errorf("signed headers of %s", got)
			}
			for what, other := range map[string]func(){
				"another body":      func() { body = []byte(`{"messages":[1]}`) },
				"another secret":    func() { judge.Secret += "x" },
				"another region":    func() { judge.Region = "us-east-1" },
				"another path":      func() { r.RequestURI += "x" },
				"another guardrail": func() { r.Header.Set("X-Amzn-Bedrock-Guardrailidentifier", "g-2") },
				"an unsigned date":  func() { r.Header.Set("X-Amz-Date", time.Now().Add(time.Second).UTC().Format("20060102T150405Z")) },
			} {
				wasBody, wasJudge, wasURI, wasHeader := body, judge, r.RequestURI, r.Header.Clone()
				other()
				if sigv4test.Verify(r, body, judge, time.Now()) == nil {
					t.Errorf("%s: the judge accepts %s", c.path, what)
				}
				body, judge, r.RequestURI, r.Header = wasBody, wasJudge, wasURI, wasHeader
			}
		}
	}
	for _, path := range []string{"/model/%2E%2E/converse", "/model/./converse", "/a/%2e"} {
		if _, err := sent(t, sigv4.Credential{AccessKeyID: id, SecretAccessKey: secret}, path, body, http.Header{}); err == nil {
			t.Errorf("%s was signed", path)
		}
	}
}

// Credentials are read in each form in which AWS's tools give them, and told by none of
// their parts when they are wrong.
func TestParse(t *testing.T) {
	user, temporary := id+":"+secret, tempID+":"+secret+":"+session
	for text, want := range map[string]string{
		user: user, temporary: temporary,
		fmt.Sprintf(`{"Version":1,"AccessKeyId":%q,"SecretAccessKey":%q}`, id, secret):                                                                                             user,
		fmt.Sprintf("{\n  \"Version\": 1,\n  \"AccessKeyId\": %q,\n  \"SecretAccessKey\": %q,\n  \"SessionToken\": %q\n}\n", tempID, secret, session):                              temporary,
		fmt.Sprintf(`{"AccessKey":{"UserName":"bob","AccessKeyId":%q,"Status":"Active","SecretAccessKey":%q}}`, id, secret):                                                        user,
		fmt.Sprintf(`{"Credentials":{"AccessKeyId":%q,"SecretAccessKey":%q,"SessionToken":%q,"Expiration":"2026-11-22T18:00:00Z"},"AssumedRoleUser":{}}`, tempID, secret, session): temporary,
	} {
		c, err := sigv4.Parse(text)
		if err != nil || c.Text() != want || !sigv4.Is(text) || !sigv4.Is(c.Text()) {
			t.Errorf("%q: %v", text, err)
		}
		var logged bytes.Buffer
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("m", "c", c)
		if said := fmt.Sprintf("%v %+v %#v %s", c, c, c, &logged); strings.Contains(said, secret) || strings.Contains(said, session) {
			t.Errorf("it prints as %s", said)
		}
	}
	for _, text := range []string{
		"", id, id + ":", ":" + secret, user + ":", temporary + ":x", tempID + ":" + secret, user + ":" + session, id + ":short", "AKIA:" + secret,
		user + "\n", id + ": " + secret, `{"AccessKeyId":"` + id + `"}`, `{"AccessKeyId":"` + id + `","SecretAccessKey":`, "sk-proj-something:" + secret,
		fmt.Sprintf(`{"AccessKeyId":%q,"SecretAccessKey":"%s\n"}`, id, secret),
	} {
		_, err := sigv4.Parse(text)
		if err == nil || len(text) > 30 && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"ABSKQmVkcm9ja0FQSUtleS1leGFtcGxl", "bedrock-api-key-YmVkcm9jaw", "sk-x", `{"type":"service_account"}`, ""} {
		if sigv4.Is(text) {
			t.Errorf("%q is taken for an AWS credential", text)
		}
	}
}
