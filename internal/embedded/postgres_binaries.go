package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// minSystemPostgres is the oldest major version that a system Postgres may have.
const minSystemPostgres = 15

// postgresBinaries are an installed Postgres that the chosen user can execute.
type postgresBinaries struct {
	binDir string
	major  int
}

func (b postgresBinaries) path(name string) string { return filepath.Join(b.binDir, name) }

// resolvePostgres finds the binaries that opt asks for and makes sure that u
// can execute them and that the loader finds their libraries.
func resolvePostgres(ctx context.Context, opt PostgresOptions, u engineUser) (postgresBinaries, error) {
	if opt.BinDir != "" {
		return systemPostgres(ctx, opt.BinDir, u)
	}
	dir, err := FindPostgres(opt.EnginesDir)
	if err != nil {
		return postgresBinaries{}, err
	}
	dir, err = usablePostgres(dir, u)
	if err != nil {
		return postgresBinaries{}, err
	}
	b := postgresBinaries{binDir: filepath.Join(dir, "bin")}
	b.major, err = strconv.Atoi(postgresVersion[:strings.IndexByte(postgresVersion, '.')])
	return b, err
}

// systemPostgres checks a Postgres that the operating system installed. Its
// integrity is the package manager's business; only its version is checked.
func systemPostgres(ctx context.Context, binDir string, u engineUser) (postgresBinaries, error) {
	binDir, err := filepath.EvalSymlinks(binDir)
	if err != nil {
		return postgresBinaries{}, fmt.Errorf("%w: no Postgres in %s; name the folder that holds postgres and initdb", ErrEngineMissing, binDir)
	}
	b := postgresBinaries{binDir: binDir}
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := os.Stat(b.path(name)); err != nil {
			return b, fmt.Errorf("%w: no %s in %s; name the folder that holds postgres and initdb", ErrEngineMissing, name, binDir)
		}
	}
	if err := reachable(b.path("postgres"), u); err != nil {
		return b, fmt.Errorf("%w: %w; Postgres cannot run as root", ErrStart, err)
	}
	out, err := exec.CommandContext(ctx, b.path("postgres"), "--version").Output()
	if err != nil {
		return b, fmt.Errorf("%w: %s --version: %w", ErrStart, b.path("postgres"), err)
	}
	b.major, err = parsePostgresMajor(string(out))
	if err != nil {
		return b, err
	}
	if b.major < minSystemPostgres {
		return b, fmt.Errorf("%w: %s is Postgres %d; %d or later is needed", ErrEngineTooOld, binDir, b.major, minSystemPostgres)
	}
	return b, nil
}

var postgresVersionLine = regexp.MustCompile(`\(PostgreSQL\) ([0-9]+)`)

func parsePostgresMajor(versionLine string) (int, error) {
	m := postgresVersionLine.FindStringSubmatch(versionLine)
	if m == nil {
		return 0, fmt.Errorf("%w: not a Postgres version: %q", ErrStart, strings.TrimSpace(versionLine))
	}
	return strconv.Atoi(m[1])
}

// usablePostgres returns dir, or a copy of it in the shared cache folder when
// u cannot reach dir or this process may not complete it.
func usablePostgres(dir string, u engineUser) (string, error) {
	if reachable(filepath.Join(dir, "bin"), u) == nil {
		err := ensureSymlinks(dir)
		if err == nil || !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
			return dir, err
		}
	}
	cache, err := sharedCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a folder for a copy of Postgres: %w", err)
	}
	return copyPostgresOut(dir, cache)
}

// copyPostgresOut copies the package once to cache, a folder that every user can
// enter. The copy is checked like the original, each time it is used.
func copyPostgresOut(dir, cache string) (string, error) {
	p, err := platformPin(postgresPins, "Postgres")
	if err != nil {
		return "", err
	}
	target := filepath.Join(cache, "postgres-"+postgresVersion+"-"+p.tree[:12])
	if _, err := os.Stat(target); err == nil {
		if err := p.verify(target); err != nil {
			return "", fmt.Errorf("the copy of Postgres in %s: %w", target, err)
		}
		return target, ensureSymlinks(target)
	}
	tmp, err := os.MkdirTemp(cache, ".postgres-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // gone after the rename
	if err := copyTree(tmp, dir); err != nil {
		return "", spaceError(fmt.Errorf("copying Postgres to %s: %w", cache, err))
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := p.verify(tmp); err != nil {
		return "", err
	}
	if err := ensureSymlinks(tmp); err != nil {
		return "", err
	}
	// Another process may have won the race; its copy is as good as ours.
	if err := os.Rename(tmp, target); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return target, nil
}

// ensureSymlinks makes the links of pg-symlinks.json that the dynamic loader
// needs (libpq.so.5 and the like). npm packages cannot carry links and their
// install script does not run here. Concurrent callers make the same links.
func ensureSymlinks(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "pg-symlinks.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// The JSON's "source" is the existing file and "target" the link.
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(data, &links); err != nil {
		return fmt.Errorf("pg-symlinks.json: %w", err)
	}
	for _, l := range links {
		link := filepath.Join(filepath.Dir(dir), filepath.FromSlash(l.Target))
		if strings.HasPrefix(l.Target, "native/") {
			link = filepath.Join(dir, filepath.FromSlash(strings.TrimPrefix(l.Target, "native/")))
		}
		if err := ensureSymlink(filepath.Base(l.Source), link); err != nil {
			return err
		}
	}
	return nil
}

// ensureSymlink makes link point to to. A link that points elsewhere is
// replaced: it decides which library gets loaded.
func ensureSymlink(to, link string) error {
	if got, err := os.Readlink(link); err == nil && got == to {
		return nil
	}
	tmp := fmt.Sprintf("%s.new-%d", link, os.Getpid())
	_ = os.Remove(tmp)
	if err := os.Symlink(to, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// copyTree copies the folders and regular files below src into the existing
// folder dst, keeping permissions. Links and sockets are left out.
func copyTree(dst, src string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil || rel == "." {
			return err
		}
		to := filepath.Join(dst, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.Mkdir(to, info.Mode().Perm())
		case d.Type().IsRegular():
			return copyFile(to, path, info.Mode().Perm())
		}
		return nil
	})
}

func copyFile(dst, src string, mode fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// spaceError marks err with ErrNoSpace when the file system is full.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w; free some space or choose another data directory", ErrNoSpace, err)
	}
	return err
}
