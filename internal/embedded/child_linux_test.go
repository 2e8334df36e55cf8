package embedded

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestChildOutlivesTheThreadOfItsCaller is about the trap that StartChild
// exists for: the parent-death signal follows the thread, not the process.
func TestChildOutlivesTheThreadOfItsCaller(t *testing.T) {
	guarded := exec.Command("sleep", "60")
	unguarded := exec.Command("sleep", "60")
	err := onAThreadThatEnds(func() error {
		setParentDeathSignal(unguarded, syscall.SIGKILL)
		return errors.Join(StartChild(guarded, syscall.SIGKILL), unguarded.Start())
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unguarded.Process.Kill() })
	// The unguarded child dies with the thread; that is the event to wait for.
	died := make(chan error, 1)
	go func() { died <- unguarded.Wait() }()
	select {
	case <-died:
	case <-time.After(10 * time.Second):
		t.Fatal("the unguarded child lives, so this test proves nothing")
	}
	if gone(guarded.Process.Pid) {
		t.Error("the guarded child died with its caller's thread")
	}
	_ = guarded.Process.Kill()
	_ = guarded.Wait()
}

// onAThreadThatEnds runs f on an OS thread that ends afterwards.
func onAThreadThatEnds(f func() error) error {
	result, release := make(chan error), make(chan struct{})
	defer close(release)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with this goroutine
		if syscall.Gettid() == syscall.Getpid() {
			// Not so the main thread: keep it busy while another takes its place.
			go func() { result <- onAThreadThatEnds(f) }()
			<-release
			return
		}
		result <- f()
	}()
	return <-result
}

func TestChildStaysInTheProcessGroupAndKeepsItsAttributes(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: false, Noctty: false}
	if err := StartChild(cmd, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	pgid, err := syscall.Getpgid(cmd.Process.Pid)
	if err != nil || pgid != syscall.Getpgrp() {
		t.Errorf("child's process group is %d (%v), ours is %d", pgid, err, syscall.Getpgrp())
	}
	if cmd.SysProcAttr.Pdeathsig != syscall.SIGTERM {
		t.Errorf("parent-death signal is %v", cmd.SysProcAttr.Pdeathsig)
	}
}

func TestStartChildReportsAMissingProgram(t *testing.T) {
	done := make(chan error, 1)
	go func() { done <- StartChild(exec.Command("/nonexistent/program"), syscall.SIGKILL) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("starting a missing program succeeded")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("StartChild hangs")
	}
}
