package embedded

import "errors"

// The errors of this package, matched with errors.Is. Every returned error
// wraps one of them and says, in words for the person at the terminal, what to
// do about it.
var (
	// ErrEngineMissing: the npm package with the engine is not installed (or not
	// where it was looked for). Run `make engines`, or name the folder.
	ErrEngineMissing = errors.New("engine package is missing")
	// ErrWrongPlatform: no engine package exists for this operating system and
	// processor. Give the DSN of a running server instead.
	ErrWrongPlatform = errors.New("no embedded engine for this platform")
	// ErrChecksum: a file of the engine package is not the one pinned in this
	// program. It was not executed. Install the package again.
	ErrChecksum = errors.New("engine file differs from the pinned checksum")
	// ErrEngineTooOld: a system Postgres older than 15 was chosen.
	ErrEngineTooOld = errors.New("engine is too old")

	// ErrNewerDataDir: the data directory was written by a newer version of the
	// engine. It was not touched. Use that version or another directory.
	ErrNewerDataDir = errors.New("data directory belongs to a newer version")
	// ErrOlderDataDir: the data directory was written by an older major version
	// of Postgres, which needs a dump and restore (or pg_upgrade) first.
	ErrOlderDataDir = errors.New("data directory belongs to an older version")
	// ErrDataDirInUse: another live process works on the data directory.
	ErrDataDirInUse = errors.New("data directory is in use")
	// ErrDataDirOwner: the data directory belongs to another user.
	ErrDataDirOwner = errors.New("data directory belongs to another user")
	// ErrDataDirDamaged: the data directory is not one that this package wrote,
	// or files of it are missing.
	ErrDataDirDamaged = errors.New("data directory is not usable")
	// ErrNoSpace: the file system of the data directory is full or nearly so.
	ErrNoSpace = errors.New("no space left for the engine")
	// ErrSocketPath: no directory short enough for a unix socket was found.
	ErrSocketPath = errors.New("unix socket path is too long")
	// ErrPortTaken: the configured port is in use by another process.
	ErrPortTaken = errors.New("port is taken")
	// ErrUnsafeSetting: a setting would make acknowledged data losable, or open
	// a network listener.
	ErrUnsafeSetting = errors.New("setting is not allowed")
	// ErrStart: the engine ended, or was not ready in time, while starting. The
	// message carries the engine's own last words.
	ErrStart = errors.New("engine did not start")
)
