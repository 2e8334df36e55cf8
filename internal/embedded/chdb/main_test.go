package chdb_test

import (
	"fmt"
	"os"
	"testing"
)

// testDir holds the engine of this package's tests.
var testDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tallystick-chdb-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	testDir = dir
	return m.Run()
}
