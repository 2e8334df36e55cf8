package chdb

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The threads that merge parts have this name; mergeNice is how much they stand
// back for what somebody waits for. While every CPU is busy a merge runs slower
// and parts add up; at a thousand of a table the engine slows its inserts down.
const (
	mergeThread = "MergeMutate"
	mergeNice   = 10
)

// yieldMerges lowers the priority of the threads that merge, which all start at
// once, and reports whether there are any yet. The engine's own setting for this
// wants a capability that lowering does not need. A thread that keeps its
// priority only takes more of the CPU, so failures do no harm.
func yieldMerges() (found bool) {
	threads, _ := filepath.Glob("/proc/self/task/*/comm")
	for _, path := range threads {
		name, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(name)) != mergeThread {
			continue
		}
		tid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		found = true
		// The system call answers 20 less the nice value, of which a service may have been given more.
		if raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && 20-raw < mergeNice {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, mergeNice)
		}
	}
	return found
}
