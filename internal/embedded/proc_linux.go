package embedded

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
)

// reachByDescriptor is set where a child can reach a directory through a
// descriptor that it inherited; see cluster.command.
const reachByDescriptor = true

// whoHas says whether pid is a process that works in clusterDir, as every
// Postgres process does.
func whoHas(pid int, clusterDir string) pidOwner {
	proc := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return pidGone
	}
	if isZombie(stat) {
		// Postgres counts it as alive; nobody may ever reap it.
		return pidOther
	}
	cwd, err := os.Stat(proc + "/cwd")
	switch {
	case errors.Is(err, fs.ErrPermission):
		return pidUnknown
	case err != nil:
		return pidGone
	}
	dir, err := os.Stat(clusterDir)
	if err == nil && os.SameFile(cwd, dir) {
		return pidServer
	}
	return pidOther
}
