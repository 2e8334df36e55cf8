package isolation

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// payloads are texts that would mean something, were they ever read as SQL of
// either database, as a literal, a path, a name of a tenant or a context.
var payloads = []string{
	victim, intruder + "," + victim, intruder + "|" + victim, strings.ToUpper(victim), victim + " ", " " + victim, victim + "\x00", intruder + "/../" + victim,
	"system/0", "*", "%", "_", ".*", "",
	`'`, `''`, `"`, "`", `\`, `\'`, `'\''`, `$$`, `$1`, `{tenant:String}`, `null`, `NULL`, "a\x00b", "a\nb", "-- ", `/*`, `;`, "\u2028", "＇", "ʼ", "🧾",
	`' or '1'='1`, `' or 1=1 --`, `') or ('1'='1`, `x' or tenant_id='` + victim, `bravo' or tenant_id <> '`, `1 or 1=1`, `x) or true --`,
	`' union select * from ledger.head --`, `' union all select canonical from ledger.entry --`, `'; select * from ledger.entry; --`,
	`'; select set_config('tallystick.context', 'v2|1|7fffffffffffffff|1|0|` + victim + `|00', true); --`,
	`'; select sec.enter('v2|1|7fffffffffffffff|1|0|` + victim + `|00'); --`, `'; set local app.tenant_id = '` + victim + `'; --`, `'; reset all; --`,
	`'; set role tallystick_owner; --`, `'; drop table ledger.head cascade; --`, `' || (select string_agg(tenant_id, ',') from ledger.head) || '`,
	`' and 1 = cast((select tenant_id from ledger.head limit 1) as int) --`, `'; copy (select 1) to program 'id'; --`, `'||pg_sleep(1)||'`,
	`' UNION ALL SELECT * FROM entry --`, `' SETTINGS additional_table_filters = {} --`, `') SETTINGS readonly = 0 --`, `entry WHERE tenant_id = '` + victim + `'`,
	`merge(currentDatabase(), 'entry')`, `file('/etc/passwd')`, `tag:k' OR tenant_id = '` + victim, `team, tenant_id`, `tenant_id`,
	`{"tenant_id":"` + victim + `"}`, `x","tenant_id":"` + victim, `&tenant_id=` + victim, `%27%20or%20tenant_id%3D%27` + victim, `../` + victim, `..%2f` + victim,
}

// request is one call with one text put into one place.
type request struct {
	method  *method
	where   string
	payload string
	message proto.Message
	as      string // the token's tenant, or "root"
	rest    bool   // by REST too
}

// sqlError is how either database's errors begin to show.
var sqlError = regexp.MustCompile(`SQLSTATE|DB::Exception|syntax error at or near|Code: \d+|pq: |ERROR: `)

// TestInjection puts every payload into every string parameter of the API, for
// gRPC and for REST, with a tenant's credential and with the administrator's,
// and looks for another tenant's data and for errors of a database.
func TestInjection(t *testing.T) {
	if !full {
		return
	}
	p := startProgram(t)
	p.plant(t)
	methods := apiMethods(t)
	conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := &attacker{p: p, conn: conn}
	a.controls(t, methods)
	var list []request
	turn := 0
	for i := range methods {
		m := &methods[i]
		for _, where := range m.places() {
			for _, payload := range payloads {
				turn++
				// REST is the same service behind another parser: half of it, or
				// all where the tenant is named.
				list = append(list, request{m, where.name, payload, m.with(where, payload), intruder, turn%2 == 0 || where.name == "tenant_id"})
				if where.name != "tenant_id" && m.reads && turn%3 == 0 {
					list = append(list, request{m, where.name, payload, m.with(where, payload), "root", turn%2 == 0})
				}
			}
		}
	}
	start := time.Now()
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(8)
	for i := range list {
		g.Go(func() error { return a.try(ctx, &list[i]) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	a.oddities(t)
	t.Logf("%d methods, %d requests in %v; answered with: %v", len(methods), a.requests, time.Since(start).Round(time.Second), a.codes)
	for _, what := range first(a.bad) {
		t.Error(what)
	}
	a.aftermath(t)
	count(func() { counts.injections, counts.switched = a.requests, len(a.bad) })
}

// attacker makes requests and keeps what was wrong with their answers.
type attacker struct {
	p    *program
	conn *grpc.ClientConn

	mu       sync.Mutex
	requests int
	codes    map[string]int
	bad      []string
}

func (a *attacker) token(as string) string {
	if as == "root" {
		return a.p.root
	}
	return a.p.tokens[as]
}

// try makes the request by gRPC, and by REST where the method has that form.
func (a *attacker) try(ctx context.Context, r *request) error {
	answer, code, err := a.call(ctx, r)
	if err != nil {
		return err
	}
	a.judge(r, "gRPC", code.String(), code == codes.Internal || code == codes.Unknown || code == codes.DataLoss, answer)
	if r.method.http == nil || !r.rest {
		return nil
	}
	verb, path, body, err := r.method.rest(r.message)
	if err != nil {
		return err
	}
	number, answer, err := a.p.do(ctx, verb, path, a.token(r.as), body)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) && ctx.Err() == nil {
			return nil // no client can send it
		}
		return err
	}
	a.judge(r, "REST", fmt.Sprint(number), number == http.StatusInternalServerError || number == http.StatusBadGateway, answer)
	return nil
}

// judge looks at an answer, whatever its status.
func (a *attacker) judge(r *request, how, code string, broken bool, answer []byte) {
	text := unfolded(answer)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	if a.codes == nil {
		a.codes = map[string]int{}
	}
	a.codes[how+" "+code]++
	what := ""
	switch {
	case bytes.Contains(bytes.ToLower(text), []byte(strings.ToLower(mark(victim)))):
		what = "ANSWERS ROWS OF ANOTHER TENANT"
	case broken:
		what = "fails inside"
	case sqlError.Match(text):
		what = "shows a database's error"
	}
	if what != "" {
		a.bad = append(a.bad, fmt.Sprintf("%s by %s as %s, %s = %q: %s (%s): %.300q", r.method.name, how, r.as, r.where, r.payload, what, code, text))
	}
}

var base64Text = regexp.MustCompile(`[A-Za-z0-9+/_-]{24,}={0,2}`)

// unfolded is an answer with what is packed into it: base64 texts, and the files
// of a ZIP archive.
func unfolded(answer []byte) []byte {
	all := slices.Clone(answer)
	for _, text := range base64Text.FindAll(answer, -1) {
		if raw, err := base64.StdEncoding.DecodeString(string(text)); err == nil {
			all = append(append(all, '\n'), raw...)
		}
	}
	if i := bytes.Index(answer, []byte("PK\x03\x04")); i >= 0 {
		archive, err := zip.NewReader(bytes.NewReader(answer[i:]), int64(len(answer)-i))
		if err != nil {
			return all
		}
		for _, f := range archive.File {
			if r, err := f.Open(); err == nil {
				raw, _ := io.ReadAll(r) // as much as there is
				r.Close()
				all = append(append(all, '\n'), raw...)
			}
		}
	}
	return all
}

// call makes the request by gRPC. The answer is the wire form of its messages,
// or the error's text; the payload of a message of bytes stands in it whole.
func (a *attacker) call(ctx context.Context, r *request) (answer []byte, code codes.Code, err error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token(r.as)), 30*time.Second)
	defer cancel()
	err = func() error {
		if !r.method.streams {
			res := r.method.response()
			if err := a.conn.Invoke(ctx, r.method.name, r.message, res); err != nil {
				return err
			}
			answer, err = proto.Marshal(res)
			return err
		}
		s, err := a.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, r.method.name)
		if err != nil {
			return err
		}
		if err := errors.Join(s.SendMsg(r.message), s.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for {
			res := r.method.response()
			if err := s.RecvMsg(res); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			answer = append(answer, chunk(res)...)
		}
	}()
	st := status.Convert(err)
	if err != nil {
		answer = append(answer, st.String()...)
		for _, d := range st.Details() {
			answer = fmt.Appendf(answer, " %v", d)
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, st.Code(), ctx.Err()
	}
	return answer, st.Code(), nil
}

// controls asks every method that reads as the tenant whose data it is: the
// mark must be there to be found, by both transports and in what is packed.
func (a *attacker) controls(t *testing.T, methods []method) {
	t.Helper()
	showed := map[string]bool{}
	for i := range methods {
		m := &methods[i]
		if !m.reads {
			continue
		}
		r := &request{method: m, message: m.base(victim), as: victim}
		answer, code, err := a.call(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if code != codes.OK {
			t.Logf("control: %s answers %s: %.200q", m.short, code, answer)
		}
		showed[m.short+" gRPC"] = bytes.Contains(unfolded(answer), []byte(mark(victim)))
		if m.http != nil {
			verb, path, body, err := m.rest(r.message)
			if err != nil {
				t.Fatal(err)
			}
			_, answer, err := a.p.do(t.Context(), verb, path, a.token(victim), body)
			if err != nil {
				t.Fatal(err)
			}
			showed[m.short+" REST"] = bytes.Contains(unfolded(answer), []byte(mark(victim)))
		}
	}
	for _, m := range []string{"QueryGroups", "QueryTimeSeries", "ListEntries", "GetEntry", "GetEvent", "ListTokens", "ListSecrets", "GetEvidence"} {
		for _, how := range []string{"gRPC", "REST"} {
			if !showed[m+" "+how] && (m != "GetEvidence" || how == "gRPC") {
				t.Errorf("control: %s by %s does not show its rightful tenant the mark", m, how)
			}
		}
	}
}

// oddities are requests that no descriptor tells of: parameters and members
// twice, and payloads in headers.
func (a *attacker) oddities(t *testing.T) {
	t.Helper()
	m := &method{name: "odd"}
	ask := func(where, payload string, req *http.Request) {
		resp, err := httpClient.Do(req)
		if err != nil {
			return // no client can send it
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		a.judge(&request{method: m, where: where, payload: payload, as: intruder}, "REST", fmt.Sprint(resp.StatusCode), resp.StatusCode == http.StatusInternalServerError, answer)
	}
	build := func(verb, path, body string, header map[string]string) *http.Request {
		req, err := http.NewRequestWithContext(t.Context(), verb, a.p.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+a.p.tokens[intruder])
		for k, v := range header {
			req.Header.Set(k, v)
		}
		return req
	}
	for _, query := range []string{"tenant_id=acme&tenant_id=bravo", "tenant_id=bravo&tenant_id=acme", "tenantId=bravo", "tenant_id=acme&tenantId=bravo", "tenant_id[]=bravo", "tenant_id=acme%00bravo"} {
		for _, path := range []string{"/v1/ledger/entries", "/v1/ledger/head", "/v1/ledger/entries/1", "/v1/secrets", "/v1/tokens", "/v1/audit", "/v1/ledger/checkpoint", "/v1/events/x"} {
			ask(path, query, build(http.MethodGet, path+"?"+query, "", nil))
		}
	}
	for _, body := range []string{`{"tenant_id":"acme","tenant_id":"bravo","window":{"name":"all"},"group_by":["team"]}`, `{"tenantId":"bravo","window":{"name":"all"},"group_by":["team"]}`,
		`{"tenant_id":"acme","tenantId":"bravo","window":{"name":"all"},"group_by":["team"]}`, `{"window":{"name":"all"},"group_by":["team"],"tenant_id":["bravo"]}`} {
		ask("body", body, build(http.MethodPost, "/v1/reports/groups:query?tenant_id=bravo", body, map[string]string{"Content-Type": "application/json"}))
	}
	for _, payload := range payloads {
		clean := strings.Map(func(r rune) rune {
			if r < ' ' {
				return -1
			}
			return r
		}, payload)
		body, err := json.Marshal(map[string]any{"window": map[string]string{"name": "all"}, "group_by": []string{"team"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"X-Request-Id", "User-Agent", "X-Tallystick-Tenant", "X-Forwarded-For", "X-Tenant-Id", "Accept", "Grpc-Metadata-Tenant"} {
			ask(name, clean, build(http.MethodPost, "/v1/reports/groups:query", string(body), map[string]string{name: clean, "Content-Type": "application/json"}))
		}
		ask("Authorization", clean, build(http.MethodGet, "/v1/ledger/entries", "", map[string]string{"Authorization": "Bearer " + clean}))
	}
}

// aftermath looks at what the requests left behind: the other tenant's ledger
// and reports as they were, nothing halted, both ledgers sound, and no error of
// a database in the log.
func (a *attacker) aftermath(t *testing.T) {
	t.Helper()
	p := a.p
	if n := p.requests(t, victim); n != fmt.Sprint(plantedEvents) {
		t.Errorf("%s counts %s requests, not %d", victim, n, plantedEvents)
		a.bad = append(a.bad, "the other tenant's reports have changed")
	}
	var pipeline struct {
		Halted    []string
		LedgerLag string `json:"ledger_lag"`
	}
	p.await(t, "the ledger to be through", func() bool {
		p.must(t, http.MethodGet, "/v1/pipeline", p.root, nil, &pipeline)
		return len(pipeline.Halted) > 0 || pipeline.LedgerLag == "0"
	})
	if len(pipeline.Halted) > 0 {
		t.Errorf("halted: %q", pipeline.Halted)
	}
	for _, id := range []string{intruder, victim} {
		var verified struct{ Verdict, Entries string }
		p.must(t, http.MethodPost, "/v1/ledger:verify", p.root, map[string]any{"tenant_id": id}, &verified)
		t.Logf("the ledger of %s: %s, %s entries", id, verified.Verdict, verified.Entries)
		if verified.Verdict != "intact" {
			t.Errorf("the ledger of %s is %s", id, verified.Verdict)
		}
	}
	log, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if sqlError.MatchString(line) || strings.Contains(line, "panic") {
			t.Errorf("in the log: %.400s", line)
			a.bad = append(a.bad, line)
		}
	}
}
