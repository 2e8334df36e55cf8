// Package keyring holds the keys of every tenant and derives what the rest of
// the program uses from them.
//
// # Keys
//
// A tenant has two root keys of 32 random bytes. From the integrity root come
// the keys that prove something: MAC, dedupe and pseudonym keys. From the
// sealing root come the keys that hide something. They are independent, so the
// sealing root can be destroyed while the tenant's chain still verifies. One
// more secret belongs to the whole installation: it signs Postgres tenant
// contexts.
//
// Root keys are stored wrapped. They leave this package only as subkeys:
//
//	subkey = HKDF-SHA256(secret = root, salt = none, info, 32 bytes)
//	info   = "tallystick/" ‖ purpose ‖ 0x00 ‖ tenant ‖ 0x00 ‖ epoch
//
// where HKDF is RFC 5869 (no salt means 32 zero bytes), purpose and tenant are
// their ASCII bytes, and epoch is an unsigned 32-bit big-endian number:
//
//	purpose         root       epoch              used for
//	"mac"           integrity  the key epoch, ≥ 0 HMAC-SHA256 of ledger entries
//	"dedupe"        integrity  always 0           content_mac of an event, never rotated
//	"pseudonym"     integrity  always 0           keyed pseudonyms of persons
//	"checkpoint"    integrity  its own            seed of the Ed25519 key of checkpoints
//	"audit"         integrity  its own            HMAC-SHA256 of audit rows
//	"seal-tags"     sealing    the sealing epoch  confidential tags in entries
//	"seal-subject"  sealing    the sealing epoch  identities of persons
//	"seal-secret"   sealing    the sealing epoch  secrets that a tenant gave us
//
// # Sealed values
//
// Seal and Open use XAES-256-GCM (c2sp.org/XAES-256-GCM) under the sealing keys:
//
//	sealed = 0x01 ‖ sealing epoch u32 ‖ nonce (24) ‖ ciphertext ‖ tag (16)
//	AAD    = 0x01 ‖ field × 5 (purpose, tenant, table, column, row)
//	field  = length u32 ‖ bytes
//
// # Files
//
// A ring is a directory, mode 0700, with two files, mode 0600:
//
//	master.key   32 random bytes; made once, never replaced
//	keys.log     wrapped keys, append-only
//
// keys.log is the 8 bytes "TSKEYS1\n" and then records. Numbers are big-endian.
//
//	record = length u32 ‖ body ‖ CRC-32C(length ‖ body) u32 ‖ "\nEND"
//	body   = 0x01 ‖ count u32 ‖ key × count
//	key    = kind u8 ‖ version u32 ‖ tenant length u8 ‖ tenant
//	         ‖ wrapped length u16 ‖ wrapped
//
// length counts the body. kind is 1 integrity, 2 sealing, 3 context secret
// (its tenant is empty). version is 1 today. wrapped is a 12-byte random nonce
// followed by AES-256-GCM of the root under the master key, with
//
//	AAD = "tallystick/keyring/1" ‖ 0x00 ‖ kind's name ‖ 0x00 ‖ tenant ‖ 0x00 ‖ version u32
//
// and the names "integrity", "sealing" and "context".
//
// # Promises
//
// Keys that Create returned, or that any look-up has ever answered from, are
// on disk: they survive a kill and a power cut. A record that a crash left
// unfinished is cut off by the next writer; it was never used. A record that
// was once complete and has changed is ErrCorrupt, wherever it stands, and
// nothing is served. Several processes may use one directory at once: writers
// take turns by flock, and a look-up miss reads what others have appended.
//
// The package never logs, prints or puts into an error any key material, never
// replaces a master key, and never rolls back with the ledger: the directory is
// backed up on its own.
package keyring

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/tallystick/tallystick/internal/tenant"
)

// KeyBytes is the size of every root key and every derived key.
const KeyBytes = 32

// roots are the two root keys of one tenant.
type roots struct {
	integrity, sealing       [KeyBytes]byte
	hasIntegrity, hasSealing bool
}

// Ring is an open keyring. Its methods may be called from many goroutines.
type Ring struct {
	log  *slog.Logger
	file *logFile
	wrap wrapper

	// writing orders the writers of this process; the file lock orders processes.
	writing sync.Mutex

	mu      sync.RWMutex // protects what follows
	tenants map[tenant.ID]*roots
	sealers map[sealKey]*sealer
	context [KeyBytes]byte
	hasCtx  bool
}

// Open opens the keyring in dir and makes it, master key and all, when dir
// holds none yet. A nil log discards. Errors: ErrPermissions, ErrMasterKey,
// ErrCorrupt, or what the file system says.
func Open(dir string, log *slog.Logger) (*Ring, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	return open(dir, log, true)
}

// OpenExisting opens a keyring for reading only, as a verifier does, and
// changes no byte of it. It gives ErrNoKeyring where there is none.
func OpenExisting(dir string, log *slog.Logger) (*Ring, error) {
	return open(dir, log, false)
}

func open(dir string, log *slog.Logger, write bool) (_ *Ring, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f, err := openLog(dir, write)
	if err != nil {
		return nil, err
	}
	r := &Ring{log: log, file: f, tenants: map[tenant.ID]*roots{}, sealers: map[sealKey]*sealer{}}
	defer func() {
		if err != nil {
			_ = f.close()
		}
	}()
	err = f.locked(func() error {
		master, made, err := loadMaster(dir, write && f.fresh())
		if err != nil {
			return err
		}
		if made {
			log.Warn("made a new master key: back it up apart from the data", "dir", dir)
		}
		if r.wrap, err = newLocalWrapper(master); err != nil {
			return err
		}
		if err := r.catchUp(); err != nil {
			return err
		}
		return r.ensureContext()
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Close releases the file. Keys already read stay usable.
func (r *Ring) Close() error { return r.file.close() }

// ContextSecret signs the tenant contexts of Postgres transactions. It is the
// same in every process that shares the directory.
func (r *Ring) ContextSecret() [KeyBytes]byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.context
}

// Create gives root keys to those of ids that have none and returns these, in
// the order given. They are durable when it returns; one fsync serves the whole
// call. After an error none of the new keys is in use anywhere.
func (r *Ring) Create(ids ...tenant.ID) (created []tenant.ID, err error) {
	for _, id := range ids {
		if !validID(id) {
			return nil, fmt.Errorf("keyring: create: %w", tenant.ErrInvalidID)
		}
	}
	if r.file.readOnly {
		return nil, ErrReadOnly
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	err = r.file.locked(func() error {
		if err := r.catchUp(); err != nil {
			return err
		}
		var keys []rootKey
		keys, created = r.missing(ids)
		return r.store(keys)
	})
	if err != nil {
		return nil, fmt.Errorf("keyring: create: %w", err)
	}
	return created, nil
}

// missing makes the root keys that ids still need.
func (r *Ring) missing(ids []tenant.ID) (keys []rootKey, whose []tenant.ID) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	seen := make(map[tenant.ID]bool, len(ids))
	for _, id := range ids {
		have := r.tenants[id]
		if seen[id] || (have != nil && have.hasIntegrity && have.hasSealing) {
			continue
		}
		seen[id] = true
		whose = append(whose, id)
		if have == nil || !have.hasIntegrity {
			keys = append(keys, newRoot(kindIntegrity, id))
		}
		if have == nil || !have.hasSealing {
			keys = append(keys, newRoot(kindSealing, id))
		}
	}
	return keys, whose
}

func newRoot(k kind, id tenant.ID) rootKey {
	key := rootKey{label: label{kind: k, tenant: id, version: 1}}
	rand.Read(key.secret[:]) // crypto/rand.Read never returns an error
	return key
}

// store wraps keys, makes them durable and only then puts them to use. The
// caller holds the file lock and has caught up.
func (r *Ring) store(keys []rootKey) error {
	if len(keys) == 0 {
		return nil
	}
	var buf []byte
	for group := range slices.Chunk(keys, maxKeysPerRecord) {
		var err error
		if buf, err = appendRecord(buf, group, r.wrap); err != nil {
			return err
		}
	}
	if err := r.file.append(buf); err != nil {
		return err
	}
	return r.use(keys)
}

// ensureContext makes the installation's context secret once. The caller holds
// the file lock and has caught up.
func (r *Ring) ensureContext() error {
	if r.hasCtx {
		return nil
	}
	if r.file.readOnly {
		return fmt.Errorf("%w: it was never completely made", ErrNoKeyring)
	}
	return r.store([]rootKey{newRoot(kindContext, "")})
}

// use publishes durable keys to look-ups. A second, different key under one
// label is damage: an append-only file never says two things.
func (r *Ring) use(keys []rootKey) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range keys {
		k := &keys[i]
		if k.kind == kindContext {
			if r.hasCtx && r.context != k.secret {
				return fmt.Errorf("%w: two context secrets", ErrCorrupt)
			}
			r.context, r.hasCtx = k.secret, true
			continue
		}
		t := r.tenants[k.tenant]
		if t == nil {
			t = &roots{}
			r.tenants[k.tenant] = t
		}
		slot, has := &t.integrity, &t.hasIntegrity
		if k.kind == kindSealing {
			slot, has = &t.sealing, &t.hasSealing
		}
		if *has && !bytes.Equal(slot[:], k.secret[:]) {
			return fmt.Errorf("%w: two %s roots for tenant %q", ErrCorrupt, k.kind, k.tenant)
		}
		*slot, *has = k.secret, true
	}
	return nil
}

// catchUp reads what was appended since the last look. The caller holds the
// file lock, so that an unfinished record at the end is a crash's and no
// writer's; it is cut off. Bytes are made durable before they are used: their
// writer may have died between write and fsync.
func (r *Ring) catchUp() error {
	data, from, err := r.file.unread()
	if err != nil || len(data) == 0 {
		return err
	}
	keys, used, err := parseRecords(data, from, r.wrap)
	if err != nil {
		return err
	}
	if torn := len(data) - used; torn > 0 {
		r.log.Warn("keyring: cut off a record that a crash left unfinished", "offset", from+int64(used), "bytes", torn)
	}
	if err := r.file.settle(from + int64(used)); err != nil {
		return err
	}
	return r.use(keys)
}

// refresh looks for keys that other processes made. It costs one stat when
// there are none.
func (r *Ring) refresh() error {
	if grown, err := r.file.grown(); err != nil || !grown {
		return err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.file.locked(r.catchUp)
}

// find gives the roots of a tenant whose keys are complete.
func (r *Ring) find(id tenant.ID) (roots, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	t := r.tenants[id]
	if t == nil || !t.hasIntegrity || !t.hasSealing {
		return roots{}, false
	}
	return *t, true
}

// lookup is find, with one more look at the file on a miss.
func (r *Ring) lookup(id tenant.ID) (roots, error) {
	if t, ok := r.find(id); ok {
		return t, nil
	}
	if err := r.refresh(); err != nil {
		return roots{}, err
	}
	if t, ok := r.find(id); ok {
		return t, nil
	}
	return roots{}, fmt.Errorf("%w: %q", ErrNoKey, id)
}

// Has reports whether the tenant has keys. When the file cannot be read it
// answers from memory and logs why.
func (r *Ring) Has(id tenant.ID) bool {
	_, err := r.lookup(id)
	if err != nil && !errors.Is(err, ErrNoKey) {
		r.log.Error("keyring: cannot look for new keys", "tenant", id, "err", err)
	}
	return err == nil
}

// Tenants lists every tenant with keys, system chains included, in order of id.
func (r *Ring) Tenants() []tenant.ID {
	if err := r.refresh(); err != nil {
		r.log.Error("keyring: cannot look for new keys", "err", err)
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	ids := make([]tenant.ID, 0, len(r.tenants))
	for id, t := range r.tenants {
		if t.hasIntegrity && t.hasSealing {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// validID accepts ordinary tenants and system chains.
func validID(id tenant.ID) bool {
	_, system := id.SystemPartition()
	return system || tenant.ValidID(string(id))
}

// makeDir makes dir with mode 0700 and its entry durable.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return syncParent(dir)
}
