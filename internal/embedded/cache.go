package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// cacheDir returns this user's private cache folder (mode 0700, owned by the
// user), creating it when needed. Root's lies where other users cannot look,
// too: what an unprivileged engine user must reach is kept in [sharedCacheDir].
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err == nil {
		dir := filepath.Join(base, "tallystick")
		if err := privateDir(dir, 0o700); err == nil {
			return dir, nil
		}
	}
	dir := filepath.Join(os.TempDir(), "tallystick-cache-"+strconv.Itoa(os.Geteuid()))
	return dir, privateDir(dir, 0o700)
}

// sharedCacheDir returns a folder that only this user can write and every user
// can enter, for engine copies that another uid executes.
func sharedCacheDir() (string, error) {
	const system = "/var/cache/tallystick"
	if err := privateDir(system, 0o755); err == nil && reachable(system, nobodyLike) == nil {
		return system, nil
	}
	dir := filepath.Join(os.TempDir(), "tallystick-engines-"+strconv.Itoa(os.Geteuid()))
	return dir, privateDir(dir, 0o755)
}

// privateDir creates dir with mode, or accepts it when it is a real directory
// of this user that nobody else can write. The check is what makes a
// predictable name in a world-writable temporary folder safe.
func privateDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !os.IsExist(err) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only this user can write", dir)
	}
	if info.Mode().Perm() != mode {
		return os.Chmod(dir, mode)
	}
	return nil
}

// writeFileAtomic writes data to path so that a reader or a crash sees the old
// content or the new one, never a part.
func writeFileAtomic(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	if err := f.Chmod(mode); err != nil {
		f.Close()
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// dirLock is an exclusive advisory lock that the kernel drops when this process
// ends, whatever ends it. Children do not inherit it.
type dirLock struct{ f *os.File }

// lockDir takes the lock file "lock" in dir, or fails with ErrDataDirInUse.
func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, fmt.Errorf("%w: another process of Tallystick runs on %s; stop it or choose another data directory", ErrDataDirInUse, dir)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return &dirLock{f}, nil
}

// unlock releases the lock; a second call does nothing.
func (l *dirLock) unlock() {
	if l != nil && l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// freeBytes returns the space that an unprivileged process can still use on
// dir's file system.
func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}
