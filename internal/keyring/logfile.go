package keyring

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const logName = "keys.log"

// logFile is keys.log with the position up to which this process has read. The
// file may be replaced under it: then it is opened anew and read from the start.
type logFile struct {
	path     string
	readOnly bool

	mu   sync.RWMutex // protects what follows; only who has the turn to write changes it
	f    *os.File
	read int64 // bytes read, checked and in use
}

// openLog opens dir's key file, making it when write.
func openLog(dir string, write bool) (*logFile, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR | os.O_CREATE
	}
	l := &logFile{path: filepath.Join(dir, logName), readOnly: !write}
	f, err := l.openFile(flags)
	if !write && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoKeyring, dir)
	}
	l.f = f
	return l, err
}

func (l *logFile) openFile(flags int) (*os.File, error) {
	f, err := os.OpenFile(l.path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if err := checkModes(filepath.Dir(l.path), f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// checkModes refuses places where others could swap or change the files.
func checkModes(dir string, f *os.File) error {
	for _, p := range []struct {
		name string
		stat func() (os.FileInfo, error)
	}{
		{"directory", func() (os.FileInfo, error) { return os.Stat(dir) }},
		{logName, f.Stat},
	} {
		info, err := p.stat()
		if err != nil {
			return fmt.Errorf("keyring: %w", err)
		}
		if info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%w: %s has mode %v, others may write", ErrPermissions, p.name, info.Mode().Perm())
		}
	}
	return nil
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// locked runs fn while no other process or ring writes the file. flock belongs
// to the open file, so two rings of one process exclude each other too; the
// kernel drops it when its holder dies. Who waited for the lock of a file that
// was replaced meanwhile goes on with the new one.
func (l *logFile) locked(fn func() error) (err error) {
	for {
		if err := l.flock(l.f); err != nil {
			return err
		}
		replaced, err := l.follow()
		if err != nil {
			return err
		}
		if !replaced {
			break
		}
	}
	f := l.f
	defer func() {
		if l.f == f { // else fn replaced the file, which closed this one
			err = errors.Join(err, unix.Flock(int(f.Fd()), unix.LOCK_UN))
		}
	}()
	return fn()
}

func (l *logFile) flock(f *os.File) error {
	how := unix.LOCK_EX
	if l.readOnly {
		how = unix.LOCK_SH
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("keyring: lock: %w", err)
		}
	}
}

// follow opens the file anew when its name belongs to another one. The old
// one's lock goes with it.
func (l *logFile) follow() (replaced bool, err error) {
	mine, err := l.f.Stat()
	if err != nil {
		return false, fmt.Errorf("keyring: %w", err)
	}
	named, err := os.Lstat(l.path)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	} else if os.SameFile(mine, named) {
		return false, nil
	}
	if err == nil {
		err = l.reopen()
	}
	if err != nil {
		return false, errors.Join(err, unix.Flock(int(l.f.Fd()), unix.LOCK_UN))
	}
	return true, nil
}

// reopen goes on with the file that has the name now, from its start.
func (l *logFile) reopen() error {
	flags := os.O_RDONLY
	if !l.readOnly {
		flags = os.O_RDWR
	}
	f, err := l.openFile(flags)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.f.Close()
	l.f, l.read = f, 0
	return nil
}

// replace gives the file another content in one step, and overwrites the old
// one. The caller holds the lock, and has given it up when replace returns nil.
func (l *logFile) replace(content []byte) error {
	if err := replaceFile(l.path, content); err != nil {
		return fmt.Errorf("keyring: replace %s: %w", logName, err)
	}
	return l.reopen()
}

// fresh reports that the file holds no record yet, so that a missing master
// key is the first start and not a loss.
func (l *logFile) fresh() bool {
	info, err := l.f.Stat()
	return err == nil && info.Size() <= int64(len(logMagic))
}

// grown reports, without the lock, whether there is anything unread. It is one
// system call and does not allocate.
func (l *logFile) grown() (bool, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(l.f.Fd()), &st); err != nil {
		return false, fmt.Errorf("keyring: %w", err)
	}
	return st.Size != l.read || st.Nlink == 0, nil
}

func (l *logFile) moveTo(end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = end
}

// unread gives what lies behind the position, and the position. It writes the
// header of a new file, or of one whose first write a crash cut short.
func (l *logFile) unread() (data []byte, from int64, err error) {
	from = l.read
	info, err := l.f.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("keyring: %w", err)
	}
	if info.Size() < from {
		return nil, 0, fmt.Errorf("%w: %d bytes, %d were there before", ErrCorrupt, info.Size(), from)
	}
	data = make([]byte, info.Size()-from)
	if _, err := l.f.ReadAt(data, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("keyring: %w", err)
	}
	if from > 0 {
		return data, from, nil
	}
	return l.header(data)
}

// header checks or writes the first bytes of the file.
func (l *logFile) header(data []byte) ([]byte, int64, error) {
	n := len(logMagic)
	if len(data) >= n && (string(data[:n]) == logMagic || string(data[:n]) == logMagicOld) {
		l.moveTo(int64(n))
		return data[n:], int64(n), nil
	}
	unwritten := len(data) <= n && (isZero(data) || strings.HasPrefix(logMagic, string(data)) || strings.HasPrefix(logMagicOld, string(data)))
	if !unwritten {
		return nil, 0, fmt.Errorf("%w: %s does not begin as a key file", ErrCorrupt, logName)
	}
	if l.readOnly {
		return nil, 0, nil
	}
	if _, err := l.f.WriteAt([]byte(logMagic), 0); err != nil {
		return nil, 0, fmt.Errorf("keyring: %w", err)
	}
	if err := errors.Join(l.f.Sync(), syncParent(l.f.Name())); err != nil {
		return nil, 0, fmt.Errorf("keyring: %w", err)
	}
	l.moveTo(int64(n))
	return nil, int64(n), nil
}

// settle makes everything up to end durable, drops what lies behind it, and
// moves the position there. A reader only moves its position.
func (l *logFile) settle(end int64) error {
	if !l.readOnly {
		info, err := l.f.Stat()
		if err == nil && info.Size() > end {
			err = l.f.Truncate(end)
		}
		if err = errors.Join(err, l.f.Sync()); err != nil {
			return fmt.Errorf("keyring: %w", err)
		}
	}
	l.moveTo(end)
	return nil
}

// append writes records behind the position and makes them durable. After a
// failure the file is cut back: what was not acknowledged must not be found
// later; and if even that fails, the next writer's catch-up decides.
func (l *logFile) append(records []byte) error {
	at := l.read
	_, err := l.f.WriteAt(records, at)
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("keyring: append: %w", errors.Join(err, l.f.Truncate(at)))
	}
	l.moveTo(at + int64(len(records)))
	return nil
}
