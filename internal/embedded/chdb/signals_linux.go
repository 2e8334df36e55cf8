package chdb

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lastSignal is the highest signal number of Linux.
const lastSignal = 64

// signalAction is the kernel's sigaction structure, 32 bytes on amd64 and
// arm64. It is only copied, never looked into.
type signalAction [4]uint64

// signalActions is what the process does on each signal.
type signalActions [lastSignal + 1]signalAction

// saveSignals reads every signal's action.
//
// The engine replaces several of Go's handlers, also while it is being loaded.
// Without Go's SIGSEGV handler a nil dereference anywhere in this process is
// fatal instead of a panic, and without its SIGURG handler goroutines are not
// preempted, so all actions are saved before dlopen and put back after connect.
func saveSignals() (saved signalActions, err error) {
	for n := 1; n <= lastSignal; n++ {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), 0, uintptr(unsafe.Pointer(&saved[n])), 8, 0, 0)
		if errno != 0 {
			return saved, fmt.Errorf("chdb: read the action of signal %d: %w", n, errno)
		}
	}
	return saved, nil
}

// restore puts back every action that differs from the saved one.
func (saved *signalActions) restore() error {
	now, err := saveSignals()
	if err != nil {
		return err
	}
	for n := 1; n <= lastSignal; n++ {
		if now[n] == saved[n] {
			continue
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&saved[n])), 0, 8, 0, 0)
		if errno != 0 {
			return fmt.Errorf("chdb: restore the action of signal %d: %w", n, errno)
		}
	}
	return nil
}
