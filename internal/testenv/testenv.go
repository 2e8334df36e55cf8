// Package testenv gives every test package the real engines: a Postgres, a
// ClickHouse and a Kafka, each started on first use, once per test process, and
// stopped at its end.
//
// A package that uses it has one line of set-up:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// What it promises: each test gets an empty database, or a topic prefix, of its
// own, so tests may run in parallel and in any order. With these variables set
// the same functions use the servers they name instead of starting any:
//
//	TALLYSTICK_TEST_POSTGRES_DSN     a superuser's DSN
//	TALLYSTICK_TEST_CLICKHOUSE_DSN   a DSN with the right to create databases
//	TALLYSTICK_TEST_KAFKA_BROKERS    host:port,host:port
//	TALLYSTICK_TEST_KAFKA_SASL_USER, _SASL_PASSWORD, _SASL_MECHANISM, _TLS_CA
//
// What it never does: it never skips because an engine is missing, it fails.
// Only [Data] skips, when the shared data pack as a whole is absent.
package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/embedded"
)

// startTimeout bounds the start of one engine on a busy machine, stopTimeout
// its orderly stop.
const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
)

// env is what the engines of this test process share. It is process-wide
// because TestMain, which ends them, and the tests, which start them, meet
// nowhere else.
var env environment

type environment struct {
	mu      sync.Mutex // guards every field
	inMain  bool
	dir     string // temporary folder of all engines, "" until one is started
	dirLock *os.File
	stops   []func() error // newest last

	postgres   engine[*embedded.Postgres]
	clickhouse engine[*embedded.ClickHouse]
	kafka      engine[*embedded.Kafka]
}

// engine is one engine's outcome of its single start.
type engine[E any] struct {
	tried  bool
	server E
	err    error
}

// Main runs the tests of a package and ends the process with their exit code.
// It must be all that TestMain does: it first lets this test binary serve as
// the child process of the embedded ClickHouse, when started as one.
func Main(m *testing.M) {
	MainThen(m, func(code int) int { return code })
}

// MainThen is Main with something to do when tests and engines have ended, such
// as to print what was counted. It is given the exit code and returns it.
func MainThen(m *testing.M, then func(code int) int) {
	embedded.MaybeChild()
	os.Exit(then(runAndStop(m)))
}

func runAndStop(m *testing.M) int {
	env.mu.Lock()
	env.inMain = true
	env.mu.Unlock()
	code := m.Run()
	if err := env.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv: stopping the engines:", err)
		return max(code, 1)
	}
	return code
}

// stop ends the engines, newest first, and removes their data.
func (e *environment) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for i := len(e.stops) - 1; i >= 0; i-- {
		errs = append(errs, e.stops[i]())
	}
	e.stops = nil
	if e.dir != "" {
		errs = append(errs, os.RemoveAll(e.dir), e.dirLock.Close())
		e.dir = ""
	}
	return errors.Join(errs...)
}

// start runs begin on first use and keeps its outcome: an engine that failed
// once fails every test that needs it, at once and with the same reason.
func start[E any](t testing.TB, slot *engine[E], name string, begin func(ctx context.Context, dir string) (E, func() error, error)) E {
	t.Helper()
	env.mu.Lock()
	defer env.mu.Unlock()
	if !env.inMain {
		t.Fatal("testenv: the package's TestMain must call testenv.Main")
	}
	if !slot.tried {
		slot.tried = true
		var stop func() error
		dir, err := env.folder()
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
			slot.server, stop, err = begin(ctx, filepath.Join(dir, name))
			cancel()
		}
		if err == nil {
			env.stops = append(env.stops, stop)
		}
		slot.err = err
	}
	if slot.err != nil {
		t.Fatalf("testenv: %s did not start: %v", name, slot.err)
	}
	return slot.server
}

const folderPrefix = "tallystick-test-"

// folder returns the temporary folder of this process's engines. It first
// removes those of test processes that were killed. The caller holds e.mu.
func (e *environment) folder() (string, error) {
	if e.dir != "" {
		return e.dir, nil
	}
	removeAbandoned()
	dir, err := os.MkdirTemp("", folderPrefix)
	if err != nil {
		return "", err
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return "", err
	}
	e.dir, e.dirLock = dir, lock
	return dir, nil
}

// lockFolder marks dir as in use for as long as this process lives.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "in-use"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// abandonedAge keeps a folder from being taken for abandoned between its
// creation and its lock, and while the children of a killed process still end.
const abandonedAge = 2 * time.Minute

func removeAbandoned() {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), folderPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < abandonedAge {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		lock, err := lockFolder(dir)
		if err != nil {
			continue // its process lives
		}
		_ = os.RemoveAll(dir) // what remains is removed by the next run
		lock.Close()
	}
}

// uniqueName returns a short lower-case name for a database or a topic prefix.
func uniqueName() string {
	return "t_" + strings.ToLower(rand.Text()[:12])
}

// logger shows the engines' warnings when TALLYSTICK_TEST_LOG is set. Engines
// outlive single tests, so their log cannot go to one test's.
func logger() *slog.Logger {
	if os.Getenv("TALLYSTICK_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
