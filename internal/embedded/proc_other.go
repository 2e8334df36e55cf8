//go:build !linux

package embedded

import "syscall"

// reachByDescriptor: there is no /proc to reach a directory through.
const reachByDescriptor = false

// whoHas cannot look at a process's working directory here; a live pid in a
// lock file is taken for the server.
func whoHas(pid int, _ string) pidOwner {
	if err := syscall.Kill(pid, 0); err == syscall.ESRCH {
		return pidGone
	}
	return pidServer
}
