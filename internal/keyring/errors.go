package keyring

import "errors"

var (
	// ErrNoKey says that the tenant has no root keys. At the edge that is an
	// unknown tenant; in hop 3 it halts the partition.
	ErrNoKey = errors.New("keyring: tenant has no keys")
	// ErrNoKeyring says that the directory holds no keyring (OpenExisting only).
	ErrNoKeyring = errors.New("keyring: no keyring in this directory")
	// ErrPermissions says that others than the owner can reach a secret. The
	// operator tightens the mode; the ring never does so by itself, because the
	// secret may already have been read.
	ErrPermissions = errors.New("keyring: permissions are too open")
	// ErrMasterKey says that the master key is missing beside existing records,
	// has the wrong size, or does not open them, or that a key service refuses to
	// open what it is said to have wrapped. The operator restores the right file or
	// setting; the ring never makes a new master key over existing records.
	ErrMasterKey = errors.New("keyring: master key missing or wrong")
	// ErrCorrupt says that bytes which were once durable have changed. The
	// operator restores the file from the keys store's own backup.
	ErrCorrupt = errors.New("keyring: key file is damaged")
	// ErrPurpose says that a derivation or a series was asked for that does not
	// exist.
	ErrPurpose = errors.New("keyring: unknown purpose or epoch")
	// ErrEpoch says that the epoch was never active.
	ErrEpoch = errors.New("keyring: there is no such epoch")
	// ErrUnavailable says that the key service cannot be reached or does not
	// serve us now. Time mends it: the edge answers 503, the ledger waits.
	ErrUnavailable = errors.New("keyring: the key service is away")
	// ErrDestroyed says that the tenant's sealing root was destroyed: what was
	// sealed under it is gone for good, and nothing is sealed any more.
	ErrDestroyed = errors.New("keyring: the tenant's sealing root is destroyed")
	// ErrSealed says that sealed bytes do not open: they were changed, belong to
	// another tenant, purpose or place, or are of a form this program does not know.
	ErrSealed = errors.New("keyring: sealed value does not open")
	// ErrReadOnly says that a ring from OpenExisting was asked to create keys.
	ErrReadOnly = errors.New("keyring: opened read-only")
)
