package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv/testlog"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// accessWorld is the whole program in this process, over TLS.
type accessWorld struct {
	t             *testing.T
	app           *app
	dir           string
	log           testlog.Buffer
	roots         *x509.CertPool
	client        *http.Client
	admin         string
	answers       bytes.Buffer // every answer but those that hold a secret on purpose
	cert, key, ca string
}

func newAccessWorld(t *testing.T, settings ...string) *accessWorld {
	t.Helper()
	w := &accessWorld{t: t, dir: engineTempDir(t), roots: x509.NewCertPool()}
	s, err := newSmokeServer(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	w.cert, w.key, w.ca = filepath.Join(w.dir, "cert.pem"), filepath.Join(w.dir, "key.pem"), filepath.Join(w.dir, "ca.pem")
	ca, err := testAuthority()
	if err != nil {
		t.Fatal(err)
	}
	w.roots.AddCert(ca.cert)
	writeFile(t, w.ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	w.issue("first")
	set := func(name, value string) string { return config.EnvPrefix + name + "=" + value }
	cfg, err := config.Load(config.Sources{Environ: append(append(s.env, settings...), set("DATA_DIR", s.dataDir()), set("LOG_LEVEL", "debug"),
		set("TLS_CERT_FILE", w.cert), set("TLS_KEY_FILE", w.key))})
	if err != nil {
		t.Fatal(err)
	}
	w.app = newApp(cfg, slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err := w.app.open(t.Context()); err != nil {
		t.Fatal(errors.Join(err, w.app.close()))
	}
	if w.admin, err = authn.LoadToken(w.app.tokenPath()); err != nil {
		t.Fatal(err)
	}
	// The command line finds server, roots and token as a user's does.
	t.Setenv("SSL_CERT_FILE", w.ca)
	t.Setenv("TALLYSTICK_URL", w.url(""))
	t.Setenv("TALLYSTICK_TOKEN", w.admin)
	w.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13}}}
	t.Cleanup(w.client.CloseIdleConnections)
	return w
}

// authority signs the certificates of all worlds.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// testAuthority is one for the whole process, which reads the system's roots, of
// SSL_CERT_FILE, only once.
var testAuthority = sync.OnceValues(func() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate("authority of tests")
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
})

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// issue writes a new pair.
func (w *accessWorld) issue(name string) {
	w.t.Helper()
	ca, err := testAuthority()
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate(name), ca.cert, key.Public(), ca.key)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	if err := errors.Join(os.WriteFile(w.key, keyPEM, 0o600), os.WriteFile(w.cert, certPEM, 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *accessWorld) url(path string) string { return "https://" + w.app.httpAddr + path }

// ask makes a request and keeps its answer among those that are searched,
// unless it holds a secret on purpose.
func (w *accessWorld) ask(token, method, path, body string, secret bool, headers ...string) (int, map[string]any) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url(path), strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if !secret {
		w.answers.Write(b)
		_ = resp.Header.Write(&w.answers) // into memory
	}
	w.checkHSTS(method+" "+path, resp.Header)
	var m map[string]any
	_ = json.Unmarshal(b, &m) // the page and what is empty are no JSON
	return resp.StatusCode, m
}

// must is ask for what must succeed.
func (w *accessWorld) must(path, body string, secret bool) map[string]any {
	w.t.Helper()
	code, m := w.ask(w.admin, "POST", path, body, secret)
	if code != http.StatusOK {
		w.t.Fatalf("%s: %d %v", path, code, m)
	}
	return m
}

func (w *accessWorld) superuser(statement string) {
	w.t.Helper()
	db, err := sql.Open("pgx", w.app.postgresDSN())
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(w.t.Context(), statement); err != nil {
		w.t.Fatalf("%s: %v", statement, err)
	}
}

const usageEvent = `{"events":[{"event_id":"e-%d","occurred_at":"%s","provider":"openai","model":"gpt-4o","status":"ok","tokens":{"input":10}}]}`

func (w *accessWorld) send(token string, n int) int {
	code, _ := w.ask(token, "POST", "/v1/events:batch", fmt.Sprintf(usageEvent, n, time.Now().UTC().Format(time.RFC3339)), false)
	return code
}

// TestAccess runs the whole program over TLS: what it speaks, whom it lets in,
// what it audits, and that no secret lies about afterwards.
func TestAccess(t *testing.T) {
	w := newAccessWorld(t)
	closed := false
	defer func() {
		if !closed {
			if err := w.app.close(); err != nil {
				t.Error(err)
			}
		}
	}()
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme","umbrella"]}`, false)
	t.Run("TLS", func(t *testing.T) { w.checkTLS(t) })
	t.Run("renewal", func(t *testing.T) { w.checkRenewal(t) })
	t.Run("commands", func(t *testing.T) { w.checkCommands(t) }) // the first to read the roots, once
	t.Run("tokens", func(t *testing.T) { w.checkTokens(t) })
	canaries := w.plant()
	t.Run("audit", func(t *testing.T) { w.checkAudit(t) })
	t.Run("unwritable", func(t *testing.T) { w.checkUnwritable(t) })
	closed = true
	if err := w.app.close(); err != nil {
		t.Fatal(err)
	}
	w.search(canaries)
}

// checkHSTS wants the header once in an answer, and as we say it.
func (w *accessWorld) checkHSTS(what string, h http.Header) {
	w.t.Helper()
	if got := h["Strict-Transport-Security"]; !slices.Equal(got, []string{"max-age=31536000; includeSubDomains"}) {
		w.t.Errorf("%s: Strict-Transport-Security %q", what, got)
	}
}

// checkTLS holds every listener to TLS 1.3, and those of HTTP to HSTS.
func (w *accessWorld) checkTLS(t *testing.T) {
	for name, addr := range map[string]string{
		"http": w.app.httpAddr, "grpc": w.app.grpcAddr, "proxy": w.app.metering.addr, "OTLP/HTTP": w.app.otlp.http, "OTLP/gRPC": w.app.otlp.grpc,
	} {
		for version, ok := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
			conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: w.roots, MinVersion: version, MaxVersion: version, NextProtos: []string{"h2"}}) //nolint:gosec // that 1.2 is refused is the test
			if (err == nil) != ok {
				t.Errorf("%s with %s: %v", name, tls.VersionName(version), err)
			}
			if err == nil {
				conn.Close()
			}
		}
	}
	for name, tc := range map[string]struct {
		creds credentials.TransportCredentials
		ok    bool
	}{"TLS": {credentials.NewTLS(&tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13}), true}, "plaintext": {insecure.NewCredentials(), false}} {
		conn, err := grpc.NewClient(w.app.grpcAddr, grpc.WithTransportCredentials(tc.creds))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err = pb.NewAdminServiceClient(conn).ListTenants(bearer(ctx, w.admin), &pb.ListTenantsRequest{})
		if (err == nil) != tc.ok {
			t.Errorf("gRPC with %s: %v", name, err)
		}
		cancel()
		conn.Close()
	}
	for _, path := range []string{"/", "/healthz", "/v1/nothing", "/v1/tenants", "/v1/events:batch"} {
		w.ask("", "GET", path, "", false) // looks for Strict-Transport-Security itself
	}
	for _, url := range []string{
		w.app.metering.addr + "/-/ready", w.app.metering.addr + "/openai/v1/models", w.app.metering.addr + "/",
		w.app.otlp.http + "/v1/traces", w.app.otlp.http + "/",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		w.checkHSTS(url, resp.Header)
	}
}

// checkRenewal renews the certificate by SIGHUP while a connection is open.
func (w *accessWorld) checkRenewal(t *testing.T) {
	w.ask(w.admin, "GET", "/healthz", "", false) // opens the connection
	w.issue("second")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await(t, "the new certificate", 30*time.Second, func() bool {
		conn, err := tls.Dial("tcp", w.app.httpAddr, &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName == "second"
	})
	if code, _ := w.ask(w.admin, "GET", "/healthz", "", false); code != http.StatusOK {
		t.Errorf("the open connection: %d", code)
	}
}

// checkTokens makes a token, uses it at the edge and the API, and revokes it.
func (w *accessWorld) checkTokens(t *testing.T) {
	m := w.must("/v1/tokens", `{"tenant_id":"acme","name":"proxy","scopes":["ingest"]}`, true)
	token, _ := m["secret"].(string)
	info, _ := m["token"].(map[string]any)
	id, _ := info["token_id"].(string)
	if code := w.send(token, 1); code != http.StatusAccepted {
		t.Errorf("an event with a token for it: %d", code)
	}
	if code, _ := w.ask(token, "GET", "/v1/ledger/head", "", false); code != http.StatusForbidden {
		t.Errorf("a read with a token for events: %d", code)
	}
	if code, _ := w.ask(token, "POST", "/v1/events:batch", "{}", false, "X-Tallystick-Tenant", "umbrella"); code != http.StatusForbidden {
		t.Errorf("an event of another tenant: %d", code)
	}
	reader := w.must("/v1/tokens", `{"tenant_id":"acme","name":"page","scopes":["read"]}`, true)
	if code := w.send(reader["secret"].(string), 2); code != http.StatusForbidden {
		t.Errorf("an event with a token to read: %d", code)
	}
	if code, _ := w.ask(w.admin, "POST", "/v1/tokens/"+id+":revoke", `{"tenant_id":"acme"}`, false); code != http.StatusOK {
		t.Errorf("revoke: %d", code)
	}
	if code := w.send(token, 3); code != http.StatusUnauthorized {
		t.Errorf("an event with a revoked token: %d", code)
	}
}

// plant puts canaries everywhere a secret may pass, and where it may not.
func (w *accessWorld) plant() [][]byte {
	w.t.Helper()
	var planted [][]byte
	canary := func() string {
		c := "CANARY" + rand.Text() + "canary"
		planted = append(planted, []byte(c))
		return c
	}
	quoted := func(v string) string {
		b, err := json.Marshal(v)
		if err != nil {
			w.t.Fatal(err)
		}
		return string(b)
	}
	add := func(name, value string) string {
		return fmt.Sprintf(`{"tenant_id":"acme","kind":"provider_key","name":%q,"value":%s}`, name, quoted(value))
	}
	kept := w.must("/v1/secrets", add("openai", "sk-proj-"+canary()+"-tail"), false)
	id, _ := kept["secret_id"].(string)
	w.must("/v1/secrets/"+id+":rotate", fmt.Sprintf(`{"tenant_id":"acme","value":%q}`, "sk-proj-"+canary()+"-tail"), false)
	w.must("/v1/secrets/"+id+":reveal", `{"tenant_id":"acme","reason":"a test"}`, true)
	made := w.must("/v1/tokens", `{"tenant_id":"acme","name":"canary","scopes":["read","ingest","admin"]}`, true)
	token, _ := made["secret"].(string)
	planted = append(planted, []byte(token[strings.IndexByte(token, '.')+1:]), []byte(w.admin[len(authn.TokenPrefix):]))

	// What goes wrong must not repeat what it was given.
	for _, body := range []string{
		add("openai", "sk-"+canary()),                                // taken
		add("", "sk-"+canary()),                                      // no name
		strings.Replace(add("x", "sk-"+canary()), "provider", "", 1), // no such kind
		add("x", "sk-"+canary()) + "trailing",                        // no JSON
		`{"tenant_id":"umbrella2","value":` + quoted(canary()) + `}`, // no such tenant
		`{"value":[` + quoted(canary()) + `]}`,                       // not a text
	} {
		w.ask(w.admin, "POST", "/v1/secrets", body, false)
	}
	w.ask("tsk_acme."+canary(), "GET", "/v1/tenants", "", false)
	w.ask(canary(), "GET", "/v1/tenants", "", false)
	w.ask(token, "GET", "/v1/tokens", "", false, "User-Agent", "curl/8 tsk_acme."+canary())
	w.ask(token, "GET", "/v1/tenants", "", false, "X-Request-Id", "tsk_"+canary())
	w.ask("tsk_umbrella."+canary(), "POST", "/v1/events:batch", "{}", false)
	w.ask(token, "POST", "/v1/events:batch", "{not json", false)
	w.send(token, 4)
	return planted
}

// checkAudit reads the audit log and verifies both chains, of a tenant and of
// the installation, also as exported files by the verifier's own code.
func (w *accessWorld) checkAudit(t *testing.T) {
	await(t, "rows of refusals", 30*time.Second, func() bool {
		_, m := w.ask(w.admin, "GET", "/v1/audit?installation=true&page_size=1000", "", false)
		b, err := json.Marshal(m)
		return err == nil && bytes.Contains(b, []byte("no valid credential")) && bytes.Contains(b, []byte(`"certificate.renew"`)) && bytes.Contains(b, []byte(`"configuration.load"`))
	})
	_, m := w.ask(w.admin, "GET", "/v1/audit?tenant_id=acme&page_size=1000", "", false)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"token.create", "token.revoke", "secret.create", "secret.rotate", "secret.reveal", "credential.authenticate", "credential.authorize",
		"lacks a scope", "lacks the scope ingest", "may not write for this tenant", `"addr":"127.0.0.1"`, "Go-http-client",
	} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("the audit log of acme does not tell of %q", want)
		}
	}
	for id, of := range map[string][]string{"acme": {"--tenant", "acme"}, string(audit.Installation): {"--installation"}} {
		if n, err := w.app.access.log.Verify(t.Context(), tenant.ID(id)); err != nil || n < 10 {
			t.Errorf("the chain of %s: %d events, %v", id, n, err)
		}
		file := filepath.Join(t.TempDir(), "audit.tsx")
		for _, args := range [][]string{
			append([]string{"audit", "verify"}, of...), append([]string{"audit", "export", "-o", file}, of...),
			{"audit", "verify", "--file", file}, append([]string{"audit", "tail"}, of...),
		} {
			if code, out := w.command("", args...); code != exitOK || out == "" && args[1] != "export" {
				t.Errorf("%v: exit code %d\n%s", args, code, out)
			}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _ := w.command("", "audit", "verify", "--file", file); code != exitIntegrity {
			t.Errorf("a changed export: exit code %d", code)
		}
	}
}

// command runs a command of the program in this process and gives what it prints.
func (w *accessWorld) command(stdin string, args ...string) (code int, out string) {
	var stdout, stderr bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	err := root.ExecuteContext(w.t.Context())
	w.answers.Write(stderr.Bytes())
	if err != nil {
		fmt.Fprintln(&w.answers, err)
		return exitCode(err), stdout.String() + err.Error()
	}
	return exitOK, stdout.String()
}

// checkCommands does by the command line what a person does.
func (w *accessWorld) checkCommands(t *testing.T) {
	run := func(want int, stdin string, args ...string) string {
		t.Helper()
		code, out := w.command(stdin, append(args, "--tenant", "acme")...)
		if code != want {
			t.Errorf("%v: exit code %d, want %d\n%s", args, code, want, out)
		}
		return out
	}
	id := func(out, prefix string) string {
		t.Helper()
		_, rest, ok := strings.Cut(out, prefix)
		if !ok {
			t.Fatalf("no %s in %q", prefix, out)
		}
		return prefix + strings.FieldsFunc(rest, func(r rune) bool { return r == ' ' || r == '"' })[0]
	}
	if code, out := w.command("", "tenants", "create", "made-by-command", "acme"); code != exitOK || out != "made-by-command\n" {
		t.Errorf("tenants create: exit code %d, printed %q", code, out)
	}
	if code, out := w.command("", "tenants", "list"); code != exitOK || !strings.Contains(out, "\nacme ") || !strings.Contains(out, "\nmade-by-command ") {
		t.Errorf("tenants list: exit code %d, printed\n%s", code, out)
	}
	token := strings.TrimSpace(run(exitOK, "", "tokens", "create", "--name", "by command", "--scope", "ingest,read"))
	if !strings.HasPrefix(token, "tsk_acme.") || w.send(token, 6) != http.StatusAccepted {
		t.Errorf("the token that is printed: %q", token)
	}
	list := run(exitOK, "", "tokens", "list", "--json")
	if strings.Contains(list, token) || !strings.Contains(list, "by command") {
		t.Errorf("the list:\n%s", list)
	}
	run(exitUsage, "", "tokens", "create", "--name", "x")
	run(exitUsage, "", "tokens", "create", "--name", "x", "--scope", "everything")
	run(exitNotFound, "", "tokens", "revoke", "tok_nothing")

	const value, next = "sk-by-command-0123456789abcdef", "sk-by-command-fedcba9876543210"
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte(next+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := id(run(exitOK, value+"\n", "secrets", "add", "--kind", "provider_key", "--name", "by command"), "sec_")
	run(exitConflict, value, "secrets", "add", "--kind", "provider_key", "--name", "by command")
	run(exitUsage, "", "secrets", "add", "--kind", "provider_key", "--name", "empty")
	if out := run(exitOK, "", "secrets", "rotate", secret, "--value-file", file); !strings.Contains(out, "sk-b…3210") || strings.Contains(out, next) {
		t.Errorf("rotate prints %q", out)
	}
	run(exitUsage, "", "secrets", "reveal", secret)
	if out := run(exitOK, "", "secrets", "reveal", secret, "--reason", "a test"); out != next+"\n" {
		t.Errorf("reveal prints %q", out)
	}
	if out := run(exitOK, "", "secrets", "list"); !strings.Contains(out, secret) || strings.Contains(out, next) || strings.Contains(out, value) {
		t.Errorf("the list:\n%s", out)
	}
	run(exitOK, "", "secrets", "revoke", secret)
	run(exitNotFound, "", "secrets", "reveal", secret, "--reason", "a test")
	t.Setenv("TALLYSTICK_TOKEN", token)
	run(exitAuth, "", "secrets", "list")
	run(exitAuth, "", "audit", "tail")
}

// checkUnwritable makes the audit table unwritable: reads go on, and nothing
// that changes something happens.
func (w *accessWorld) checkUnwritable(t *testing.T) {
	w.superuser("revoke insert on audit.event from tallystick_app")
	defer w.superuser("grant insert on audit.event to tallystick_app")
	for path, body := range map[string]string{
		"/v1/tenants:batchCreate": `{"tenant_ids":["hooli"]}`,
		"/v1/tokens":              `{"tenant_id":"acme","name":"x","scopes":["read"]}`,
		"/v1/secrets":             `{"tenant_id":"acme","kind":"provider_key","name":"unaudited","value":"sk-0123456789"}`,
		"/v1/confidential-tags":   `{"tenant_id":"acme","tag_keys":["case"]}`,
	} {
		if code, m := w.ask(w.admin, "POST", path, body, false); code != http.StatusServiceUnavailable {
			t.Errorf("%s is done without an audit row: %d %v", path, code, m)
		}
	}
	code, m := w.ask(w.admin, "GET", "/v1/tenants", "", false)
	b, err := json.Marshal(m)
	if code != http.StatusOK || err != nil || bytes.Contains(b, []byte("hooli")) {
		t.Errorf("tenants: %d %s, %v", code, b, err)
	}
	_, m = w.ask(w.admin, "GET", "/v1/secrets?tenant_id=acme", "", false)
	if b, err := json.Marshal(m); err != nil || bytes.Contains(b, []byte("unaudited")) {
		t.Errorf("secrets: %s, %v", b, err)
	}
	if code := w.send(w.admin, 5); code != http.StatusAccepted && code != http.StatusBadRequest {
		t.Errorf("events wait for the audit log: %d", code)
	}
}

// search looks for the canaries in the log, the answers and every file of the
// data directory.
func (w *accessWorld) search(canaries [][]byte) {
	w.t.Helper()
	files, hits := 0, 0
	look := func(where string, b []byte) {
		for _, c := range canaries {
			if bytes.Contains(b, c) {
				hits++
				w.t.Errorf("%s holds a secret", where)
			}
		}
	}
	look("the log", w.log.Bytes())
	look("an answer", w.answers.Bytes())
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == w.app.tokenPath() {
			return err // the admin token's own file is where it belongs
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files++
		look(path, b)
		return err
	})
	if err != nil || files < 20 {
		w.t.Errorf("%d files were searched: %v", files, err)
	}
	w.t.Logf("canaries: planted=%d files=%d log_bytes=%d hits=%d", len(canaries), files, len(w.log.Bytes()), hits)
}

// bearer is a gRPC call's credential.
func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}
