//go:build !linux

package chdb

// yieldMerges does nothing where threads have no priority of their own.
func yieldMerges() bool { return true }
