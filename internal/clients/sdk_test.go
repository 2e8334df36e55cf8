package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/tokens"
)

// job is one call of an SDK.
type job struct {
	ID         string            `json:"id"`
	Method     string            `json:"method"`
	Request    json.RawMessage   `json:"request"`
	Headers    map[string]string `json:"headers"`
	Stream     bool              `json:"stream"`
	Retries    int               `json:"retries,omitempty"`
	LeaveAfter int               `json:"leave_after,omitempty"`
	Token      string            `json:"token,omitempty"`

	e    *exchange
	want want
}

// want is what must become of a job.
type want struct {
	attempts int      // that reach the provider
	statuses []string // of the entries, in any order
	http     int      // of the SDK's error, 0 is none
	broken   bool     // the SDK sees a stream that is cut
	silent   bool     // no entry: nobody knows whose call it is
}

// result is what an SDK made of a job.
type result struct {
	ID, Error, Message string
	OK                 bool
	EventID            string `json:"event_id"`
	Status             int
	Usage              *used
	Events             int
}

// sdk is one package of one language.
type sdk struct {
	name, language, provider, base string
}

// TestClientsSDKs makes every recorded call that the SDKs can make, in two languages,
// and calls that go wrong in every way there is.
func TestClientsSDKs(t *testing.T) {
	if !wanted() {
		return
	}
	all := recorded(t)
	provider, server := newReplay(t, all)
	s := startStack(t)
	s.prepare(t, server.URL)
	jobs := map[string]*job{}
	results := map[string]result{}
	for _, c := range []sdk{
		{"py-openai", "python", "openai", s.proxy + "/openai/v1"},
		{"py-anthropic", "python", "anthropic", s.proxy + "/anthropic"},
		// Their native paths: nothing but the host is changed.
		{"js-openai", "node", "openai", s.proxy + "/v1"},
		{"js-anthropic", "node", "anthropic", s.proxy},
	} {
		first, then := c.jobs(t, s, all)
		for _, list := range [][]*job{first, then} {
			for _, j := range list {
				jobs[j.ID] = j
			}
			for _, r := range c.run(t, s, list) {
				results[r.ID] = r
			}
		}
	}
	check(t, s, provider, jobs, results)
}

// prepare gives the tenant its keys and rules.
func (s *stack) prepare(t *testing.T, upstream string) {
	t.Helper()
	for name, value := range map[string]string{"openai": openAIKey, "anthropic": anthropicKey} {
		s.must(t, http.MethodPost, "/v1/providers/keys", map[string]any{"tenant_id": tenantID, "provider": name, "base_url": upstream, "value": value}, nil)
	}
	s.must(t, http.MethodPost, "/v1/providers/switches", map[string]any{"tenant_id": tenantID, "scope": "team", "subject": "stopped", "reason": "a test"}, nil)
	s.must(t, http.MethodPost, "/v1/providers/caps", map[string]any{"tenant_id": tenantID, "scope": "team", "subject": "poor", "usd_per_month": "0"}, nil)
}

// jobs are the calls of one SDK, and those that come after them.
func (c *sdk) jobs(t *testing.T, s *stack, all []*exchange) (list, then []*job) {
	t.Helper()
	add := func(kind string, e *exchange, w want, change func(j *job)) {
		id := fmt.Sprintf("%s-%s-%d", c.name, kind, e.N)
		j := &job{ID: id, Method: e.method, Request: e.Request, Stream: e.Stream, e: e, want: w, Headers: map[string]string{
			replayHeader: fmt.Sprint(e.N), callHeader: id, "X-Tallystick-Team": "sdk", "X-Tallystick-Feature": id,
		}}
		if change != nil {
			change(j)
		}
		list = append(list, j)
	}
	var plain, streamed []*exchange
	for _, e := range all {
		if e.provider() != c.provider {
			continue
		}
		w := want{attempts: 1, statuses: []string{"ok"}}
		if e.Status >= 400 {
			w = want{attempts: 1, statuses: []string{"error"}, http: e.Status}
		}
		add("replay", e, w, nil)
		switch _, stated := e.stated(); {
		case e.Status != 200 || !stated || e.method == "embeddings":
		case e.Stream && bytes.Count(e.Body, []byte("\n\n")) > 12 && answers(e):
			streamed = append(streamed, e)
		case !e.Stream:
			plain = append(plain, e)
		}
	}
	for _, e := range plain[:8] {
		add("retry", e, want{attempts: 3, statuses: []string{"error", "error", "ok"}}, func(j *job) {
			j.Retries, j.Headers[failHeader] = 2, "2"
		})
	}
	for i, e := range streamed[:min(8, len(streamed))] {
		after := 6 + i%3
		add("leave", e, want{attempts: 1, statuses: []string{"truncated"}}, func(j *job) {
			j.Headers[holdHeader], j.LeaveAfter = fmt.Sprint(after), after-2 // some events are not the SDK's caller's
		})
		add("cut", e, want{attempts: 1, statuses: []string{"truncated"}, broken: true}, func(j *job) { j.Headers[cutHeader] = fmt.Sprint(after) })
	}
	e := plain[0]
	add("stopped", e, want{statuses: []string{"killed"}, http: http.StatusUnavailableForLegalReasons}, func(j *job) { j.Headers["X-Tallystick-Team"] = "stopped" })
	add("poor", e, want{statuses: []string{"blocked"}, http: http.StatusTooManyRequests}, func(j *job) { j.Headers["X-Tallystick-Team"] = "poor" })
	add("stranger", e, want{silent: true, http: http.StatusUnauthorized}, func(j *job) { j.Token = "sk-not-a-token-of-ours" })
	slow, slowID := s.newToken(t, c.name)
	s.must(t, http.MethodPost, "/v1/providers/limits", map[string]any{"tenant_id": tenantID, "key_id": slowID, "requests_per_minute": 1}, nil)
	add("first", e, want{attempts: 1, statuses: []string{"ok"}}, func(j *job) { j.Token = slow })
	add("limited", e, want{statuses: []string{"blocked"}, http: http.StatusTooManyRequests}, func(j *job) { j.Token = slow })
	return list[:len(list)-1], list[len(list)-1:]
}

// answers reports that a stream begins to answer within its first events.
func answers(e *exchange) bool {
	early := bytes.Join(bytes.SplitN(e.Body, []byte("\n\n"), 7)[:6], nil)
	return bytes.Contains(early, []byte(`"content":"`)) && !bytes.Contains(early, []byte(`"content":""},"finish`)) || bytes.Contains(early, []byte("_delta")) || bytes.Contains(early, []byte(".delta"))
}

// run has the SDK make the calls.
func (c *sdk) run(t *testing.T, s *stack, list []*job) []result {
	t.Helper()
	here := os.Getenv("TALLYSTICK_CLIENTS")
	command := []string{filepath.Join(here, "venv", "python", "bin", "python"), filepath.Join(here, "python", "calls.py")}
	if c.language == "node" {
		command = []string{"node", filepath.Join(here, "node", "calls.mjs")}
	}
	return runCalls(t, s, c.name, append(command, c.provider, c.base), []string{"OPENAI_LOG="}, list)
}

// check holds the ledger against what the provider stated and the SDKs read.
func check(t *testing.T, s *stack, provider *replay, jobs map[string]*job, results map[string]result) {
	t.Helper()
	expected := 0
	for _, j := range jobs {
		expected += len(j.want.statuses)
	}
	entries := s.awaitEntries(t, expected)
	of := map[string][]entry{}
	seen := map[string]bool{}
	doubled := 0
	for _, e := range entries {
		if seen[e.EventID] {
			doubled++
		}
		seen[e.EventID] = true
		of[e.Attribution["feature"]] = append(of[e.Attribution["feature"]], e)
	}
	missing, wrong, attempts, replayed := 0, 0, 0, 0
	for id, j := range jobs {
		r := results[id]
		attempts += provider.attempts[id]
		if strings.Contains(id, "-replay-") {
			replayed++
		}
		if why := j.answered(&r, provider); why != "" {
			t.Errorf("%s: %s: %+v", id, why, r)
		}
		missing += max(0, len(j.want.statuses)-len(of[id]))
		doubled += max(0, len(of[id])-len(j.want.statuses))
		if why := j.ledgered(&r, of[id]); why != "" {
			wrong++
			t.Errorf("%s (%s): %s: %+v", id, j.e, why, of[id])
		}
	}
	for _, what := range provider.wrong {
		t.Errorf("the provider: %s", what)
	}
	if missing+doubled+wrong > 0 || len(entries) != expected {
		t.Errorf("%d entries of %d expected, %d missing, %d doubled", len(entries), expected, missing, doubled)
	}
	fmt.Printf("clients: calls=%d replayed=%d attempts=%d entries=%d missing=%d doubled=%d wrong_tokens=%d provider_complaints=%d\n",
		len(jobs), replayed, attempts, len(entries), missing, doubled, wrong, len(provider.wrong))
	if !t.Failed() {
		fmt.Println("edge: sdk=ok")
	}
}

// answered says what is wrong with the answer that the SDK got.
func (j *job) answered(r *result, provider *replay) string {
	w := &j.want
	switch {
	case provider.attempts[j.ID] != w.attempts:
		return fmt.Sprintf("%d attempts reached the provider, %d expected", provider.attempts[j.ID], w.attempts)
	case w.http != 0 && r.Status != w.http:
		return fmt.Sprintf("the SDK saw no %d", w.http)
	case w.http != 0:
		return ""
	case w.broken && r.OK:
		return "the SDK did not see that the stream was cut"
	case w.broken:
		return ""
	case !r.OK:
		return "the SDK failed"
	case j.LeaveAfter > 0 && !provider.left[j.ID]:
		return "the provider was not told that the client left"
	case j.LeaveAfter > 0:
		return ""
	}
	if stated, ok := j.e.stated(); ok && (r.Usage == nil || *r.Usage != stated) {
		return fmt.Sprintf("the SDK read %+v of %+v", r.Usage, stated)
	}
	return ""
}

// ledgered says what is wrong with the entries of a call.
func (j *job) ledgered(r *result, list []entry) string {
	if j.want.silent {
		if len(list) > 0 {
			return "a stranger's call is in the ledger"
		}
		return ""
	}
	left := map[string]int{}
	for _, s := range j.want.statuses {
		left[s]++
	}
	found := false
	for i := range list {
		e := &list[i]
		left[e.Status]--
		if left[e.Status] < 0 {
			return "an entry has the status " + e.Status
		}
		if e.Provider != j.e.provider() || e.Attribution["team"] != j.Headers["X-Tallystick-Team"] {
			return "an entry is of another provider or team"
		}
		found = found || e.EventID == r.EventID
		if why := j.counted(e); why != "" {
			return why
		}
	}
	if !found && !j.want.broken {
		return "the SDK was told another event id"
	}
	return ""
}

// counted says what is wrong with an entry's tokens.
func (j *job) counted(e *entry) string {
	var got used
	for c := range tokens.NumClasses {
		if c.IsPrompt() {
			got.Prompt += e.count(c.String())
		} else {
			got.Completion += e.count(c.String())
		}
	}
	switch e.Status {
	case "ok":
		if stated, ok := j.e.stated(); ok && got != stated {
			return fmt.Sprintf("the ledger has %+v, the provider stated %+v", got, stated)
		}
	case "truncated":
		if got.Prompt == 0 || got.Completion == 0 {
			return fmt.Sprintf("a stream that was broken off has %+v", got)
		}
	default:
		if got != (used{}) {
			return fmt.Sprintf("a call with the status %s used %+v", e.Status, got)
		}
	}
	return ""
}
