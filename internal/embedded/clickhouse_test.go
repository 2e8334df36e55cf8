package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() { roles["clickhouse"] = serveClickHouse }

// serveClickHouse plays a Tallystick that runs an engine: it prints the child's
// pid and the DSN, and stays until its input ends.
func serveClickHouse(dir string) error {
	lib, err := FindCHDB("")
	if err != nil {
		return err
	}
	c, err := StartClickHouse(context.Background(), ClickHouseOptions{DataDir: dir, LibPath: lib})
	if err != nil {
		return err
	}
	fmt.Println(c.PID(), c.DSN("default"))
	waitForEOF()
	return c.Stop(context.Background())
}

func clickhouseOptions(t *testing.T, dir string) ClickHouseOptions {
	t.Helper()
	lib, err := FindCHDB("")
	if err != nil {
		t.Fatal(err)
	}
	return ClickHouseOptions{DataDir: dir, LibPath: lib}
}

func startClickHouse(t *testing.T, dir string) *ClickHouse {
	t.Helper()
	c, err := StartClickHouse(testContext(t), clickhouseOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop(context.Background()) })
	return c
}

// ask sends one statement to the engine of a DSN and returns its answer.
func ask(t *testing.T, dsn, sql string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", u.Path)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://localhost/?"+u.RawQuery, "", strings.NewReader(sql))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", sql, resp.Status, body, err)
	}
	return strings.TrimSpace(string(body))
}

func TestClickHouseKeepsDataOverStops(t *testing.T) {
	dir := t.TempDir()
	c := startClickHouse(t, dir)
	ask(t, c.DSN("default"), "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
	ask(t, c.DSN("default"), "INSERT INTO t VALUES (1)")
	for range 2 { // a second stop does nothing
		if err := c.Stop(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	c = startClickHouse(t, dir)
	ask(t, c.DSN("default"), "INSERT INTO t VALUES (2)")
	if err := syscall.Kill(c.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("a killed engine ended without an error")
	}
	c = startClickHouse(t, dir)
	if got := ask(t, c.DSN("default"), "SELECT sum(a), version() FROM t"); got != "3\t"+c.Version() {
		t.Errorf("%q", got)
	}
	info, err := os.Stat(filepath.Join(dir, "run"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's folder has mode %v (%v)", info.Mode(), err)
	}
}

// TestClickHouseDiesWithItsParent kills the parent and starts anew at once.
func TestClickHouseDiesWithItsParent(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		parent, line := play(t, "clickhouse", dir)
		first, dsn, _ := strings.Cut(line, " ")
		pid, err := strconv.Atoi(first)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			ask(t, dsn, "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
		}
		ask(t, dsn, "INSERT INTO t VALUES (1)")
		parent.kill(t)
		if round == 0 {
			t.Logf("the child was gone after %s", awaitGone(t, pid))
		}
	}
	c := startClickHouse(t, dir)
	if got := ask(t, c.DSN("default"), "SELECT count() FROM t"); got != "3" {
		t.Errorf("%s rows", got)
	}
}

// TestClickHouseIgnoresTerminalSignals sends what a Ctrl-C and a service manager
// send to a whole group.
func TestClickHouseIgnoresTerminalSignals(t *testing.T) {
	c := startClickHouse(t, t.TempDir())
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := syscall.Kill(c.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(t, c.DSN(""), "SELECT 1"); got != "1" {
		t.Error(got)
	}
	if group, err := syscall.Getpgid(c.PID()); err != nil || group != syscall.Getpgrp() {
		t.Errorf("the child is in group %d (%v)", group, err)
	}
	if err := c.Stop(testContext(t)); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestClickHouseStopIsBounded(t *testing.T) {
	c := startClickHouse(t, t.TempDir())
	// A stopped process cannot end in an orderly way.
	if err := syscall.Kill(c.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	<-c.Done()
}

func TestClickHouseLocksItsDirectory(t *testing.T) {
	dir := t.TempDir()
	startClickHouse(t, dir)
	if _, err := StartClickHouse(testContext(t), clickhouseOptions(t, dir)); !errors.Is(err, ErrDataDirInUse) {
		t.Errorf("%v", err)
	}
}

func TestClickHouseRefusesNewerData(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "engine-version"), []byte("99.1.2-stable\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := StartClickHouse(testContext(t), clickhouseOptions(t, dir))
	if !errors.Is(err, ErrNewerDataDir) || !strings.Contains(err.Error(), "99.1.2") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		if files, _ := os.ReadDir(filepath.Join(dir, "data")); len(files) > 0 {
			t.Error("the engine touched the directory")
		}
	}
}

func TestClickHouseInDeepDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	c := startClickHouse(t, dir)
	if got := ask(t, c.DSN(""), "SELECT 1"); got != "1" {
		t.Error(got)
	}
	socket, err := url.Parse(c.DSN(""))
	if err != nil || len(socket.Path) > maxSocketPath {
		t.Errorf("%q, %v", socket.Path, err)
	}
	if err := c.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(socket.Path)); !os.IsNotExist(err) {
		t.Errorf("the socket's folder is left: %v", err)
	}
}

func TestClickHouseStartErrors(t *testing.T) {
	notALibrary := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(notALibrary, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "data"), []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	lib := clickhouseOptions(t, "").LibPath
	for name, test := range map[string]struct {
		opt  ClickHouseOptions
		want error
	}{
		"no directory":      {ClickHouseOptions{LibPath: lib}, ErrDataDirDamaged},
		"relative library":  {ClickHouseOptions{DataDir: t.TempDir(), LibPath: "libchdb.so"}, ErrEngineMissing},
		"missing library":   {ClickHouseOptions{DataDir: t.TempDir(), LibPath: "/nonexistent/libchdb.so"}, ErrEngineMissing},
		"not a library":     {ClickHouseOptions{DataDir: t.TempDir(), LibPath: notALibrary}, ErrEngineMissing},
		"too little memory": {ClickHouseOptions{DataDir: t.TempDir(), LibPath: lib, MaxMemoryBytes: 1 << 20}, ErrUnsafeSetting},
		"damaged directory": {ClickHouseOptions{DataDir: damaged, LibPath: lib}, ErrStart},
		"not ready in time": {ClickHouseOptions{DataDir: t.TempDir(), LibPath: lib, StartTimeout: time.Millisecond}, ErrStart},
	} {
		if _, err := StartClickHouse(testContext(t), test.opt); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}
