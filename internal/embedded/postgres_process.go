package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// remainsWait is how long the remains of an earlier server may take to go:
	// a postmaster that was told to quit, backends that notice its death.
	remainsWait   = 10 * time.Second
	retryInterval = 50 * time.Millisecond
	// readyPoll is short because a warm start takes about 0.1 s; the file that
	// is polled is a few bytes in the page cache.
	readyPoll = 5 * time.Millisecond
	// logDrainWait is for the last log lines, which may come after the exit.
	logDrainWait = time.Second
)

// errRemains marks a failed start that will succeed once an earlier server's
// processes have gone.
var errRemains = errors.New("an earlier server on the directory has not quite ended")

// startServer starts the server and waits until it is ready, again and again
// while the remains of an earlier one are in the way.
func (p *Postgres) startServer(ctx context.Context, c cluster) error {
	deadline := time.Now().Add(remainsWait)
	if err := c.awaitOldPostmaster(ctx, deadline); err != nil {
		return err
	}
	for {
		err := p.launch(ctx, c)
		if !errors.Is(err, errRemains) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w", ErrDataDirInUse, err)
		}
		if err := pause(ctx, retryInterval); err != nil {
			return fmt.Errorf("%w: %w", ErrStart, err)
		}
	}
}

// launch makes one attempt.
func (p *Postgres) launch(ctx context.Context, c cluster) error {
	cmd, closeDir, err := c.command(c.dir, "postgres", c.args...)
	if err != nil {
		return err
	}
	defer closeDir()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.log.reset()
	logDone := p.log.follow(r)
	cmd.Stderr = w
	// SIGQUIT is Postgres's immediate shutdown: the postmaster ends its
	// children too. Data is as safe as after a crash, which is what this is.
	err = StartChild(cmd, syscall.SIGQUIT)
	w.Close()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStart, spaceError(err))
	}
	p.cmd, p.done = cmd, make(chan struct{})
	go p.watch(logDone)
	return p.awaitReady(ctx, c)
}

// watch reaps the process and publishes how it ended.
func (p *Postgres) watch(logDone <-chan struct{}) {
	err := p.cmd.Wait()
	// Backends hold the log's other end a little longer than the postmaster.
	select {
	case <-logDone:
	case <-time.After(logDrainWait):
	}
	if err != nil {
		p.err = p.log.startError(err)
	}
	close(p.done)
}

// awaitReady returns when the postmaster accepts connections, which it records
// in postmaster.pid.
func (p *Postgres) awaitReady(ctx context.Context, c cluster) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			if p.err == nil {
				return fmt.Errorf("%w: Postgres ended at once without an error", ErrStart)
			}
			return p.err
		case <-ctx.Done():
			p.signal(syscall.SIGQUIT)
			if !p.endsWithin(immediateStopWait) {
				p.signal(syscall.SIGKILL)
				p.endsWithin(killWait)
			}
			return fmt.Errorf("%w: Postgres was not ready in time (%w): %s", ErrStart, ctx.Err(), p.log.complaint())
		case <-tick.C:
			if pid, ready := readPostmasterPID(c.dir); ready && pid == p.PID() {
				return nil
			}
		}
	}
}

// startError says why the server ended, by its own last words.
func (l *engineLog) startError(exit error) error {
	text, complaint := l.text(), l.complaint()
	switch {
	case strings.Contains(text, "No space left on device"):
		return fmt.Errorf("%w: Postgres: %s; free some space or choose another data directory", ErrNoSpace, complaint)
	case strings.Contains(text, "lock file") && strings.Contains(text, "already exists"),
		strings.Contains(text, "pre-existing shared memory block"):
		return fmt.Errorf("%w (%w): %s", errRemains, exit, complaint)
	}
	return fmt.Errorf("%w: Postgres ended (%w): %s", ErrStart, exit, complaint)
}

const (
	pidFileName        = "postmaster.pid"
	pidFileStatusLine  = 7 // counted from 0; Postgres's LOCK_FILE_LINE_PM_STATUS
	pidFileReadyStatus = "ready"
)

// readPostmasterPID returns the pid in the cluster's postmaster.pid, 0 when
// there is none, and whether that postmaster says that it is ready.
func readPostmasterPID(clusterDir string) (pid int, ready bool) {
	data, err := os.ReadFile(filepath.Join(clusterDir, pidFileName))
	if err != nil {
		return 0, false
	}
	lines := strings.Split(string(data), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 {
		return 0, false
	}
	return pid, len(lines) > pidFileStatusLine && strings.TrimSpace(lines[pidFileStatusLine]) == pidFileReadyStatus
}

// awaitOldPostmaster waits until the postmaster named in postmaster.pid has
// gone. When the pid now belongs to some other process it corrects the file:
// Postgres would refuse to start for ever, which is what happens to containers,
// where the same few pids come back after every restart.
func (c *cluster) awaitOldPostmaster(ctx context.Context, deadline time.Time) error {
	for {
		pid, _ := readPostmasterPID(c.dir)
		if pid == 0 {
			return nil
		}
		switch whoHas(pid, c.dir) {
		case pidGone, pidUnknown: // Postgres itself judges these rightly
			return nil
		case pidOther:
			return c.disownPID(pid)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: Postgres with pid %d runs on %s; stop it or choose another data directory", ErrDataDirInUse, pid, c.dir)
		}
		if err := pause(ctx, retryInterval); err != nil {
			return fmt.Errorf("%w: waiting for the Postgres with pid %d to end: %w", ErrDataDirInUse, pid, err)
		}
	}
}

// impossiblePID is above the largest pid that Linux can give out.
const impossiblePID = 1<<22 + 1

// disownPID replaces the pid in the lock files by one that no process has. The
// rest of postmaster.pid stays: it names the shared memory by which Postgres
// still recognises backends of the dead server.
func (c *cluster) disownPID(pid int) error {
	path := filepath.Join(c.dir, pidFileName)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(data), "\n")
	if err := os.WriteFile(path, []byte(strconv.Itoa(impossiblePID)+"\n"+rest), 0o600); err != nil {
		return err
	}
	err = os.Remove(socketFile(filepath.Join(c.dir, socketDirName)) + ".lock")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the socket lock of the dead process %d: %w", pid, err)
	}
	return nil
}

// pidOwner says what is known about a pid found in a lock file.
type pidOwner int

const (
	pidGone    pidOwner = iota // no such process
	pidServer                  // a process whose working directory is the cluster
	pidOther                   // certainly another process
	pidUnknown                 // a process of another user that cannot be looked into
)
