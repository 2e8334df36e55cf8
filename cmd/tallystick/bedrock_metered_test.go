package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/analytics"
	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
)

// bedrockOperation is what the path of a call of Bedrock ends with.
var bedrockOperation = regexp.MustCompile(`/(converse|converse-stream|invoke|invoke-with-response-stream)$`)

// TestProxiedCallsAreInTheLogsToo has calls of Bedrock go through the proxy of a whole
// server and then reads the invocation logs that AWS writes of them, by upload and from
// a directory: one entry a call. Another tenant's records with the same request ids are
// calls of its own.
func TestProxiedCallsAreInTheLogsToo(t *testing.T) {
	calls := map[string]testenv.Exchange{} // one of each operation
	for _, e := range testenv.Exchanges(t) {
		if m := bedrockOperation.FindStringSubmatch(e.Path); m != nil && strings.HasPrefix(e.Host, "bedrock-runtime.") && e.Status == http.StatusOK {
			calls[m[1]] = e
		}
	}
	if len(calls) < 3 {
		t.Fatalf("recorded are only %d operations", len(calls))
	}
	served := 0
	provider := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		e := calls[bedrockOperation.FindStringSubmatch(r.URL.Path)[1]]
		served++
		rw.Header().Set("X-Amzn-Requestid", fmt.Sprintf("6f1c5d5a-2f6e-4f0e-9f43-%012d", served))
		rw.Header().Set("X-Request-Id", "of something on the way")
		rw.Header().Set("Content-Type", e.ContentType())
		_, _ = rw.Write(e.Body)
	}))
	t.Cleanup(provider.Close)
	addrs, err := freeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	logs := engineTempDir(t)
	w := &plantedWorld{t: t, faultServer: startFaultServer(t, func(s *smokeServer) {
		s.args = append(s.args, "--proxy-listen", addrs[0], "--providers-private-networks", "--bedrock-directory", logs, "--bedrock-interval-seconds", "1")
	})}
	w.api = &ledgerAPI{client.New(w.url(), w.token)}
	t.Cleanup(w.api.Close)
	t.Setenv("TALLYSTICK_URL", w.url())
	t.Setenv("TALLYSTICK_TOKEN", w.token)
	w.post("/v1/tenants:batchCreate", `{"tenant_ids":["acme","bravo"]}`, http.StatusOK)
	w.post("/v1/providers/keys", fmt.Sprintf(`{"tenant_id":"acme","provider":"bedrock","base_url":%q,"value":"AKIATHETENANTSKEY001:TheSecretAccessKeyOfTheTest+/0000000cAnR"}`, provider.URL), http.StatusOK)

	records := logRecord(t, "of-a-direct-call", "Converse")
	for operation, e := range calls {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addrs[0]+"/bedrock/us-east-1"+e.Path, bytes.NewReader(e.Request))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer " + w.token}, "Content-Type": {"application/json"}, "X-Tallystick-Tenant": {"acme"}}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v", operation, res.StatusCode, err)
		}
		records = append(records, logRecord(t, res.Header.Get("X-Amzn-Requestid"), operation)...)
	}
	w.drain(int64(len(calls)))

	proxied := int64(len(calls))
	upload := func(tenant string) (r bedrock.Report) {
		t.Helper()
		h := http.Header{ingest.TenantHeader: {tenant}, bedrock.ObjectHeader: {"a"}}
		if err := w.api.Upload(t.Context(), bedrock.UploadPath, h, bytes.NewReader(records), int64(len(records)), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := upload("acme"); r.Records != proxied+1 || r.Metered != proxied || r.Accepted != 1 {
		t.Errorf("the tenant's own logs: %+v", r)
	}
	if r := upload("bravo"); r.Records != proxied+1 || r.Metered != 0 || r.Accepted != proxied+1 {
		t.Errorf("another tenant's: %+v", r)
	}
	if err := os.MkdirAll(filepath.Join(logs, "acme"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(logs, "acme", "a.jsonl"), records, 0o644); err != nil {
		t.Fatal(err)
	}
	w.cli(exitOK, "bedrock", "connect", "logs", "--tenant", "acme", "--source", "directory", "--prefix", "acme")
	await(t, "the directory is read, and what the proxy has metered left out", time.Minute, func() bool {
		out := w.cli(exitOK, "bedrock", "list", "--tenant", "acme", "--json")
		return strings.Contains(out, `"accepted":"1"`) && strings.Contains(out, fmt.Sprintf(`"metered":"%d"`, proxied))
	})
	for tenant, want := range map[string]int64{"acme": proxied + 1, "bravo": proxied + 1} {
		await(t, fmt.Sprintf("%s has %d entries", tenant, want), time.Minute, func() bool {
			var s pb.SummaryResponse
			err := w.api.call(t.Context(), "/v1/reports/summary:query", &pb.SummaryRequest{TenantId: tenant, Window: &pb.Window{Name: "7d"}}, &s)
			return err == nil && s.GetTotals().GetRequests() == want && s.GetCoverage().GetExact()
		})
	}
}

// logRecord is what AWS logs of a call.
func logRecord(t *testing.T, request, operation string) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": time.Now().UTC().Format(time.RFC3339), "accountId": "111122223333",
		"region": "us-east-1", "requestId": request, "operation": operation, "modelId": "anthropic.claude-3-haiku-20240307-v1:0",
		"input": map[string]any{"inputTokenCount": 9}, "output": map[string]any{"outputTokenCount": 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// Events that the log has and the ledger has not are waited for, and where they do not
// come nobody knows what was metered.
func TestLoggedCallsWaitForTheLedger(t *testing.T) {
	db := testenv.MigratedPostgres(t)
	conn, err := sql.Open("pgx", db.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const partitions = 4
	topic := ledger.Topic{ID: [16]byte{7}, Partitions: partitions}
	mine := tenant.ID("acme").Partition(partitions)
	ends := make([]int64, partitions)
	for i := range ends {
		ends[i] = 99 // the ledger has none of them
	}
	l := &loggedCalls{app: db.Open(t, postgres.RoleApp), topic: topic, ends: func(context.Context) ([]int64, error) { return ends, nil }, wait: 200 * time.Millisecond}
	ends[mine] = 0
	if err := l.written(t.Context(), "acme"); err != nil {
		t.Errorf("an empty log: %v", err)
	}
	ends[mine] = 17
	if err := l.written(t.Context(), "acme"); !errors.Is(err, analytics.ErrBehind) {
		t.Errorf("no ledger yet: %v", err)
	}
	_, err = conn.ExecContext(t.Context(), `insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset) values ($1, $2, $3, 1, 16)`, mine, uuid.UUID(topic.ID).String(), partitions)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Calls(t.Context(), "acme", []string{"x"}, time.Now(), time.Now(), time.Now()); !errors.Is(err, analytics.ErrBehind) {
		t.Errorf("one record behind: %v", err)
	}
	l.wait = time.Minute
	time.AfterFunc(100*time.Millisecond, func() {
		if _, err := conn.ExecContext(context.WithoutCancel(t.Context()), `update ledger.partition set next_offset = 17`); err != nil {
			t.Error(err)
		}
	})
	if err := l.written(t.Context(), "acme"); err != nil {
		t.Errorf("caught up: %v", err)
	}
	// What was reached is not waited for again by what is older.
	now := time.Now()
	l.seen = map[tenant.ID]reached{"acme": {at: now, stored: 5}}
	ends[mine] = 18
	if stored, err := l.reach(t.Context(), "acme", now); err != nil || stored != 5 {
		t.Errorf("as of what was reached: %d, %v", stored, err)
	}
	l.wait = 0
	if _, err := l.reach(t.Context(), "acme", now.Add(time.Millisecond)); !errors.Is(err, analytics.ErrBehind) {
		t.Errorf("as of later: %v", err)
	}
	if _, err := l.reach(t.Context(), "bravo", now); !errors.Is(err, analytics.ErrBehind) {
		t.Errorf("another tenant: %v", err)
	}
	l.topic.ID, l.wait = [16]byte{8}, 0
	if err := l.written(t.Context(), "acme"); !errors.Is(err, analytics.ErrBehind) {
		t.Errorf("another topic: %v", err)
	}
	away := errors.New("away")
	l.ends = func(context.Context) ([]int64, error) { return nil, away }
	if _, err := l.Calls(t.Context(), "acme", []string{"x"}, time.Now(), time.Now(), time.Now()); !errors.Is(err, away) {
		t.Errorf("no broker: %v", err)
	}
}
