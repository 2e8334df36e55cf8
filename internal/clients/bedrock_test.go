package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/sigv4/sigv4test"
	"github.com/tallystick/tallystick/internal/testenv"
)

// awsKey is the tenant's credential: no client has it.
var awsKey = sigv4test.Key{ID: "AKIATHETENANTSKEY001", Secret: "TheSecretAccessKeyOfTheTest+/0000000cAnR", Region: "us-east-1", Service: "bedrock"}

// awsJob is one call of boto3.
type awsJob struct {
	ID      string            `json:"id"`
	Method  string            `json:"method"`
	Model   string            `json:"model"`
	Request json.RawMessage   `json:"request"`
	Headers map[string]string `json:"headers"`
	Token   string            `json:"token,omitempty"`

	e *testenv.Exchange
}

// aws is Bedrock, as far as it answers with recorded exchanges, and only to requests
// that the tenant's credential has signed.
type aws struct {
	all []testenv.Exchange

	mu    sync.Mutex // protects what follows
	calls int
	wrong []string
}

// ServeHTTP implements http.Handler.
func (a *aws) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	n, _ := strconv.Atoi(r.Header.Get(replayHeader))
	e := &a.all[n]
	a.mu.Lock()
	a.calls++
	what := ""
	var asked, sent any
	if err := sigv4test.Verify(r, body, awsKey, time.Now()); err != nil {
		what = err.Error()
	} else if said := fmt.Sprint(r.Header); strings.Contains(said, authn.TokenPrefix) || strings.Contains(strings.ToLower(said), "dummy") || strings.Contains(said, "X-Tallystick") {
		what = "something of the client's arrived"
	} else if json.Unmarshal(e.Request, &asked) != nil || json.Unmarshal(body, &sent) != nil || !reflect.DeepEqual(asked, sent) {
		what = "its body is not the one that was recorded"
	}
	if what != "" {
		a.wrong = append(a.wrong, r.RequestURI+": "+what)
	}
	a.mu.Unlock()
	if what != "" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	for name, value := range e.Headers {
		if name = strings.ToLower(name); name != "content-length" && name != "transfer-encoding" && name != "content-encoding" {
			w.Header().Set(name, value)
		}
	}
	w.Header().Set("Content-Type", e.ContentType())
	w.WriteHeader(e.Status)
	_, _ = w.Write(e.Body)
}

// TestClientsBedrock has boto3 make recorded calls of Bedrock, signed with credentials
// of no worth, with our token beside them: the provider gets the tenant's signature,
// the SDK the answer, the ledger each call once.
func TestClientsBedrock(t *testing.T) {
	if !wanted() {
		return
	}
	provider := &aws{all: testenv.Exchanges(t)}
	server := httptest.NewServer(provider)
	t.Cleanup(server.Close)
	s := startStack(t)
	s.must(t, http.MethodPost, "/v1/providers/keys", map[string]any{
		"tenant_id": tenantID, "provider": "bedrock", "base_url": server.URL,
		"value": fmt.Sprintf(`{"AccessKey":{"AccessKeyId":%q,"SecretAccessKey":%q}}`, awsKey.ID, awsKey.Secret),
	}, nil)
	jobs := awsJobs(provider.all)
	if len(jobs) < 40 {
		t.Fatalf("only %d calls", len(jobs))
	}
	results := runBoto(t, s, jobs)
	stated, failed := 0, 0
	for i, j := range jobs {
		r := &results[i]
		switch {
		case j.Token != "":
			if r.Status != http.StatusUnauthorized || r.Error != "tallystick_unauthenticated" || !strings.Contains(r.Message, "Tallystick token") {
				t.Errorf("a stranger was told %+v", r)
			}
			continue
		case r.OK != (j.e.Status == http.StatusOK) || r.Status != j.e.Status:
			t.Errorf("%s: %+v", j.ID, r)
		case !r.OK:
			failed++
		}
		if r.Usage != nil {
			stated++
		}
	}
	of := map[string]entry{}
	list := s.awaitEntries(t, len(jobs)-1)
	for _, e := range list {
		of[e.EventID] = e
	}
	wrong := 0
	for i, j := range jobs {
		r := &results[i]
		e, ok := of[r.EventID]
		if j.Token == "" && (!ok || e.Provider != "bedrock" || r.Usage != nil && (e.count("input") != r.Usage.Prompt || e.count("output") != r.Usage.Completion)) {
			wrong++
			t.Errorf("%s: the ledger has %+v, the SDK read %+v", j.ID, e, r.Usage)
		}
	}
	for _, what := range provider.wrong {
		t.Error(what)
	}
	if len(list) != len(jobs)-1 || len(of) != len(list) || provider.calls != len(jobs)-1 || stated == 0 {
		t.Errorf("%d calls, %d arrived, %d entries, %d with usage", len(jobs), provider.calls, len(list), stated)
	}
	said, err := os.ReadFile(s.log)
	if err != nil || bytes.Contains(said, []byte(awsKey.Secret)) {
		t.Errorf("the credential is logged, or %v", err)
	}
	fmt.Printf("clients: bedrock_calls=%d entries=%d wrong=%d refused_by_provider=%d provider_complaints=%d\n", len(jobs), len(list), wrong, failed, len(provider.wrong))
}

// awsJobs are the recorded calls that boto3 can make, and one
// with a token that nobody knows.
func awsJobs(all []testenv.Exchange) (jobs []*awsJob) {
	for i := range all {
		e := &all[i]
		rest, ok := strings.CutPrefix(e.Path, "/model/")
		model, ending, _ := strings.Cut(rest, "/")
		method := map[string]string{"invoke": "invoke", "converse": "converse", "converse-stream": "converse_stream"}[ending]
		plain, err := url.PathUnescape(model)
		if !ok || err != nil || method == "" || !strings.HasPrefix(e.Host, "bedrock-runtime.") || bytes.Contains(e.Request, []byte(`"bytes"`)) || bytes.Contains(e.Request, []byte(`"_truncated"`)) {
			continue
		}
		if e.Request[0] != '{' || bytes.Contains(e.Request, []byte(`"document"`)) || bytes.Contains(e.Request, []byte(`"image"`)) || bytes.Contains(e.Request, []byte(`"redactedContent"`)) {
			continue // it was not recorded as it was sent, or holds bytes, which boto3 encodes
		}
		jobs = append(jobs, &awsJob{
			ID: fmt.Sprintf("boto3-%d", i), Method: method, Model: plain, Request: e.Request, e: e,
			Headers: map[string]string{replayHeader: strconv.Itoa(i), "X-Tallystick-Team": "aws"},
		})
	}
	stranger := *jobs[0]
	stranger.ID, stranger.Token = "boto3-stranger", "nobody"
	return append(jobs, &stranger)
}

// runBoto has boto3 make the calls.
func runBoto(t *testing.T, s *stack, jobs []*awsJob) []result {
	t.Helper()
	here := os.Getenv("TALLYSTICK_CLIENTS")
	command := []string{filepath.Join(here, "venv", "bedrock", "bin", "python"), filepath.Join(here, "bedrock", "calls.py"), s.proxy + "/bedrock/us-east-1"}
	return runCalls(t, s, "boto3", command, []string{"AWS_EC2_METADATA_DISABLED=true"}, jobs)
}
