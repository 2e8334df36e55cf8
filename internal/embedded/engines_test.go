package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindEnginesFindsTheInstalledPackages(t *testing.T) {
	e, err := FindEngines("")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{e.LibCHDB, filepath.Join(e.PostgresDir, "bin", "postgres")} {
		if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFindEnginesSaysWhatToDoWhenAPackageIsMissing(t *testing.T) {
	empty := t.TempDir()
	_, err := FindEngines(empty)
	if !errors.Is(err, ErrEngineMissing) {
		t.Fatalf("err = %v, want ErrEngineMissing", err)
	}
	for _, want := range []string{"make engines", EnginesDirEnv, chdbVersion, postgresVersion, empty} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the message lacks %q: %v", want, err)
		}
	}
	if _, err := StartPostgres(testContext(t), PostgresOptions{DataDir: t.TempDir(), EnginesDir: empty}); !errors.Is(err, ErrEngineMissing) {
		t.Errorf("StartPostgres: %v, want ErrEngineMissing", err)
	}
}

func TestAnExplicitFolderIsTheOnlyOneSearched(t *testing.T) {
	t.Setenv(EnginesDirEnv, t.TempDir())
	if _, err := FindPostgres(""); !errors.Is(err, ErrEngineMissing) {
		t.Errorf("with an empty %s: %v, want ErrEngineMissing", EnginesDirEnv, err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	root, _ := moduleRoot(wd)
	for _, dir := range []string{"deploy/engines", "deploy/engines/node_modules"} {
		if _, err := FindPostgres(filepath.Join(root, dir)); err != nil {
			t.Errorf("naming %s: %v", dir, err)
		}
	}
}

func TestWrongPlatform(t *testing.T) {
	_, err := platformPin(map[string]pin{"plan9/mips": {}}, "Postgres")
	if !errors.Is(err, ErrWrongPlatform) || !strings.Contains(err.Error(), "DSN") {
		t.Errorf("err = %v, want ErrWrongPlatform with the advice to give a DSN", err)
	}
}

// fakePackage writes a package with the given files and returns a pin that fits.
func fakePackage(t *testing.T, files map[string]string, tree bool) (pin, string) {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	root := t.TempDir()
	p := pin{pkg: "@test/engine", version: "1", files: map[string]string{}}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.files["bin/a"] = sha(files["bin/a"])
	if tree {
		p.tree = sha(fmt.Sprintf("%s  bin/a\n%s  lib/b\n", sha(files["bin/a"]), sha(files["lib/b"])))
	}
	return p, root
}

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestVerifyRefusesEveryChange(t *testing.T) {
	files := map[string]string{"bin/a": "program", "lib/b": "library"}
	changes := map[string]struct {
		change func(root string) error
		want   error
		says   string
	}{
		"pinned file": {func(root string) error { return os.WriteFile(filepath.Join(root, "bin/a"), []byte("Program"), 0o755) }, ErrChecksum, "bin/a"},
		"library":     {func(root string) error { return os.WriteFile(filepath.Join(root, "lib/b"), []byte("Library"), 0o755) }, ErrChecksum, "library"},
		"added file":  {func(root string) error { return os.WriteFile(filepath.Join(root, "lib/c"), nil, 0o755) }, ErrChecksum, "library"},
		"lost file":   {func(root string) error { return os.Remove(filepath.Join(root, "bin/a")) }, ErrEngineMissing, "bin/a"},
		"link instead": {func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "lib/b")), os.Symlink("/etc/passwd", filepath.Join(root, "lib/b")))
		}, ErrChecksum, "library"},
	}
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			p, root := fakePackage(t, files, true)
			if err := p.verify(root); err != nil {
				t.Fatalf("the untouched package: %v", err)
			}
			if err := c.change(root); err != nil {
				t.Fatal(err)
			}
			err := p.verify(root)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "make engines") {
				t.Errorf("verify = %v, want %v that names %q and says what to do", err, c.want, c.says)
			}
		})
	}
}

func TestVerifyCoversSingleFilesWithoutATree(t *testing.T) {
	p, root := fakePackage(t, map[string]string{"bin/a": "program", "lib/b": "ignored"}, false)
	if err := os.WriteFile(filepath.Join(root, "lib/b"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(root); err != nil {
		t.Errorf("a file that is not loaded was checked: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/a"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(root); !errors.Is(err, ErrChecksum) {
		t.Errorf("verify = %v, want ErrChecksum", err)
	}
}

// TestVerifyTrustsOnlyItsStamp shows that unchanged files are not read again:
// with a stamp forged for wrong content, verify agrees until the file is
// touched.
func TestVerifyTrustsOnlyItsStamp(t *testing.T) {
	p, root := fakePackage(t, map[string]string{"bin/a": "program"}, false)
	path := filepath.Join(root, "bin/a")
	if err := os.WriteFile(path, []byte("another"), 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := p.list(root)
	if err != nil {
		t.Fatal(err)
	}
	stamp := verifiedStampPath(root)
	if stamp == "" {
		t.Fatal("no cache folder")
	}
	if err := writeFileAtomic(stamp, []byte(p.stamp(files)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(root); err != nil {
		t.Fatalf("the stamp was not used: %v", err)
	}
	if err := os.WriteFile(path, []byte("Another"), 0o755); err != nil { // same size
		t.Fatal(err)
	}
	if err := os.Chtimes(path, files[0].info.ModTime(), files[0].info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(root); !errors.Is(err, ErrChecksum) {
		t.Errorf("an edit behind a restored modification time: %v, want ErrChecksum", err)
	}
}

// checkLock says what is wrong with a package-lock.json: an entry without an
// integrity hash (npm ci accepts it), a download address, or a version other
// than the pinned one.
func checkLock(data []byte, pins ...map[string]pin) error {
	var lock struct {
		Packages map[string]struct {
			Version, Integrity string
			Resolved           *string
			Link               bool
		}
	}
	if err := json.Unmarshal(data, &lock); err != nil {
		return err
	}
	for name, entry := range lock.Packages {
		if name == "" {
			continue // the project itself
		}
		if !strings.HasPrefix(entry.Integrity, "sha512-") || len(entry.Integrity) != len("sha512-")+88 {
			return fmt.Errorf("%s has no sha512 integrity", name)
		}
		if entry.Resolved != nil || entry.Link {
			return fmt.Errorf("%s names where it comes from", name)
		}
	}
	for _, platforms := range pins {
		for _, p := range platforms {
			if got := lock.Packages["node_modules/"+p.pkg].Version; got != p.version {
				return fmt.Errorf("%s is %q in the lock file and pinned at %q", p.pkg, got, p.version)
			}
		}
	}
	return nil
}

func TestLockFileIsCompleteAndPinned(t *testing.T) {
	data, err := os.ReadFile("../../deploy/engines/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := checkLock(data, chdbPins, postgresPins); err != nil {
		t.Error(err)
	}
	if strings.Contains(string(data), "://") {
		t.Error("the lock file has an address")
	}
}

func TestCheckLockRefuses(t *testing.T) {
	integrity := "sha512-" + strings.Repeat("A", 86) + "=="
	for name, entry := range map[string]string{
		"no integrity":    `{"version": "1"}`,
		"empty integrity": `{"version": "1", "integrity": ""}`,
		"weak integrity":  `{"version": "1", "integrity": "sha1-` + strings.Repeat("A", 27) + `="}`,
		"resolved":        `{"version": "1", "integrity": "` + integrity + `", "resolved": "file:x.tgz"}`,
		"empty resolved":  `{"version": "1", "integrity": "` + integrity + `", "resolved": ""}`,
		"other version":   `{"version": "2", "integrity": "` + integrity + `"}`,
	} {
		pins := map[string]pin{"linux/amd64": {pkg: "a", version: "1"}}
		if checkLock([]byte(`{"packages": {"": {}, "node_modules/a": `+entry+`}}`), pins) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	good := `{"packages": {"": {}, "node_modules/a": {"version": "1", "integrity": "` + integrity + `"}}}`
	if err := checkLock([]byte(good), map[string]pin{"linux/amd64": {pkg: "a", version: "1"}}); err != nil {
		t.Errorf("a good lock file: %v", err)
	}
}
