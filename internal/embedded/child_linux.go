package embedded

import (
	"os/exec"
	"syscall"
)

// setParentDeathSignal asks the kernel to signal the child when the starting
// thread ends. Go sets it after dropping privileges and then checks that the
// parent still lives, so there is no window in which the child can be missed.
func setParentDeathSignal(cmd *exec.Cmd, sig syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = sig
}
