//go:build !linux

package embedded

import (
	"os/exec"
	"syscall"
)

// setParentDeathSignal does nothing: only Linux has a parent-death signal. An
// orderly stop still ends the children; after a kill -9 of the parent they stay
// until the next start finds them (see waitForOldPostmaster).
func setParentDeathSignal(*exec.Cmd, syscall.Signal) {}
