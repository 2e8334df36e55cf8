package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// startPostgres starts a server that ends with the test.
func startPostgres(t *testing.T, opt PostgresOptions) *Postgres {
	t.Helper()
	p, err := StartPostgres(testContext(t), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopPostgres(t, p) })
	return p
}

func stopPostgres(t *testing.T, p *Postgres) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	select {
	case <-p.Done(): // killed by the test; only the files are left to release
		p.releaseFiles()
	default:
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
}

// templated are options for a quick start: the cluster is copied.
func templated(t *testing.T) PostgresOptions {
	t.Helper()
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return PostgresOptions{
		DataDir:     filepath.Join(t.TempDir(), "postgres"),
		TemplateDir: filepath.Join(cache, "test-templates"),
	}
}

func connect(t *testing.T, dsn string) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.Connect(testContext(t), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// one returns the first value of the last result of sql.
func one(t *testing.T, conn *pgconn.PgConn, sql string) string {
	t.Helper()
	results, err := conn.Exec(testContext(t), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	last := results[len(results)-1]
	if len(last.Rows) == 0 {
		return ""
	}
	return string(last.Rows[0][0])
}

func superuserDSN(p *Postgres) string { return p.DSN(PostgresSuperuser, "postgres") }

// TestPostgresFromNothing is also run as an ordinary user by
// TestPostgresRunsAsAnOrdinaryUserToo.
func TestPostgresFromNothing(t *testing.T) {
	// The folder above is closed to others, as home and temporary folders are.
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "postgres")
	begin := time.Now()
	p := startPostgres(t, PostgresOptions{DataDir: dir})
	t.Logf("uid %d: cold start with initdb %s", os.Geteuid(), time.Since(begin).Round(time.Millisecond))

	conn := connect(t, superuserDSN(p))
	if err := AssertSafePostgres(t.Context(), func(_ context.Context, name string) (string, error) {
		return one(t, conn, "SHOW "+name), nil
	}); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"listen_addresses": "", "server_encoding": "UTF8", "data_checksums": "on", "jit": "off", "timezone": "UTC",
	} {
		if got := one(t, conn, "SHOW "+name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := one(t, conn, "SELECT datcollate FROM pg_database WHERE datname = 'template1'"); got != "C" {
		t.Errorf("collation is %q, want C", got)
	}
	one(t, conn, "CREATE TABLE kept (x int); INSERT INTO kept VALUES (42)")

	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	p = startPostgres(t, PostgresOptions{DataDir: dir})
	t.Logf("uid %d: warm start %s", os.Geteuid(), time.Since(begin).Round(time.Millisecond))
	if got := one(t, connect(t, superuserDSN(p)), "SELECT x FROM kept"); got != "42" {
		t.Errorf("after a restart x = %q", got)
	}
}

func TestPostgresTrustsNobodyWithoutAPassword(t *testing.T) {
	p := startPostgres(t, templated(t))
	wrong := strings.Replace(superuserDSN(p), p.Password(PostgresSuperuser), "wrong", 1)
	_, err := pgconn.Connect(t.Context(), wrong)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "28P01" {
		t.Errorf("a wrong password: %v, want SQLSTATE 28P01", err)
	}
	// A role made later gets the password that DSN derives for it.
	one(t, connect(t, superuserDSN(p)), "CREATE ROLE writer LOGIN PASSWORD '"+p.Password("writer")+"'")
	if got := one(t, connect(t, p.DSN("writer", "postgres")), "SELECT current_user"); got != "writer" {
		t.Errorf("current_user = %q", got)
	}
	if p.Password("writer") == p.Password("reader") {
		t.Error("two roles have one password")
	}
}

func TestPostgresKeepsItsPasswordAndSocketPrivate(t *testing.T) {
	opt := templated(t)
	p := startPostgres(t, opt)
	for path, want := range map[string]os.FileMode{
		filepath.Join(opt.DataDir, passwordFileName):              0o600,
		filepath.Join(opt.DataDir, clusterDirName):                0o700,
		filepath.Join(opt.DataDir, clusterDirName, socketDirName): 0o700,
		opt.DataDir: 0o700,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v (%v), want %v", path, info.Mode().Perm(), err, want)
		}
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
	if err != nil || strings.Contains(string(args), p.Password(PostgresSuperuser)) {
		t.Errorf("the password is on the command line (%v)", err)
	}
}

// TestPostgresRunsAsAnOrdinaryUserToo runs TestPostgresFromNothing as nobody
// when this process is root, so that both ways are tested on one machine.
func TestPostgresRunsAsAnOrdinaryUserToo(t *testing.T) {
	if os.Geteuid() != 0 {
		return // then every other test here runs as an ordinary user
	}
	nobody, err := pickEngineUser("/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	for dir := tmp; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := nobody.own(tmp); err != nil {
		t.Fatal(err)
	}
	engines, err := FindPostgres("")
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Dir(filepath.Dir(filepath.Dir(engines)))
	// By /proc/self/exe, because go test's own folder is closed to others.
	cmd := exec.CommandContext(testContext(t), "/proc/self/exe", "-test.run=^TestPostgresFromNothing$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = []string{"TMPDIR=" + tmp, "PATH=/usr/bin:/bin", EnginesDirEnv + "=" + modules}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody.credential()}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestPostgresFromNothing") || !strings.Contains(string(out), fmt.Sprintf("uid %d: warm", nobody.uid)) {
		t.Fatalf("as nobody: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "start") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// TestSystemPostgres uses the Postgres of the operating system where there is
// one; what a wrong choice says is tested everywhere.
func TestSystemPostgres(t *testing.T) {
	if _, err := StartPostgres(testContext(t), PostgresOptions{DataDir: t.TempDir(), BinDir: t.TempDir()}); !errors.Is(err, ErrEngineMissing) {
		t.Errorf("an empty folder: %v, want ErrEngineMissing", err)
	}
	old := t.TempDir()
	for dir := old; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(old, name), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := StartPostgres(testContext(t), PostgresOptions{DataDir: t.TempDir(), BinDir: old}); !errors.Is(err, ErrEngineTooOld) {
		t.Errorf("Postgres 14: %v, want ErrEngineTooOld", err)
	}
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		p := startPostgres(t, PostgresOptions{DataDir: filepath.Join(t.TempDir(), "p"), BinDir: dir})
		got := one(t, connect(t, superuserDSN(p)), "SHOW server_version_num")
		if want := strconv.Itoa(p.Major()); !strings.HasPrefix(got, want) || p.Major() < minSystemPostgres {
			t.Errorf("%s: server_version_num %s, major %d", dir, got, p.Major())
		}
		t.Logf("%s is Postgres %d", dir, p.Major())
	}
}

// servePostgres is a role: it runs a server until it is killed or told to end.
func servePostgres(dir string) error {
	p, err := StartPostgres(context.Background(), PostgresOptions{DataDir: dir})
	if err != nil {
		return err
	}
	fmt.Println(p.PID(), superuserDSN(p))
	waitForEOF()
	return p.Stop(context.Background())
}

// TestPostgresDiesWithItsParentAndCommitsSurvive kills the parent with SIGKILL
// in the middle of writes, several times on one directory.
func TestPostgresDiesWithItsParentAndCommitsSurvive(t *testing.T) {
	dir := templated(t).DataDir
	var acked atomic.Int64
	for round := range 3 {
		parent, line := play(t, "postgres", dir)
		pidText, dsn, _ := strings.Cut(line, " ")
		pid, err := strconv.Atoi(pidText)
		if err != nil {
			t.Fatal(err)
		}
		conn := connect(t, dsn)
		one(t, conn, "CREATE TABLE IF NOT EXISTS acked (x bigint PRIMARY KEY)")
		if got := one(t, conn, "SELECT count(*) FROM acked"); !holds(got, acked.Load()) {
			t.Fatalf("round %d: %s rows, %d were acknowledged", round, got, acked.Load())
		}
		acked.Store(mustInt(t, one(t, conn, "SELECT coalesce(max(x), 0) FROM acked")))
		backends := childrenOf(t, pid)

		enough := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for n := 0; ; n++ {
				next := acked.Load() + 1
				if _, err := conn.Exec(context.Background(), fmt.Sprintf("INSERT INTO acked VALUES (%d)", next)).ReadAll(); err != nil {
					return
				}
				acked.Store(next)
				if n == 200 {
					close(enough)
				}
			}
		}()
		<-enough
		parent.kill(t)
		took := awaitGone(t, pid)
		for _, backend := range backends {
			awaitGone(t, backend)
		}
		<-stopped
		t.Logf("round %d: the postmaster was gone %s after its parent, %d rows acknowledged", round, took.Round(time.Millisecond), acked.Load())
	}
	p := startPostgres(t, PostgresOptions{DataDir: dir})
	if got := one(t, connect(t, superuserDSN(p)), "SELECT count(*) FROM acked"); !holds(got, acked.Load()) {
		t.Errorf("%s rows at the end, %d were acknowledged", got, acked.Load())
	}
}

// holds reports whether count is what was acknowledged, or one more: the commit
// whose acknowledgement the kill cut off.
func holds(count string, acked int64) bool {
	n, err := strconv.ParseInt(count, 10, 64)
	return err == nil && (n == acked || n == acked+1)
}

func mustInt(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range strings.Fields(string(data)) {
		pids = append(pids, int(mustInt(t, f)))
	}
	if len(pids) == 0 {
		t.Fatal("the postmaster has no children")
	}
	return pids
}

// TestPostgresTwentyImmediateRestarts kills the postmaster and starts at once,
// while its backends are still going.
func TestPostgresTwentyImmediateRestarts(t *testing.T) {
	opt := templated(t)
	p := startPostgres(t, opt)
	var slowest time.Duration
	for i := range 20 {
		conn := connect(t, superuserDSN(p))
		one(t, conn, fmt.Sprintf("CREATE TABLE t%d (x int)", i))
		signal := syscall.SIGKILL
		if i%2 == 1 {
			signal = syscall.SIGQUIT // what the kernel sends when the parent dies
		}
		p.currentRun().signal(signal)
		p.lock.unlock() // as the kernel does when the parent dies
		begin := time.Now()
		next, err := StartPostgres(testContext(t), opt)
		if err != nil {
			t.Fatalf("restart %d: %v", i, err)
		}
		slowest = max(slowest, time.Since(begin))
		t.Cleanup(func() { stopPostgres(t, next) })
		p = next
	}
	if got := one(t, connect(t, superuserDSN(p)), "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); got != "20" {
		t.Errorf("%s of 20 tables are left", got)
	}
	t.Logf("slowest of 20 immediate restarts: %s", slowest.Round(time.Millisecond))
}

func TestPostgresEndIsReported(t *testing.T) {
	p := startPostgres(t, templated(t))
	p.currentRun().signal(syscall.SIGKILL)
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("Done is not closed after the server's end")
	}
	if err := p.Wait(); err == nil {
		t.Error("Wait = nil after a kill")
	}
	if err := p.Stop(testContext(t)); err == nil {
		t.Error("Stop hides that the server had died")
	}
}

func TestPostgresIsStartedAgain(t *testing.T) {
	opt := templated(t)
	opt.Restart, opt.OwnProcessGroup = true, true
	p := startPostgres(t, opt)
	dsn := superuserDSN(p)
	one(t, connect(t, dsn), "CREATE TABLE kept (x int)")
	for range 3 {
		dead := p.PID()
		if pgid, err := syscall.Getpgid(dead); err != nil || pgid != dead {
			t.Errorf("process group %d (%v), want its own", pgid, err)
		}
		p.currentRun().signal(syscall.SIGKILL)
		awaitGone(t, dead)
		for p.PID() == dead {
			select {
			case <-p.Done():
				t.Fatalf("gave up: %v", p.Wait())
			case <-time.After(time.Millisecond):
			}
		}
		if got := one(t, connect(t, dsn), "SELECT count(*) FROM kept"); got != "0" {
			t.Errorf("count = %q", got)
		}
	}
	if err := p.Stop(testContext(t)); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := p.Stop(testContext(t)); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
	if _, err := os.Stat(filepath.Join(opt.DataDir, clusterDirName, pidFileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stop left a lock file (%v): not an orderly shutdown", err)
	}
}

// TestPostgresStopsWhileItRestarts stops at every moment of a restart.
func TestPostgresStopsWhileItRestarts(t *testing.T) {
	opt := templated(t)
	opt.Restart = true
	for _, delay := range []time.Duration{0, 2 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
		p := startPostgres(t, opt)
		p.currentRun().signal(syscall.SIGKILL)
		time.Sleep(delay) // which moment it hits is left to chance
		ctx, cancel := context.WithTimeout(testContext(t), 20*time.Second)
		_ = p.Stop(ctx) // how the killed process ended
		if ctx.Err() != nil {
			t.Fatalf("after %s: Stop hangs", delay)
		}
		cancel()
		awaitGone(t, p.PID())
	}
}

func TestPostgresRefusesDirectoriesOfOtherVersions(t *testing.T) {
	opt := templated(t)
	stopPostgres(t, startPostgres(t, opt))
	path := filepath.Join(opt.DataDir, clusterDirName, "PG_VERSION")
	for content, want := range map[string]error{
		"99\n": ErrNewerDataDir, "14\n": ErrOlderDataDir, "x\n": ErrDataDirDamaged,
	} {
		writeAsServer(t, path, content)
		if _, err := StartPostgres(testContext(t), opt); !errors.Is(err, want) {
			t.Errorf("PG_VERSION %q: %v, want %v", content, err, want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := StartPostgres(testContext(t), opt); !errors.Is(err, ErrDataDirDamaged) {
		t.Errorf("without PG_VERSION: %v, want ErrDataDirDamaged", err)
	}
	writeAsServer(t, path, "18\n")
	startPostgres(t, opt) // none of the refusals touched the directory
}

func TestPostgresRefusesADirectoryInUse(t *testing.T) {
	opt := templated(t)
	p := startPostgres(t, opt)
	if _, err := StartPostgres(testContext(t), opt); !errors.Is(err, ErrDataDirInUse) {
		t.Errorf("our own second start: %v, want ErrDataDirInUse", err)
	}
	// A live server whose launcher is not us: only postmaster.pid tells.
	p.lock.unlock()
	ctx, cancel := context.WithTimeout(testContext(t), time.Second)
	defer cancel()
	_, err := StartPostgres(ctx, opt)
	if !errors.Is(err, ErrDataDirInUse) || !strings.Contains(err.Error(), strconv.Itoa(p.PID())) {
		t.Errorf("beside a foreign server: %v, want ErrDataDirInUse that names pid %d", err, p.PID())
	}
	one(t, connect(t, superuserDSN(p)), "SELECT 1") // which was left alone
}

// writeAsServer writes a file of the cluster with the owner of its folder.
func writeAsServer(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := statOf(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
}

// TestPostgresStartsAlthoughItsOldPIDWasReused is about containers, where the
// pid of the dead server soon belongs to something else.
func TestPostgresStartsAlthoughItsOldPIDWasReused(t *testing.T) {
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = zombie.Wait() })
	for name, pid := range map[string]int{"another process": os.Getpid(), "a zombie": zombie.Process.Pid} {
		t.Run(name, func(t *testing.T) {
			opt := templated(t)
			p := startPostgres(t, opt)
			path := filepath.Join(opt.DataDir, clusterDirName, pidFileName)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			stopPostgres(t, p)
			_, rest, _ := strings.Cut(string(data), "\n")
			writeAsServer(t, path, strconv.Itoa(pid)+"\n"+rest)
			lock := socketFile(filepath.Join(opt.DataDir, clusterDirName, socketDirName)) + ".lock"
			writeAsServer(t, lock, strconv.Itoa(pid)+"\n"+rest)
			startPostgres(t, opt)
		})
	}
}

func TestPostgresForgetsAnInterruptedInitialisation(t *testing.T) {
	opt := templated(t)
	half := filepath.Join(opt.DataDir, clusterDirName+".new", "base")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	startPostgres(t, opt)
}

func TestPostgresInAVeryLongDirectory(t *testing.T) {
	opt := templated(t)
	opt.DataDir = filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "postgres")
	p := startPostgres(t, opt)
	one(t, connect(t, superuserDSN(p)), "SELECT 1")
	link := p.linkDir
	stopPostgres(t, p)
	if _, err := os.Lstat(link); link == "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's short name %q is still there after the stop (%v)", link, err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	if _, err := StartPostgres(testContext(t), opt); !errors.Is(err, ErrSocketPath) {
		t.Errorf("with a long TMPDIR: %v, want ErrSocketPath", err)
	}
}

func TestPostgresStartErrorsAreNamed(t *testing.T) {
	for line, want := range map[string]error{
		`FATAL:  could not write to file "pg_wal/xlogtemp.1": No space left on device`: ErrNoSpace,
		`FATAL:  lock file "postmaster.pid" already exists`:                            errRemains,
		`FATAL:  pre-existing shared memory block (key 1, ID 2) is still in use`:       errRemains,
		`FATAL:  configuration file "/x/postgresql.conf" contains errors`:              ErrStart,
		`LOG:  unrecognised`: ErrStart,
	} {
		l := newEngineLog(PostgresOptions{DataDir: "x"}.mustDefaults(t).Logger)
		l.add(line)
		if err := l.startError(errors.New("exit status 1")); !errors.Is(err, want) || !strings.Contains(err.Error(), line[8:]) {
			t.Errorf("%q gives %v, want %v", line, err, want)
		}
	}
}

func (opt PostgresOptions) mustDefaults(t *testing.T) PostgresOptions {
	t.Helper()
	opt, err := opt.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return opt
}

func TestPostgresRefusesAWrongSettingWithItsOwnWords(t *testing.T) {
	opt := templated(t)
	opt.Settings = map[string]string{"no_such_setting": "1"}
	_, err := StartPostgres(testContext(t), opt)
	if !errors.Is(err, ErrStart) || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("err = %v, want ErrStart with the server's words", err)
	}
}
