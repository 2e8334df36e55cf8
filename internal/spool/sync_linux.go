package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// Sync leaves out what is not needed to read the data back, such as the time of
// the last change; the file's size is needed and is written.
func (realDisk) Sync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
