package embedded

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestPostgresIsCopiedOutOfAClosedFolder(t *testing.T) {
	source, err := FindPostgres("")
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	first, err := copyPostgresOut(source, cache)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(first)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the copy has mode %v (%v)", info.Mode().Perm(), err)
	}
	if out, err := exec.Command(filepath.Join(first, "bin", "postgres"), "--version").Output(); err != nil {
		t.Errorf("the copy does not run: %v %s", err, out)
	}
	if second, err := copyPostgresOut(source, cache); err != nil || second != first {
		t.Errorf("the second use: %s, %v", second, err)
	}
	if err := os.WriteFile(filepath.Join(first, "lib", "libpq.so.5.18"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := copyPostgresOut(source, cache); !errors.Is(err, ErrChecksum) {
		t.Errorf("a changed copy: %v, want ErrChecksum", err)
	}
}

func TestSymlinksOfTheLoaderAreRepaired(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	links := `[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"}]`
	if err := os.WriteFile(filepath.Join(dir, "pg-symlinks.json"), []byte(links), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "lib", "libpq.so.5")
	if err := os.Symlink("/tmp/evil.so", link); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ensureSymlinks(dir); err != nil {
			t.Fatal(err)
		}
		if to, err := os.Readlink(link); err != nil || to != "libpq.so.5.18" {
			t.Fatalf("link to %q, %v", to, err)
		}
	}
}
