//go:build !linux

package spool

import "os"

// Sync is the strongest that the platform has: on macOS os.File.Sync also
// empties the drive's cache.
func (realDisk) Sync(f *os.File) error { return f.Sync() }
