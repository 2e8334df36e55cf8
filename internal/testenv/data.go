package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// Data returns the path of a file of the shared data pack, for example
// Data(t, "llm/azure_llm_2023_code.csv.zst"). The pack lies beside the module,
// in ../shared/data. Where the whole pack is absent the test is skipped with a
// line that says so; a missing file of an existing pack fails it.
func Data(t testing.TB, name string) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	pack := filepath.Join(filepath.Dir(root), "shared", "data")
	if _, err := os.Stat(pack); os.IsNotExist(err) {
		t.Skipf("SKIPPED, NOT TESTED: the shared data pack (../shared/data) is absent, so %s could not be read", name)
	}
	path := filepath.Join(pack, filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("testenv: shared data: %v", err)
	}
	return path
}

// moduleRoot returns the nearest folder with a go.mod at or above the working
// directory, which for a test is its package's folder.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", os.ErrNotExist
		}
		dir = parent
	}
}
