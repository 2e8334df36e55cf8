package embedded

import "syscall"

// changeTime returns the time of the last change to the inode.
func changeTime(st *syscall.Stat_t) (sec, nsec int64) { return int64(st.Ctim.Sec), int64(st.Ctim.Nsec) }
