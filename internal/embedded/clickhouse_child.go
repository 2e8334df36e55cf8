package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/tallystick/tallystick/internal/embedded/chdb"
)

// ChildEnv names the environment variable that makes this binary an engine's
// process instead of Tallystick. Only this package sets it.
const ChildEnv = "TALLYSTICK_ENGINE_CHILD"

const (
	clickhouseChild = "clickhouse"

	// Descriptors that the child inherits beside the standard three.
	childListener = 3
	childStatus   = 4

	// childHeapBytes is where Go's collector in the child works harder; blocks
	// in transit are all that it holds.
	childHeapBytes = 96 << 20

	childDrainTimeout  = 20 * time.Second
	childHeaderTimeout = 10 * time.Second
	childIdleTimeout   = 5 * time.Minute
)

// childReport is the one message of a child to its parent.
type childReport struct {
	Ready   bool   `json:"ready,omitempty"`
	Version string `json:"version,omitempty"`
	Fault   string `json:"fault,omitempty"`
	Message string `json:"message,omitempty"`
}

// Faults by which the parent chooses its sentinel error.
const (
	faultNewer   = "newer"
	faultLibrary = "library"
	faultStart   = "start"
)

// MaybeChild must be called first thing in main and in every TestMain of a
// package that starts ClickHouse. In a process that is to be an engine it runs
// the engine and exits; in any other it returns at once.
func MaybeChild() {
	if os.Getenv(ChildEnv) != clickhouseChild {
		return
	}
	if err := runClickHouseChild(); err != nil {
		fmt.Fprintln(os.Stderr, "ERROR:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// childCommand prepares this binary to be the engine's process. Its environment
// is empty but for what the loader and the engine need: no secret of ours can
// be read there.
func childCommand(files ...*os.File) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if runtime.GOOS == "linux" {
		// Also right after the file was replaced by an upgrade.
		exe = "/proc/self/exe"
	}
	cmd := exec.Command(exe)
	cmd.Args[0] = "tallystick-clickhouse"
	cmd.ExtraFiles = files
	cmd.Env = []string{ChildEnv + "=" + clickhouseChild, "TZ=UTC"}
	for _, name := range []string{"LD_LIBRARY_PATH", "TMPDIR", "GOCOVERDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd, nil
}

// greet sends the child its configuration and waits for its report.
func (c *ClickHouse) greet(ctx context.Context, cfg chdb.Config, input io.Writer, status *os.File) error {
	if err := json.NewEncoder(input).Encode(cfg); err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	defer context.AfterFunc(ctx, func() { _ = status.SetReadDeadline(time.Now()) })()
	var report childReport
	if err := json.NewDecoder(status).Decode(&report); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: ClickHouse was not ready in time: %w", ErrStart, ctx.Err())
		}
		// It ended without a word; its log has the reason.
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("%w: %w", ErrStart, c.err)
	}
	if !report.Ready {
		return report.error()
	}
	c.version = report.Version
	return nil
}

func (r childReport) error() error {
	sentinel := ErrStart
	switch r.Fault {
	case faultNewer:
		sentinel = ErrNewerDataDir
	case faultLibrary:
		sentinel = ErrEngineMissing
	}
	return fmt.Errorf("%w: %s", sentinel, r.Message)
}

// runClickHouseChild is the whole life of the engine's process.
func runClickHouseChild() error {
	// A Ctrl-C at the terminal and a service manager's stop reach the whole
	// group. The parent ends us when its last insert is done, by closing our
	// standard input or by dying.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	debug.SetMemoryLimit(childHeapBytes)
	status := os.NewFile(childStatus, "status")
	input := json.NewDecoder(os.Stdin)
	var cfg chdb.Config
	if err := input.Decode(&cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	listener, err := net.FileListener(os.NewFile(childListener, "listener"))
	if err != nil {
		return fmt.Errorf("take over the socket: %w", err)
	}
	engine, err := chdb.Open(cfg)
	if err != nil {
		report(status, childReport{Fault: faultOf(err), Message: err.Error()})
		return err
	}
	handler, err := engine.Handler(cfg)
	if err != nil {
		report(status, childReport{Fault: faultStart, Message: err.Error()})
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: childHeaderTimeout, IdleTimeout: childIdleTimeout}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	version, err := engine.Version()
	if err != nil {
		return err
	}
	report(status, childReport{Ready: true, Version: version})
	select {
	case err := <-failed:
		return err
	case <-endOf(os.Stdin):
	}
	ctx, cancel := context.WithTimeout(context.Background(), childDrainTimeout)
	defer cancel()
	// What is still running then is a query that nobody waits for.
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("finish the running requests: %w", err)
	}
	// The engine is not closed: what it acknowledged is on disk, the next start
	// clears away what a merge left half-done, and its destructors have been seen
	// to crash beside a merge that was still running.
	return nil
}

func faultOf(err error) string {
	switch {
	case errors.Is(err, chdb.ErrNewerData):
		return faultNewer
	case errors.Is(err, chdb.ErrLibrary):
		return faultLibrary
	}
	return faultStart
}

// report tells the parent; when that is gone there is nobody to tell.
func report(status *os.File, r childReport) {
	_ = json.NewEncoder(status).Encode(r)
	_ = status.Close()
}

// endOf is closed at the end of r.
func endOf(r io.Reader) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, r)
	}()
	return ended
}
