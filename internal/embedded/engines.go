package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// EnginesDirEnv names the environment variable that holds the folder of the
// engine packages (a node_modules folder, or a folder that contains one).
const EnginesDirEnv = "TALLYSTICK_ENGINES_DIR"

// Engines are the verified engine files of this platform.
type Engines struct {
	// LibCHDB is the absolute path of libchdb.so.
	LibCHDB string
	// PostgresDir is the absolute path of the folder with bin/, lib/ and share/.
	PostgresDir string
}

// FindEngines finds both engines and checks them against the pinned SHA-256
// sums. See [FindCHDB] and [FindPostgres] for the order of search.
//
// When one engine is missing, the other's field is still set: a caller that
// needs only one (because the other is a server given by DSN) may look at the
// field, or call the function for that engine alone.
//
// Errors: [ErrEngineMissing], [ErrWrongPlatform], [ErrChecksum], joined when
// both fail.
func FindEngines(dir string) (Engines, error) {
	lib, errLib := FindCHDB(dir)
	postgres, errPostgres := FindPostgres(dir)
	return Engines{LibCHDB: lib, PostgresDir: postgres}, errors.Join(errLib, errPostgres)
}

// FindCHDB returns the path of the verified libchdb.so. It looks in dir alone
// when dir is not empty, else in $TALLYSTICK_ENGINES_DIR alone when that is
// set, else in deploy/engines below the working directory, below each of its
// parents up to the module root, and beside the executable.
func FindCHDB(dir string) (string, error) {
	p, err := platformPin(chdbPins, "ClickHouse (libchdb)")
	if err != nil {
		return "", err
	}
	root, err := findPackage(p, dir)
	if err != nil {
		return "", err
	}
	if err := p.verify(root); err != nil {
		return "", err
	}
	return filepath.Join(root, "libchdb.so"), nil
}

// FindPostgres returns the verified folder with Postgres's bin/, lib/ and
// share/. It searches as [FindCHDB] does.
func FindPostgres(dir string) (string, error) {
	p, err := platformPin(postgresPins, "Postgres")
	if err != nil {
		return "", err
	}
	root, err := findPackage(p, dir)
	if err != nil {
		return "", err
	}
	return root, p.verify(root)
}

func platformPin(pins map[string]pin, engine string) (pin, error) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	p, ok := pins[platform]
	if !ok {
		return pin{}, fmt.Errorf("%w: there is no %s package for %s; give the DSN of a running server in the configuration instead",
			ErrWrongPlatform, engine, platform)
	}
	return p, nil
}

// findPackage returns the root folder of p's package in the first candidate
// folder that has it.
func findPackage(p pin, dir string) (string, error) {
	candidates, err := engineDirs(dir)
	if err != nil {
		return "", err
	}
	for _, c := range candidates {
		for _, modules := range []string{c, filepath.Join(c, "node_modules")} {
			root := filepath.Join(modules, filepath.FromSlash(p.pkg), p.root)
			if info, err := os.Stat(root); err == nil && info.IsDir() {
				return root, nil
			}
		}
	}
	return "", fmt.Errorf("%w: %s %s was not found in %q; run `make engines`, or name its folder by %s or in the configuration",
		ErrEngineMissing, p.pkg, p.version, candidates, EnginesDirEnv)
}

// engineDirs lists the absolute folders to search, most explicit first. An
// explicit folder is the only candidate: falling back to another copy would
// hide a wrong setting.
func engineDirs(dir string) ([]string, error) {
	if dir == "" {
		dir = os.Getenv(EnginesDirEnv)
	}
	if dir != "" {
		abs, err := filepath.Abs(dir)
		return []string{abs}, err
	}
	var dirs []string
	if wd, err := os.Getwd(); err == nil {
		dirs = append(dirs, filepath.Join(wd, "deploy", "engines"))
		if root, ok := moduleRoot(wd); ok && root != wd {
			dirs = append(dirs, filepath.Join(root, "deploy", "engines"))
		}
	}
	if exe, err := os.Executable(); err == nil {
		if resolved, err := filepath.EvalSymlinks(exe); err == nil {
			exe = resolved
		}
		beside := filepath.Dir(exe)
		dirs = append(dirs, filepath.Join(beside, "engines"), filepath.Join(beside, "deploy", "engines"))
	}
	return dirs, nil
}

// moduleRoot returns the nearest folder at or above dir that holds a go.mod.
func moduleRoot(dir string) (string, bool) {
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}
