package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/tallystick/tallystick/internal/embedded/chdb"
)

const (
	// DefaultClickHouseMemoryBytes bounds the engine's own allocations, so that
	// with its library's pages it stays well below 1 GiB.
	DefaultClickHouseMemoryBytes = 600 << 20
	// DefaultClickHouseRequestBytes bounds one insert as sent.
	DefaultClickHouseRequestBytes = 512 << 20
	// DefaultClickHouseStartTimeout bounds a start, loading of parts included.
	DefaultClickHouseStartTimeout = 2 * time.Minute

	minClickHouseMemoryBytes = 256 << 20
	maxClickHouseReaders     = 64

	// clickhouseScheme is understood by package clickhouse only.
	clickhouseScheme = "clickhouse+unix"
	clickhouseSocket = "clickhouse.sock"

	// oldChildWait is how long the child of a killed parent may take to go. The
	// kernel kills it at once; returning its memory takes a moment.
	oldChildWait = 5 * time.Second
	oldChildPoll = 20 * time.Millisecond
)

// ClickHouseOptions say where and how an embedded ClickHouse runs.
type ClickHouseOptions struct {
	// DataDir is the private folder of this engine; it is created when missing.
	DataDir string
	// LibPath is the absolute path of libchdb; see [FindCHDB], which verifies it.
	LibPath string
	// MaxMemoryBytes bounds the engine's allocations, at least 256 MiB; 0 means
	// DefaultClickHouseMemoryBytes.
	MaxMemoryBytes int64
	// Readers is how many queries run at once, 1 to 64; 0 means twice the
	// processors, at least 4.
	Readers int
	// MaxRequestBytes bounds the body of one request; 0 means
	// DefaultClickHouseRequestBytes.
	MaxRequestBytes int64
	// StartTimeout bounds the start; 0 means DefaultClickHouseStartTimeout.
	StartTimeout time.Duration
	// Logger gets the engine's complaints; nil discards them.
	Logger *slog.Logger
}

func (opt ClickHouseOptions) withDefaults() (ClickHouseOptions, error) {
	if opt.DataDir == "" {
		return opt, fmt.Errorf("%w: no ClickHouse data directory given", ErrDataDirDamaged)
	}
	if !filepath.IsAbs(opt.LibPath) {
		return opt, fmt.Errorf("%w: the path of libchdb must be absolute", ErrEngineMissing)
	}
	var err error
	if opt.DataDir, err = filepath.Abs(opt.DataDir); err != nil {
		return opt, err
	}
	orDefault(&opt.MaxMemoryBytes, DefaultClickHouseMemoryBytes)
	orDefault(&opt.Readers, max(4, 2*runtime.NumCPU()))
	orDefault(&opt.MaxRequestBytes, DefaultClickHouseRequestBytes)
	orDefault(&opt.StartTimeout, DefaultClickHouseStartTimeout)
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.MaxMemoryBytes < minClickHouseMemoryBytes || opt.Readers < 1 || opt.Readers > maxClickHouseReaders || opt.MaxRequestBytes < 1 {
		return opt, fmt.Errorf("%w: ClickHouse needs %d bytes of memory and 1 to %d readers", ErrUnsafeSetting, minClickHouseMemoryBytes, maxClickHouseReaders)
	}
	return opt, nil
}

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// ClickHouse is a running engine, a child of this process.
type ClickHouse struct {
	socket  string
	version string

	cmd *exec.Cmd
	// life is the child's standard input. Its end tells the child to stop, also
	// where the platform has no parent-death signal.
	life io.Closer
	log  *engineLog
	done chan struct{}
	err  error // how the process ended; read after done is closed

	release   sync.Once
	lock      *dirLock
	socketDir string // a temporary folder made for the socket, or ""
}

// StartClickHouse starts the engine on opt.DataDir and returns when it answers.
// The calling program must call [MaybeChild] first thing in main, because the
// child is this very binary.
//
// The engine ends when this process does, or by [ClickHouse.Stop]; ctx only
// bounds the start. A directory is usable again after a kill -9 of either
// process: acknowledged inserts are on disk.
//
// Errors: [ErrEngineMissing], [ErrNewerDataDir], [ErrDataDirInUse],
// [ErrDataDirDamaged], [ErrNoSpace], [ErrSocketPath], [ErrUnsafeSetting],
// [ErrStart].
func StartClickHouse(ctx context.Context, opt ClickHouseOptions) (_ *ClickHouse, err error) {
	if opt, err = opt.withDefaults(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(opt.LibPath); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEngineMissing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, opt.StartTimeout)
	defer cancel()
	run := filepath.Join(opt.DataDir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, spaceError(fmt.Errorf("creating the ClickHouse directory: %w", err))
	}
	c := &ClickHouse{log: newEngineLog(opt.Logger.With("engine", "clickhouse")), done: make(chan struct{})}
	defer func() {
		if err != nil {
			c.releaseFiles()
		}
	}()
	if c.lock, err = lockAfterOldChild(ctx, opt.DataDir); err != nil {
		return nil, err
	}
	listener, err := c.listen(run)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	return c, c.start(ctx, opt, run, listener)
}

// lockAfterOldChild takes the directory's lock, which a child shares with its
// parent, so that it is free only when both are gone.
func lockAfterOldChild(ctx context.Context, dir string) (*dirLock, error) {
	deadline := time.Now().Add(oldChildWait)
	for {
		lock, err := lockDir(dir)
		if !errors.Is(err, ErrDataDirInUse) || time.Now().After(deadline) {
			return lock, err
		}
		if err := pause(ctx, oldChildPoll); err != nil {
			return nil, err
		}
	}
}

// listen binds the socket here, so that clients may connect before the child
// accepts, and so that the child never needs the path.
func (c *ClickHouse) listen(run string) (*os.File, error) {
	c.socket = filepath.Join(run, clickhouseSocket)
	if len(c.socket) > maxSocketPath {
		dir, err := shortDir(run)
		if err != nil {
			return nil, spaceError(fmt.Errorf("creating the folder of the ClickHouse socket: %w", err))
		}
		c.socketDir, c.socket = dir, filepath.Join(dir, clickhouseSocket)
	}
	if len(c.socket) > maxSocketPath {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes; set TMPDIR to a shorter path or choose a shorter data directory", ErrSocketPath, c.socket, maxSocketPath)
	}
	// We hold the lock, so a socket file here is a leftover.
	if err := os.Remove(c.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("binding the ClickHouse socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

// shortDir makes a private temporary folder whose name depends on dir alone, so
// that an engine that is started again comes back at the same address. A folder
// of that name that somebody else made is not used.
func shortDir(dir string) (string, error) {
	sum := sha256.Sum256([]byte(dir))
	short := filepath.Join(os.TempDir(), "tallystick-"+hex.EncodeToString(sum[:8]))
	err := os.Mkdir(short, 0o700)
	if !errors.Is(err, os.ErrExist) {
		return short, err
	}
	info, err := os.Lstat(short)
	if err != nil {
		return "", err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm() != 0o700 || !ok || int(owner.Uid) != os.Getuid() {
		return os.MkdirTemp("", "tallystick-")
	}
	return short, nil
}

// start runs the child and waits until it says that it is ready.
func (c *ClickHouse) start(ctx context.Context, opt ClickHouseOptions, run string, listener *os.File) error {
	status, statusWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	defer status.Close()
	defer statusWriter.Close()
	cmd, err := childCommand(listener, statusWriter, c.lock.f)
	if err != nil {
		return err
	}
	input, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := StartChild(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	c.cmd, c.life = cmd, input
	go c.watch(c.log.follow(stderr))
	statusWriter.Close()
	listener.Close()
	err = c.greet(ctx, chdb.Config{
		LibPath:         opt.LibPath,
		DataDir:         filepath.Join(opt.DataDir, "data"),
		RunDir:          run,
		VersionFile:     filepath.Join(opt.DataDir, "engine-version"),
		MaxMemoryBytes:  opt.MaxMemoryBytes,
		Readers:         opt.Readers,
		MaxRequestBytes: opt.MaxRequestBytes,
	}, input, status)
	if err != nil {
		_ = cmd.Process.Kill()
		<-c.done
	}
	return err
}

// watch reaps the child after its last words and frees its directory.
func (c *ClickHouse) watch(logDone <-chan struct{}) {
	<-logDone
	err := c.cmd.Wait()
	if err != nil {
		err = fmt.Errorf("ClickHouse ended: %w: %s", err, c.log.complaint())
	}
	c.err = err
	c.releaseFiles()
	close(c.done)
}

// DSN returns the address by which package clickhouse reaches database.
func (c *ClickHouse) DSN(database string) string {
	u := url.URL{Scheme: clickhouseScheme, Path: c.socket}
	if database != "" {
		u.RawQuery = url.Values{"database": {database}}.Encode()
	}
	return u.String()
}

// Version returns the engine's version, for example 26.7.2.1.
func (c *ClickHouse) Version() string { return c.version }

// PID returns the process id of the engine's process.
func (c *ClickHouse) PID() int { return c.cmd.Process.Pid }

// Done is closed when the engine has ended, wanted or not.
func (c *ClickHouse) Done() <-chan struct{} { return c.done }

// Wait returns when the engine has ended: nil after an orderly stop, else how it
// ended with its last words.
func (c *ClickHouse) Wait() error {
	<-c.done
	return c.err
}

// Stop ends the engine: running requests finish, then background work stops.
// When ctx ends first the process is killed, which loses nothing that was
// acknowledged. Safe to call twice, or after the engine has ended by itself.
func (c *ClickHouse) Stop(ctx context.Context) error {
	defer c.releaseFiles()
	// A second close fails, and so does one after the child's end: both mean that
	// it already knows.
	_ = c.life.Close()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	_ = c.cmd.Process.Kill()
	<-c.done
	return fmt.Errorf("stopping ClickHouse: %w", ctx.Err())
}

// releaseFiles removes the socket and drops the lock.
func (c *ClickHouse) releaseFiles() {
	c.release.Do(func() {
		if c.lock == nil {
			return
		}
		if c.socket != "" {
			_ = os.Remove(c.socket)
		}
		if c.socketDir != "" {
			_ = os.RemoveAll(c.socketDir)
		}
		c.lock.unlock()
	})
}
