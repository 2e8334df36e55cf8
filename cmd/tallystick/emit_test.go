package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/load"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/testenv"
)

// yes is a server that accepts everything; on each batch it calls then.
func yes(t *testing.T, then func()) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			return
		case r.Header.Get("Authorization") != "Bearer sesame":
			w.WriteHeader(http.StatusUnauthorized)
			return
		case r.URL.Path == "/v1/tenants:batchCreate":
			_, _ = io.WriteString(w, `{"created":[]}`)
			return
		}
		n := 0
		for len(body) > 0 {
			body = body[max(protowire.ConsumeFieldValue(1, protowire.BytesType, body[1:]), 0)+1:]
			n++
		}
		then()
		w.WriteHeader(http.StatusAccepted)
		_, _ = fmt.Fprintf(w, `{"accepted":"%d","refused":"0","refusals":[]}`, n)
	}))
	t.Cleanup(srv.Close)
	return srv
}

func emit(ctx context.Context, args ...string) (stdout string, err error) {
	cmd := newEmitCommand()
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out, messages bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&messages)
	err = cmd.ExecuteContext(ctx)
	return out.String(), err
}

func TestEmitWritesItsExpectation(t *testing.T) {
	srv := yes(t, func() {})
	t.Setenv("TALLYSTICK_TOKEN", "sesame")
	path := filepath.Join(t.TempDir(), "expect.json")
	args := []string{"--url", srv.URL, "--events", "1200", "--duplicates", "0.1", "--expect", path}
	out, err := emit(t.Context(), append(args, "--limit", "700")...)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "expected accepted=700 ") {
		t.Errorf("printed %q", out)
	}
	out, err = emit(t.Context(), append(args, "--resume", path, "--json")...)
	if err != nil {
		t.Fatal(err)
	}
	var printed load.Result
	if err := json.Unmarshal([]byte(out), &printed); err != nil {
		t.Fatal(err)
	}
	state, err := load.ReadState(path)
	if err != nil {
		t.Fatal(err)
	}
	if e := &state.Expectation; !state.Complete || e.Accepted != 1200 || e.Duplicates == 0 || e.USD.Cmp(&printed.Expectation.USD) != 0 {
		t.Errorf("the file says %+v", state)
	}
}

func TestEmitExitCodes(t *testing.T) {
	srv := yes(t, func() {})
	t.Setenv("TALLYSTICK_TOKEN", "wrong")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want int
	}{
		"ok":                  {[]string{"--token-file", token, "--events", "10"}, exitOK},
		"wrong token":         {[]string{"--events", "10"}, exitAuth},
		"no token file":       {[]string{"--token-file", "no-such-file"}, exitUsage},
		"trace and synthetic": {[]string{"--trace", "x", "--synthetic"}, exitUsage},
		"missing trace":       {[]string{"--trace", "no-such-file.csv"}, exitUsage},
		"bad base":            {[]string{"--base", "yesterday"}, exitUsage},
		"future base":         {[]string{"--base", "2200-01-01T00:00:00Z"}, exitUsage},
		"live without rate":   {[]string{"--live"}, exitUsage},
		"bad share":           {[]string{"--late", "2"}, exitUsage},
		"no expectation":      {[]string{"--resume", "no-such-file"}, exitUsage},
		"cannot write":        {[]string{"--token-file", token, "--events", "10", "--expect", filepath.Join("no-such-folder", "x")}, exitFailure},
		"server away":         {[]string{"--url", "http://127.0.0.1:1", "--wait", "10ms"}, exitUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := emit(t.Context(), append([]string{"--url", srv.URL}, c.args...)...)
			got := exitOK
			if err != nil {
				got = exitCode(err)
			}
			if got != c.want {
				t.Errorf("exit code %d (%v), want %d", got, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "sesame") {
				t.Error("the message contains the token")
			}
		})
	}
}

// The first Ctrl-C ends the load in order: its expectation is complete.
func TestEmitStopsInOrder(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	srv := yes(t, interrupt)
	t.Setenv("TALLYSTICK_TOKEN", "sesame")
	path := filepath.Join(t.TempDir(), "expect.json")
	_, err := emit(ctx, "--url", srv.URL, "--live", "--rate", "2000", "--events", "100", "--expect", path)
	if err != nil {
		t.Fatal(err)
	}
	state, err := load.ReadState(path)
	if err != nil {
		t.Fatal(err)
	}
	if !state.Complete || state.InDoubt != 0 || state.Expectation.Accepted != 100 {
		t.Errorf("complete %v, in doubt %d, accepted %d", state.Complete, state.InDoubt, state.Expectation.Accepted)
	}
}

// The generator, the edge's decoder and the price book were written apart. They
// must agree: every event is read as what the oracle says it is — its refusal's
// field and rule, its cost to the last 1e-12 USD — in every format and trace.
func TestEmitAgreesWithEdgeAndPriceBook(t *testing.T) {
	faults := load.Faults{Duplicates: 0.05, Late: 0.02, Reorder: 0.1, Poison: 0.05, Conflicts: 0.01, Unpriced: 0.02}
	var loads []load.Options
	for _, f := range []load.Format{load.Protobuf, load.JSON, load.NDJSON} {
		loads = append(loads, load.Options{Events: 20_000, Format: f, Seed: 9, Faults: faults})
	}
	for _, name := range []string{
		"servegen_deepseek_r1_24h_requests", "servegen_m_large_14d_1of300_requests", "azure_llm_2023_code",
		"azure_llm_2023_conv", "mooncake_synthetic_requests",
	} {
		loads = append(loads, load.Options{Trace: testenv.Data(t, "llm/"+name+".csv.zst"), Events: 3_000})
	}
	book := pricing.Builtin()
	for _, o := range loads {
		name := cmpOr(filepath.Base(o.Trace), ".", string(o.Format))
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			refused := 0
			_, err := load.Events(o, func(encoded []byte, out *oracle.Outcome) error {
				var e event.Event
				got := readAsEdge(&e, slices.Clone(encoded), o.Format, now)
				want := ""
				if out.Kind == oracle.Refused {
					refused++
					want = out.Rule
				}
				if want == "tenant_id tenant" && got == "" && e.Tenant == "no-such-tenant" {
					return nil // only a server with tenants can know
				}
				if got != want {
					return fmt.Errorf("refused for %q, want %q", got, want)
				}
				if want != "" {
					return nil
				}
				return agreeOnMoney(book, &e, out)
			})
			if err != nil {
				t.Fatal(err)
			}
			if o.Trace == "" && refused < 500 {
				t.Errorf("only %d events were refused", refused)
			}
		})
	}
}

func cmpOr(base, none, otherwise string) string {
	if base == none {
		return otherwise
	}
	return base
}

// readAsEdge is what the edge does with an event before it looks at tenants:
// "field rule" of the refusal, "" without.
func readAsEdge(e *event.Event, encoded []byte, f load.Format, now time.Time) string {
	decode := e.DecodeProto
	if f == load.JSON || f == load.NDJSON {
		decode = e.DecodeJSON
	}
	err := decode(encoded, event.Strict)
	if err == nil {
		err = e.Validate(false)
	}
	var fe *event.FieldError
	switch {
	case errors.As(err, &fe):
		return fe.Field + " " + fe.Rule
	case err != nil:
		return err.Error()
	case e.OccurredAt > now.Add(10*time.Minute).UnixNano():
		return "occurred_at future"
	case e.OccurredAt < now.AddDate(-1, 0, 0).UnixNano():
		return "occurred_at too_old"
	}
	return ""
}

func agreeOnMoney(book *pricing.Book, e *event.Event, out *oracle.Outcome) error {
	if out.Kind == oracle.Conflict {
		return nil // its money never counts
	}
	r := book.Price(&pricing.Usage{
		Provider: e.Provider, Model: e.Model, Region: e.Region, ServiceTier: e.ServiceTier,
		Tokens: e.Tokens, ContextTokens: e.ContextTokens, At: e.OccurredAt,
	})
	if r.Priced != out.Priced || int64(r.Cost) != out.CostPico || e.Tokens != out.Tokens {
		return fmt.Errorf("%s/%s with %v: the book says %v, %v; the oracle %d, %v", e.Provider, e.Model, e.Tokens, r.Cost, r.Priced, out.CostPico, out.Priced)
	}
	return nil
}
