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
	// immediateStopWait is Postgres's own patience with its children (5 s) and
	// a little more.
	immediateStopWait = 7 * time.Second

	minRestartDelay = 100 * time.Millisecond
	maxRestartDelay = 30 * time.Second
)

// errRemains marks a failed start that will succeed once an earlier server's
// processes have gone.
var errRemains = errors.New("an earlier server on the directory has not quite ended")

// postgresRun is one postmaster process.
type postgresRun struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how; read after done is closed
}

func (r *postgresRun) pid() int { return r.cmd.Process.Pid }

func (r *postgresRun) signal(sig syscall.Signal) {
	// An error means that the process is gone, which done reports.
	_ = r.cmd.Process.Signal(sig)
}

// endHard ends the process without a checkpoint, by ever stronger means.
func (r *postgresRun) endHard() {
	r.signal(syscall.SIGQUIT)
	select {
	case <-r.done:
	case <-time.After(immediateStopWait):
		r.signal(syscall.SIGKILL)
		<-r.done
	}
}

// supervise waits for the end of the server and, when asked to, starts it again
// until Stop is called.
func (p *Postgres) supervise(run *postgresRun, startTimeout time.Duration) {
	defer close(p.done)
	for run != nil {
		<-run.done
		p.err = run.err
		if !p.restart || p.stopping.Err() != nil {
			return
		}
		p.log.logger.Error("engine ended, starting it again", "err", run.err)
		run = p.startAgain(startTimeout)
	}
}

// startAgain tries, ever more slowly, until the server runs or Stop is called;
// then it returns nil.
func (p *Postgres) startAgain(startTimeout time.Duration) *postgresRun {
	for delay := minRestartDelay; ; delay = min(2*delay, maxRestartDelay) {
		ctx, cancel := context.WithTimeout(p.stopping, startTimeout)
		run, err := p.startServer(ctx)
		cancel()
		if err == nil {
			p.setRun(run)
			// Stop cancels first and then signals the current run: either it
			// saw this one, or the cancellation is seen here.
			if p.stopping.Err() != nil {
				run.signal(syscall.SIGINT)
			}
			return run
		}
		p.err = err
		if pause(p.stopping, delay) != nil {
			return nil
		}
		p.log.logger.Error("engine did not start, trying again", "err", err)
	}
}

// startServer starts the server and waits until it is ready, again and again
// while the remains of an earlier one are in the way.
func (p *Postgres) startServer(ctx context.Context) (*postgresRun, error) {
	deadline := time.Now().Add(remainsWait)
	if err := p.cluster.awaitOldPostmaster(ctx, deadline); err != nil {
		return nil, err
	}
	for {
		run, err := p.launch(ctx)
		if !errors.Is(err, errRemains) {
			return run, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w: %w", ErrDataDirInUse, err)
		}
		if err := pause(ctx, retryInterval); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStart, err)
		}
	}
}

// launch makes one attempt.
func (p *Postgres) launch(ctx context.Context) (*postgresRun, error) {
	cmd, closeDir, err := p.cluster.command(p.cluster.dir, "postgres", p.cluster.args...)
	if err != nil {
		return nil, err
	}
	defer closeDir()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.log.reset()
	logDone := p.log.follow(r)
	cmd.Stderr = w
	// SIGQUIT is Postgres's immediate shutdown: the postmaster ends its
	// children too. Data is as safe as after a crash, which is what this is.
	err = StartChild(cmd, syscall.SIGQUIT)
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, spaceError(err))
	}
	run := &postgresRun{cmd: cmd, done: make(chan struct{})}
	go run.watch(p.log, logDone)
	if err := run.awaitReady(ctx, p.cluster.dir, p.log); err != nil {
		return nil, err
	}
	return run, nil
}

// watch reaps the process and publishes how it ended.
func (r *postgresRun) watch(log *engineLog, logDone <-chan struct{}) {
	err := r.cmd.Wait()
	// Backends hold the log's other end a little longer than the postmaster.
	select {
	case <-logDone:
	case <-time.After(logDrainWait):
	}
	if err != nil {
		r.err = log.startError(err)
	}
	close(r.done)
}

// awaitReady returns when the postmaster accepts connections, which it records
// in postmaster.pid. After an error the process has ended.
func (r *postgresRun) awaitReady(ctx context.Context, clusterDir string, log *engineLog) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		select {
		case <-r.done:
			if r.err == nil {
				return fmt.Errorf("%w: Postgres ended at once without an error", ErrStart)
			}
			return r.err
		case <-ctx.Done():
			r.endHard()
			return fmt.Errorf("%w: Postgres was not ready in time (%w): %s", ErrStart, ctx.Err(), log.complaint())
		case <-tick.C:
			if pid, ready := readPostmasterPID(clusterDir); ready && pid == r.pid() {
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
