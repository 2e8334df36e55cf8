package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/embedded"
)

// cliCase is one wrong use of the program.
type cliCase struct {
	args []string
	env  []string
	user bool // run by an unprivileged user
	code int
	says string
}

const wrongToken = "a-token-that-nobody-was-ever-given-0123456789"

// Each wrong use ends with the documented exit code and says what is wrong.
func TestWrongUse(t *testing.T) {
	dir := engineTempDir(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer")
	writeFile(t, filepath.Join(newer, "kafka", "log", "meta.json"), `{"version":999}`)
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0); err != nil { //nolint:gosec // nobody may enter
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	writeFile(t, filepath.Join(dir, "open.token"), wrongToken)
	if err := os.Chmod(filepath.Join(dir, "open.token"), 0o644); err != nil { //nolint:gosec // that is the fault
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "config.yaml"), "target: everything\n")
	up := func(data string, more ...string) []string {
		return append([]string{"up", "--data-dir", data, "--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"}, more...)
	}
	runCLI(t, dir, map[string]cliCase{
		"unknown command":         {args: []string{"nonsense"}, code: exitUsage, says: `unknown command "nonsense"`},
		"unknown sub-command":     {args: []string{"ledger", "verify", "nonsense"}, code: exitUsage, says: "nonsense"},
		"unknown flag":            {args: []string{"up", "--nonsense"}, code: exitUsage, says: "unknown flag: --nonsense"},
		"wrong value of a flag":   {args: []string{"emit", "--events", "many"}, code: exitUsage, says: "--events"},
		"wrong setting":           {args: up(open, "--target", "everything"), code: exitUsage, says: "target"},
		"wrong configuration":     {args: up(open, "--config", filepath.Join(dir, "config.yaml")), code: exitUsage, says: "target"},
		"no configuration file":   {args: up(open, "--config", filepath.Join(dir, "none.yaml")), code: exitUsage, says: "none.yaml"},
		"wrong environment":       {args: up(open), env: []string{"TALLYSTICK_KAFKA_PARTITIONS=x"}, code: exitUsage, says: "kafka.partitions"},
		"no engines":              {args: up(open), env: []string{embedded.EnginesDirEnv + "=" + closed}, code: exitUnavailable, says: "make engines"},
		"Kafka's port taken":      {args: up(open, "--engines-kafka-port", port), code: exitUnavailable, says: port},
		"data of a newer version": {args: up(newer), code: exitConflict, says: "newer"},
		"data not permitted":      {args: up(filepath.Join(closed, "data")), user: true, code: exitFailure, says: "permission denied"},
		"data below a file":       {args: up(filepath.Join(dir, "config.yaml", "data")), code: exitFailure, says: "not a directory"},
		"token readable by all":   {args: []string{"ledger", "verify", "--token-file", filepath.Join(dir, "open.token")}, code: exitUsage, says: "open.token"},
		"status without a token":  {args: []string{"status"}, env: []string{"TALLYSTICK_DATA_DIR=" + filepath.Join(dir, "none")}, code: exitAuth, says: "no token"},
		"status without a server": {args: []string{"status", "--url", "http://127.0.0.1:1"}, env: []string{"TALLYSTICK_TOKEN=" + wrongToken}, code: exitUnavailable, says: "no answer"},
		"verify without a server": {args: []string{"ledger", "verify", "--url", "http://127.0.0.1:1"}, env: []string{"TALLYSTICK_TOKEN=" + wrongToken}, code: exitUnavailable, says: "refused"},
		"verify without a file":   {args: []string{"ledger", "verify", "--file", filepath.Join(dir, "none.tsx")}, code: exitNotFound, says: "none.tsx"},
		"emit without a server":   {args: []string{"emit", "--url", "http://127.0.0.1:1", "--wait", "1ms"}, env: []string{"TALLYSTICK_TOKEN=" + wrongToken}, code: exitUnavailable, says: "unavailable"},
	})
}

// wrongUseOfServer is the part that needs a running server.
func wrongUseOfServer(t *testing.T, srv *faultServer) {
	url, wrong, right := []string{"--url", srv.url()}, []string{"TALLYSTICK_TOKEN=" + wrongToken}, []string{"TALLYSTICK_TOKEN=" + srv.token}
	with := func(args ...string) []string { return append(args, url...) }
	up := []string{"up", "--data-dir", srv.dataDir(), "--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"}
	fresh := filepath.Join(srv.dir, "other")
	runCLI(t, srv.dir, map[string]cliCase{
		"data in use":               {args: up, code: exitConflict, says: "in use"},
		"HTTP's port taken":         {args: []string{"up", "--data-dir", fresh, "--http-listen", srv.addr, "--grpc-listen", "127.0.0.1:0"}, code: exitUnavailable, says: srv.addr},
		"status, wrong token":       {args: with("status"), env: wrong, code: exitAuth, says: "token"},
		"emit, wrong token":         {args: with("emit", "--events", "10"), env: wrong, code: exitAuth, says: "401"},
		"emit, no token":            {args: with("emit", "--events", "10"), code: exitAuth, says: "401"},
		"verify, wrong token":       {args: with("ledger", "verify"), env: wrong, code: exitAuth, says: "401"},
		"verify, unknown tenant":    {args: with("ledger", "verify", "--tenant", "no-such-tenant"), env: right, code: exitNotFound, says: "no-such-tenant"},
		"head of an unknown tenant": {args: with("ledger", "head", "--tenant", "no-such-tenant"), env: right, code: exitNotFound, says: "404"},
		"not a tenant's name":       {args: with("ledger", "verify", "--tenant", "No Tenant!"), env: right, code: exitUsage, says: "tenant"},
		"all is well":               {args: with("ledger", "verify"), env: right, code: exitOK},
	})
	// The data directory was in use, and its user goes on.
	if srv.gone() || srv.postmaster() == 0 || srv.clickhouse() == 0 {
		t.Error(srv.lastWords("another start on its directory disturbed the server"))
	}
}

func runCLI(t *testing.T, dir string, cases map[string]cliCase) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			code, out := runProgram(t, dir, c)
			if code != c.code || !strings.Contains(out, c.says) {
				t.Errorf("exit code %d, want %d with %q:\n%s", code, c.code, c.says, out)
			}
			if strings.Contains(out, "goroutine ") || strings.Contains(out, wrongToken) {
				t.Errorf("it shows its inside:\n%s", out)
			}
		})
	}
}

// runProgram runs the program to its end, and returns all that it said.
func runProgram(t *testing.T, dir string, c cliCase) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, exe, c.args...)
	if c.user && os.Getuid() == 0 {
		// The folder of the test binary is closed to others.
		cmd.Path = filepath.Join(dir, "program")
		if err := os.Link(exe, cmd.Path); err != nil {
			copyFile(t, exe, cmd.Path)
		}
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = "/"
	}
	// No setting of the caller counts, but where the engines are.
	env := (&smokeServer{dir: dir}).environment(os.Environ())
	cmd.Env = append(append(env, runsTheProgram+"=1", "HOME="+filepath.Join(dir, "home"), "XDG_DATA_HOME=", "XDG_CONFIG_HOME="), c.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil { //nolint:gosec // the engines' user passes through
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil { //nolint:gosec // others run it
		t.Fatal(err)
	}
}
