package embedded

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// childStart asks the starter goroutine for one exec.Cmd.Start.
type childStart struct {
	cmd    *exec.Cmd
	result chan<- error
}

// childStarts hands commands to the one goroutine that starts children. It is
// process-wide on purpose: what it protects is a property of an OS thread, of
// which every package user must share the same one.
var childStarts = sync.OnceValue(func() chan<- childStart {
	requests := make(chan childStart)
	go func() {
		// The kernel sends PDEATHSIG when the *thread* that forked ends, not
		// when its process does. Go ends threads as it pleases, so a child
		// started from an ordinary goroutine may be killed at any moment while
		// the parent lives. This goroutine keeps its thread and never returns.
		runtime.LockOSThread()
		for r := range requests {
			r.result <- r.cmd.Start()
		}
	}()
	return requests
})

// StartChild starts cmd so that the kernel sends it sig as soon as this process
// dies, however it dies; that is SIGKILL for a child without anything to tidy
// up and SIGQUIT for Postgres, whose postmaster then ends its own children.
//
// The child stays in the caller's process group, so a signal to the whole group
// reaches it too. cmd.SysProcAttr is kept (credentials, for example) and
// completed; the caller still calls cmd.Wait. Where the platform has no such
// signal (anything but Linux) the child is started without it.
//
// Errors are those of [exec.Cmd.Start].
func StartChild(cmd *exec.Cmd, sig syscall.Signal) error {
	setParentDeathSignal(cmd, sig)
	result := make(chan error, 1)
	childStarts() <- childStart{cmd: cmd, result: result}
	return <-result
}
