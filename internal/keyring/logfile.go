package keyring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	logName  = "keys.log"
	logMagic = "TSKEYS1\n"

	recordMark    = "\nEND"
	recordPrefix  = 4                   // length
	recordTrailer = 4 + len(recordMark) // CRC and mark
	bodyVersion   = 1

	// maxKeysPerRecord bounds a record, and so what a reader must hold to
	// check one.
	maxKeysPerRecord = 4096
	maxBodyBytes     = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// logFile is keys.log with the position up to which this process has read.
type logFile struct {
	f        *os.File
	readOnly bool
	read     atomic.Int64 // bytes read, checked and in use
}

// openLog opens dir's key file, making it when write.
func openLog(dir string, write bool) (*logFile, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR | os.O_CREATE
	}
	path := filepath.Join(dir, logName)
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if !write && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoKeyring, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if err := checkModes(dir, f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &logFile{f: f, readOnly: !write}, nil
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

func (l *logFile) close() error { return l.f.Close() }

// locked runs fn while no other process or ring writes the file. flock belongs
// to the open file, so two rings of one process exclude each other too; the
// kernel drops it when its holder dies.
func (l *logFile) locked(fn func() error) (err error) {
	how := unix.LOCK_EX
	if l.readOnly {
		how = unix.LOCK_SH
	}
	for {
		err = unix.Flock(int(l.f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("keyring: lock: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Flock(int(l.f.Fd()), unix.LOCK_UN)) }()
	return fn()
}

// fresh reports that the file holds no record yet, so that a missing master
// key is the first start and not a loss.
func (l *logFile) fresh() bool {
	info, err := l.f.Stat()
	return err == nil && info.Size() <= int64(len(logMagic))
}

// grown reports, without the lock, whether there is anything unread.
func (l *logFile) grown() (bool, error) {
	info, err := l.f.Stat()
	if err != nil {
		return false, fmt.Errorf("keyring: %w", err)
	}
	return info.Size() != l.read.Load(), nil
}

// unread gives what lies behind the position, and the position. It writes the
// header of a new file, or of one whose first write a crash cut short.
func (l *logFile) unread() (data []byte, from int64, err error) {
	from = l.read.Load()
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
	if len(data) >= n && string(data[:n]) == logMagic {
		l.read.Store(int64(n))
		return data[n:], int64(n), nil
	}
	unwritten := len(data) <= n && (isZero(data) || string(data) == logMagic[:len(data)])
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
	l.read.Store(int64(n))
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
	l.read.Store(end)
	return nil
}

// append writes records behind the position and makes them durable. After a
// failure the file is cut back: what was not acknowledged must not be found
// later; and if even that fails, the next writer's catch-up decides.
func (l *logFile) append(records []byte) error {
	at := l.read.Load()
	_, err := l.f.WriteAt(records, at)
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("keyring: append: %w", errors.Join(err, l.f.Truncate(at)))
	}
	l.read.Store(at + int64(len(records)))
	return nil
}

// appendRecord appends one record with the wrapped keys to dst.
func appendRecord(dst []byte, keys []rootKey, w wrapper) ([]byte, error) {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, bodyVersion)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(keys)))
	for i := range keys {
		k := &keys[i]
		wrapped, err := w.Wrap(k.label, k.secret[:])
		if err != nil {
			return nil, err
		}
		dst = append(dst, byte(k.kind))
		dst = binary.BigEndian.AppendUint32(dst, k.version)
		dst = append(dst, byte(len(k.tenant)))
		dst = append(dst, k.tenant...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(wrapped)))
		dst = append(dst, wrapped...)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-recordPrefix))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	return append(dst, recordMark...), nil
}

// parseRecords reads the complete records of data, which begins at offset base
// of the file, and says how many bytes they take. What follows them is an
// unfinished record, or else the error is ErrCorrupt.
func parseRecords(data []byte, base int64, w wrapper) (keys []rootKey, used int, err error) {
	for used < len(data) {
		rest := data[used:]
		body, size, ok := cutRecord(rest)
		if !ok {
			if unfinished(rest) {
				return keys, used, nil
			}
			return nil, 0, fmt.Errorf("%w: bad record at offset %d", ErrCorrupt, base+int64(used))
		}
		if keys, err = parseBody(keys, body, w); err != nil {
			return nil, 0, fmt.Errorf("record at offset %d: %w", base+int64(used), err)
		}
		used += size
	}
	return keys, used, nil
}

// cutRecord takes one whole record from the front of data.
func cutRecord(data []byte) (body []byte, size int, ok bool) {
	if len(data) < recordPrefix+recordTrailer {
		return nil, 0, false
	}
	n := int(binary.BigEndian.Uint32(data))
	if n > maxBodyBytes || len(data) < recordPrefix+n+recordTrailer {
		return nil, 0, false
	}
	end := recordPrefix + n
	sum := binary.BigEndian.Uint32(data[end:])
	mark := string(data[end+4 : end+recordTrailer])
	if mark != recordMark || sum != crc32.Checksum(data[:end], castagnoli) {
		return nil, 0, false
	}
	return data[recordPrefix:end], end + recordTrailer, true
}

// unfinished tells a record that was never completely written, which a crash
// explains, from one that was and has changed, which nothing does. A crash
// leaves a file that is too short for its last record, or the right length
// with zeros where the end was not written; a complete record ends with its
// mark. A damaged length field makes a complete record look unfinished, so the
// file must not end with a mark either, and no whole record may follow.
func unfinished(rest []byte) bool {
	if isZero(rest) || len(rest) < recordPrefix {
		return true
	}
	n := int(binary.BigEndian.Uint32(rest))
	if n > maxBodyBytes || bytes.HasSuffix(rest, []byte(recordMark)) {
		return false
	}
	size := recordPrefix + n + recordTrailer
	if len(rest) >= size {
		complete := bytes.HasSuffix(rest[:size], []byte(recordMark))
		if complete || !isZero(rest[len(rest)-len(recordMark):]) {
			return false
		}
	}
	return !holdsRecord(rest[1:])
}

// holdsRecord reports whether a whole record begins anywhere in data.
func holdsRecord(data []byte) bool {
	for i := range data {
		if _, _, ok := cutRecord(data[i:]); ok {
			return true
		}
	}
	return false
}

// parseBody appends a record's keys. The bytes have a good checksum, so a
// misfit is damage done by a program, or a file of a newer version.
func parseBody(keys []rootKey, body []byte, w wrapper) ([]rootKey, error) {
	if len(body) < 5 || body[0] != bodyVersion {
		return nil, fmt.Errorf("%w: unknown record version", ErrCorrupt)
	}
	count := binary.BigEndian.Uint32(body[1:])
	body = body[5:]
	for range count {
		k, wrapped, rest, ok := cutKey(body)
		if !ok {
			return nil, fmt.Errorf("%w: record ends within a key", ErrCorrupt)
		}
		body = rest
		secret, err := w.Unwrap(k.label, wrapped)
		if err != nil {
			return nil, err
		}
		if len(secret) != KeyBytes {
			return nil, fmt.Errorf("%w: root of %d bytes", ErrCorrupt, len(secret))
		}
		copy(k.secret[:], secret)
		keys = append(keys, k)
	}
	if len(body) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last key", ErrCorrupt, len(body))
	}
	return keys, nil
}

// cutKey takes one stored key from the front of b, still wrapped.
func cutKey(b []byte) (k rootKey, wrapped, rest []byte, ok bool) {
	const fixed = 1 + 4 + 1
	if len(b) < fixed {
		return k, nil, nil, false
	}
	k.kind, k.version = kind(b[0]), binary.BigEndian.Uint32(b[1:])
	n := int(b[5])
	b = b[fixed:]
	if len(b) < n+2 {
		return k, nil, nil, false
	}
	k.tenant = tenant.ID(b[:n])
	m := int(binary.BigEndian.Uint16(b[n:]))
	b = b[n+2:]
	known := k.kind >= kindIntegrity && k.kind <= kindContext && k.version == 1
	named := validID(k.tenant) != (k.kind == kindContext)
	if len(b) < m || !known || !named || (k.kind == kindContext && n != 0) {
		return k, nil, nil, false
	}
	return k, b[:m], b[m:], true
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
