package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/load"
)

// runsTheProgram is set where this test binary is to be the program itself.
const runsTheProgram = "FAULTS_TEST_RUNS_THE_PROGRAM"

// init lets this binary be the server under test: before the tests' own main,
// which starts what they share. So does its ClickHouse child, which would else
// run all tests again.
func init() {
	embedded.MaybeChild()
	if os.Getenv(runsTheProgram) != "" {
		main() // never returns
	}
}

// The load of each fault: paced, so that the fault falls into it.
const (
	faultRate   = 1500 // events per second
	faultEvents = 6000
	// faultRecovery is how soon everything must run again by itself.
	faultRecovery = 20 * time.Second
)

// faultServer is the program under test.
type faultServer struct {
	*smokeServer
	token string
	loads []*smoke
	seed  uint64
}

// startFaultServer starts the program on a directory of its own; prepare may
// change what it is started with.
func startFaultServer(t *testing.T, prepare func(*smokeServer)) *faultServer {
	t.Helper()
	srv := newFaultServer(t)
	if prepare != nil {
		prepare(srv.smokeServer)
	}
	srv.mustStart(t)
	token, err := srv.smokeServer.token()
	if err != nil {
		t.Fatal(err)
	}
	srv.token = token
	return srv
}

// newFaultServer prepares a server without starting it.
func newFaultServer(t *testing.T) *faultServer {
	t.Helper()
	dir := engineTempDir(t)
	srv, err := newSmokeServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	srv.env = append(srv.env, runsTheProgram+"=1")
	t.Cleanup(func() {
		if _, err := srv.kill(); err != nil {
			t.Error(err)
		}
		srv.close()
		if !t.Failed() {
			return
		}
		text, err := os.ReadFile(srv.log.Name())
		t.Logf("the server's messages (%v):\n%s", err, text[max(0, len(text)-20_000):])
	})
	return &faultServer{smokeServer: srv, seed: 1}
}

// engineTempDir is a temporary folder that the engines' unprivileged user may
// pass through, which t.TempDir is not.
func engineTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tallystick-faults-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (f *faultServer) mustStart(t *testing.T) {
	t.Helper()
	_, err := f.start(t.Context())
	if err == nil {
		return
	}
	if f.cmd != nil && !f.gone() { // it hangs: have it say where
		_ = f.cmd.Process.Signal(syscall.SIGQUIT)
		f.awaitEnd(t, 5*time.Second)
	}
	t.Fatal(err)
}

// faultLoad is a load that runs while something breaks.
type faultLoad struct {
	t     *testing.T
	srv   *faultServer
	acked atomic.Int64
	done  chan struct{}
}

// under runs a load, breaks something in the middle of it, and afterwards holds
// every entry of the ledger and every report against the oracle.
func (f *faultServer) under(t *testing.T, breaks func(t *testing.T, l *faultLoad)) *load.Result {
	t.Helper()
	f.seed++
	s := &smoke{
		f: &smokeFlags{seed: f.seed}, log: testLog{t}, begin: time.Now(), srv: f.smokeServer,
		verified: map[string]*client.Verification{}, ledgers: map[string]*smokeLedger{},
	}
	s.api = client.New(f.url(), f.token)
	t.Cleanup(s.api.Close)
	l := &faultLoad{t: t, srv: f, done: make(chan struct{})}
	s.load = load.Options{
		Events: faultEvents, Seed: f.seed, Base: time.Now(), Tenants: 4, TenantPrefix: fmt.Sprintf("fault-%d", f.seed), HotShare: smokeHotShare,
		URL: f.url(), Token: f.token, Connections: 4, Batch: 100, Rate: faultRate, Timeout: 10 * time.Second, Deadline: time.Minute,
		Faults:     load.Faults{Duplicates: 0.05, Late: 0.02, Reorder: 0.10, Poison: 0.01, Conflicts: 0.005, Unpriced: 0.01},
		OnProgress: func(_, acked int64) { l.acked.Store(acked) },
	}
	var err error
	if s.want, err = expectSmoke(s.load); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var loadErr error
	go func() {
		defer close(l.done)
		s.res, loadErr = load.Run(ctx, s.load)
	}()
	l.awaitAcked(1000)
	breaks(t, l)
	<-l.done
	if loadErr != nil {
		t.Fatal(loadErr)
	}
	for _, step := range []func(context.Context) error{s.drain, s.verifyLedgers, s.checkReports, s.readLedgers, s.checkLedgers} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if s.faults > 0 {
		t.Fatalf("%d differences", s.faults)
	}
	f.loads = append(f.loads, s)
	return s.res
}

// checkCounters stops the server in order and compares the duplicates and
// conflicts that its ledger counted with those of all loads.
func (f *faultServer) checkCounters(t *testing.T) {
	t.Helper()
	if _, err := f.stop(smokeStopTime); err != nil {
		t.Fatal(err)
	}
	for _, s := range f.loads {
		s.log = testLog{t}
		if err := s.checkCounters(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.faults > 0 {
			t.Errorf("%d differences", s.faults)
		}
	}
}

// awaitAcked waits until that many events more are acknowledged, or all are.
func (l *faultLoad) awaitAcked(more int64) {
	l.t.Helper()
	goal := l.acked.Load() + more
	l.await("the load goes on", faultRecovery, func() bool {
		select {
		case <-l.done:
			return true // under looks at how it ended
		default:
			return l.acked.Load() >= goal
		}
	})
}

// await polls until ok.
func (l *faultLoad) await(what string, limit time.Duration, ok func() bool) {
	l.t.Helper()
	await(l.t, what, limit, ok)
}

// await polls another process, which has no event to wait for.
func await(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// testLog is a test's log as a writer.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

// postmaster is the process id of the server's Postgres, 0 without one.
func (f *faultServer) postmaster() int {
	file, err := os.Open(filepath.Join(f.dataDir(), "postgres", "pgdata", "postmaster.pid"))
	if err != nil {
		return 0
	}
	defer file.Close()
	line, _ := bufio.NewReader(file).ReadString('\n')
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || !slices.Contains(descendants(f.cmd.Process.Pid), pid) {
		return 0
	}
	return pid
}

// clickhouse is the process id of the server's ClickHouse, 0 without one.
func (f *faultServer) clickhouse() int {
	for _, pid := range descendants(f.cmd.Process.Pid) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may just have gone
		if bytes.HasPrefix(text, []byte("tallystick-clickhouse")) {
			return pid
		}
	}
	return 0
}

// kill9 kills an engine and waits for its successor.
func (l *faultLoad) kill9(pid func() int) {
	l.t.Helper()
	old := pid()
	if old == 0 {
		l.t.Fatal("the engine does not run")
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	began := time.Now()
	l.await("the engine runs again", faultRecovery, func() bool { p := pid(); return p != 0 && p != old })
	l.await("the server is ready again", faultRecovery, func() bool { code, _ := l.ready(); return code == 200 })
	l.t.Logf("ready again %.2f s after the kill", time.Since(began).Seconds())
	if l.srv.gone() {
		l.t.Fatal(l.srv.lastWords("the server ended by itself"))
	}
}

// gone says whether the server's process has ended.
func (f *faultServer) gone() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// One server survives, one after the other, the death and the standstill of
// each of its engines and being stopped itself, each under load.
func TestFaults(t *testing.T) {
	srv := startFaultServer(t, nil)
	for _, step := range []struct {
		name string
		run  func(t *testing.T, srv *faultServer)
	}{
		{"kill -9 Postgres", killPostgres},
		{"kill -9 ClickHouse", killClickHouse},
		{"Postgres stands still", stopPostgres},
		{"wrong use", wrongUseOfServer},
		{"interrupt", interrupt},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, srv) }) {
			return // what follows would only repeat it
		}
	}
	srv.checkCounters(t)
}

// The log alone makes an event durable: without Postgres every event is taken at
// the first attempt.
func killPostgres(t *testing.T, srv *faultServer) {
	res := srv.under(t, func(_ *testing.T, l *faultLoad) {
		l.kill9(srv.postmaster)
		l.awaitAcked(1000)
		l.kill9(srv.postmaster)
	})
	if res.Retries != 0 {
		t.Errorf("%d requests had to be sent again", res.Retries)
	}
}

// Without ClickHouse every event is taken, and a report is refused with a time
// to come again until it can be answered.
func killClickHouse(t *testing.T, srv *faultServer) {
	res := srv.under(t, func(t *testing.T, l *faultLoad) {
		stop, answers := make(chan struct{}), make(chan map[int]int)
		go func() { answers <- l.reportUntil(stop) }()
		l.awaitAcked(200)
		l.kill9(srv.clickhouse)
		close(stop)
		got := <-answers
		t.Logf("reports by status: %v", got)
		if got[200] == 0 || got[503] == 0 {
			t.Error("want reports answered 200, and 503 without ClickHouse")
		}
		if code, _, _ := l.report(); code != 200 {
			t.Errorf("a report is answered %d afterwards", code)
		}
	})
	if res.Retries != 0 {
		t.Errorf("%d requests had to be sent again", res.Retries)
	}
}

// reportUntil asks for a report again and again, and counts the answers.
func (l *faultLoad) reportUntil(stop <-chan struct{}) map[int]int {
	got := map[int]int{}
	for {
		select {
		case <-stop:
			return got
		case <-time.After(20 * time.Millisecond):
		}
		code, header, body := l.report()
		got[code]++
		switch {
		case code == 200:
		case code != 503, header.Get("Retry-After") == "", header.Get("Content-Type") != "application/problem+json":
			l.t.Errorf("a report is answered %d, Retry-After %q, %s: %s", code, header.Get("Retry-After"), header.Get("Content-Type"), body)
		}
	}
}

// A Postgres that does not answer stops nobody but the ledger.
func stopPostgres(t *testing.T, srv *faultServer) {
	const still = 5 * time.Second
	res := srv.under(t, func(t *testing.T, l *faultLoad) {
		master := srv.postmaster()
		all := append([]int{master}, descendants(master)...)
		signalAll(t, all, syscall.SIGSTOP)
		began, before := time.Now(), l.acked.Load()
		l.await("/readyz names Postgres", still, func() bool {
			code, states := l.ready()
			return code == 503 && states["postgres"] == "unavailable" && states["kafka"] == "ok" && states["clickhouse"] == "ok"
		})
		time.Sleep(still - time.Since(began))
		if l.acked.Load() == before {
			t.Error("nothing was acknowledged meanwhile")
		}
		signalAll(t, all, syscall.SIGCONT)
		l.await("the server is ready again", faultRecovery, func() bool { code, _ := l.ready(); return code == 200 })
		if srv.postmaster() != master {
			t.Error("Postgres was started again")
		}
	})
	if res.Retries != 0 {
		t.Errorf("%d requests had to be sent again", res.Retries)
	}
}

func signalAll(t *testing.T, pids []int, sig syscall.Signal) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// Ctrl-C under load ends the program in order, a second one at once, and the
// next start goes on.
func interrupt(t *testing.T, srv *faultServer) {
	srv.under(t, func(t *testing.T, l *faultLoad) {
		began := time.Now()
		srv.signal(t, syscall.SIGINT)
		srv.awaitEnd(t, smokeStopTime)
		if srv.err != nil {
			t.Fatal(srv.lastWords(fmt.Sprintf("after SIGINT: %v", srv.err)))
		}
		t.Logf("ended in order in %.2f s", time.Since(began).Seconds())
		srv.mustStart(t)
		l.awaitAcked(1000)

		engines := descendants(srv.cmd.Process.Pid)
		srv.signal(t, syscall.SIGINT)
		time.Sleep(150 * time.Millisecond) // far less than an orderly end takes
		began = time.Now()
		srv.signal(t, syscall.SIGINT)
		srv.awaitEnd(t, 5*time.Second)
		if took := time.Since(began); took > 2*time.Second || srv.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
			t.Errorf("the second SIGINT ended it in %s: %v", took, srv.err)
		}
		await(t, "the engines are gone too", faultRecovery, func() bool {
			return !slices.ContainsFunc(engines, func(pid int) bool { return syscall.Kill(pid, 0) == nil })
		})
		srv.mustStart(t)
	})
}

func (f *faultServer) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := f.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (f *faultServer) awaitEnd(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case <-f.done:
	case <-time.After(limit):
		t.Fatal(f.lastWords(fmt.Sprintf("it did not end within %s", limit)))
	}
}
