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
//	"digest"        integrity  always 0           keyed digests of prompts and answers
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
// # Epochs
//
// The keys of a tenant go through epochs in four series: mac, checkpoint and
// audit of the integrity root, sealing of the sealing root. All begin in epoch
// 1. Of a series one epoch is active, those before it are verify-only, and the
// one after it may be next: made and durable, but not yet in use. Only MACs
// have that step, because the ledger moves to a new epoch where it meets the
// control record. Rotation makes a new epoch and rewrites nothing.
//
// Destroying a tenant's sealing root takes it out of the file for good, and
// with it whatever was sealed for that tenant, in every epoch. The integrity
// root stays: the chain verifies.
//
// # Key services
//
// Root keys are wrapped by a KMS: a master key in the directory (below), AWS
// KMS, GCP KMS or the transit engine of Vault and OpenBao (packages awskms,
// gcpkms and vaultkms), each bound to the tenant, kind and version of the root.
// A root is unwrapped when it is first needed and then stays in memory. While
// the service is away what is in memory goes on working, and the rest is
// ErrUnavailable. Every wrapped key names the key that wrapped it, so several
// may be in use at once; Rewrap moves all to the configured one.
//
// # Files
//
// A ring is a directory, mode 0700, with these files, mode 0600:
//
//	keys.log       wrapped keys and epochs
//	master.key     32 random bytes, when no other key service is configured
//	master.sealed  the same under a passphrase
//
// master.sealed is "TSMASTR1" ‖ salt (16) ‖ nonce (12) ‖ AES-256-GCM of the master
// key under Argon2id(passphrase, salt, 3 passes, 64 MiB, 4 lanes), with the AAD
// "tallystick/master/argon2id/3/65536/4".
//
// keys.log is the 8 bytes "TSKEYS2\n" and then records. Numbers are big-endian.
//
//	record = length u32 ‖ body ‖ CRC-32C(length ‖ body) u32 ‖ "\nEND"
//	body   = 0x02 ‖ count u32 ‖ item × count
//	item   = form u8 ‖ code u8 ‖ number u32 ‖ unix seconds i64
//	         ‖ tenant length u8 ‖ tenant ‖ value length u16 ‖ value
//
//	form         code           number   value
//	1 key        kind           version  length u8 ‖ ID of the KMS ‖ wrapped key
//	2 epoch      series         epoch    state u8 (1 next, 2 active)
//	3 destroyed  kind sealing   version  –
//
// length counts the body. kind is 1 integrity, 2 sealing, 3 context secret (its
// tenant is empty); series is 1 mac, 2 checkpoint, 3 audit, 4 sealing; version
// is 1. The seconds are when that happened, 0 where it is not known. A key begins
// its series with epoch 1, so epochs are told from the second one on. A wrapped
// key of master.key is a 12-byte random nonce followed by AES-256-GCM of the
// root under the master key, with
//
//	AAD = "tallystick/keyring/1" ‖ 0x00 ‖ kind's name ‖ 0x00 ‖ tenant ‖ 0x00 ‖ version u32
//
// and the names "integrity", "sealing" and "context". Its KMS's ID is "local:"
// and the first 8 bytes of SHA256("tallystick/master-id" ‖ 0x00 ‖ master key) in
// hexadecimal.
//
// Files of the first version begin with "TSKEYS1\n". Their bodies, which any file
// may hold, are
//
//	body = 0x01 ‖ count u32 ‖ key × count
//	key  = kind u8 ‖ version u32 ‖ tenant length u8 ‖ tenant
//	       ‖ wrapped length u16 ‖ wrapped under the master key of the directory
//
// # Promises
//
// Keys and epochs that a call returned, or that any look-up has ever answered
// from, are on disk: they survive a kill and a power cut. A record that a
// crash left unfinished is cut off by the next writer; it was never used. A
// record that was once complete and has changed is ErrCorrupt, wherever it
// stands, and nothing is served.
//
// The file is appended to, and replaced as a whole by Destroy and Rewrap alone:
// in one step, after which the old file's blocks are overwritten. (What flash
// disks, copy-on-write file systems and backups keep is beyond a program: a
// destruction is complete when the backups of before are gone too.) What a crash
// leaves of that, the next writer finishes.
//
// Several processes may use one directory at once: writers take turns by
// flock, a look-up miss reads what others have appended, and Seal, Open, Epoch and
// SigningKey look before each use, which is one system call. An older file that
// somebody puts in the place of the one a process has read is ErrCorrupt there.
//
// The package never logs, prints or puts into an error any key material, never
// makes a master key beside existing records, and never rolls back with the
// ledger: the directory is backed up on its own.
package keyring

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// KeyBytes is the size of every root key and every derived key.
const KeyBytes = 32

// Ring is an open keyring. Its methods may be called from many goroutines.
type Ring struct {
	log     *slog.Logger
	now     func() time.Time
	timeout time.Duration // of one call of a key service
	pause   time.Duration // between calls that fail
	calls   chan struct{} // one place per call that may be under way

	kms   KMS   // nil: the local master key
	known []KMS // what may have wrapped stored keys, beside local master keys
	local *localKeys

	// writing orders the writers of this process; the file lock orders processes.
	writing sync.Mutex
	file    *logFile

	mu      sync.RWMutex // protects what follows
	held    *contents
	sealers map[sealKey]*sealer
	replays int // how often the file was read from its start
	broken  error
}

// Open opens the keyring in dir under a local master key and makes it, master
// key and all, when dir holds none yet. A nil log discards. Errors:
// ErrPermissions, ErrMasterKey, ErrCorrupt, or what the file system says.
func Open(dir string, log *slog.Logger) (*Ring, error) {
	return OpenWith(dir, Options{Log: log})
}

// OpenExisting opens a keyring for reading only, as a verifier does, and
// changes no byte of it. It gives ErrNoKeyring where there is none.
func OpenExisting(dir string, log *slog.Logger) (*Ring, error) {
	return OpenWith(dir, Options{Log: log, ReadOnly: true})
}

// OpenWith opens the keyring in dir, and makes it where there is none unless o
// forbids it. Errors are those of Open, ErrNoKeyring, and ErrUnavailable when
// the key service is away: the installation's own secret is needed at once.
func OpenWith(dir string, o Options) (_ *Ring, err error) {
	o = o.withDefaults()
	if !o.ReadOnly {
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	f, err := openLog(dir, !o.ReadOnly)
	if err != nil {
		return nil, err
	}
	r := &Ring{
		log: o.Log, now: o.Now, timeout: o.Timeout, pause: failurePause, calls: make(chan struct{}, parallelCalls),
		kms: o.KMS, known: o.Previous, local: &localKeys{dir: dir, passphrase: o.Passphrase},
		file: f, held: newContents(), sealers: map[sealKey]*sealer{},
	}
	if o.KMS != nil {
		r.known = append([]KMS{o.KMS}, o.Previous...)
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	if err = f.locked(r.start); err == nil {
		err = r.clean()
	}
	if err == nil {
		_, err = r.secret(r.held.context)
	}
	if err != nil {
		_ = f.close()
		return nil, err
	}
	return r, nil
}

// start reads the directory, and makes what a new one needs. The caller holds
// the file lock.
func (r *Ring) start() error {
	if !r.file.readOnly {
		if err := clearLeftovers(r.file.path); err != nil {
			return err
		}
	}
	if err := r.local.load(); err != nil {
		return err
	}
	if r.kms == nil && !r.file.readOnly && r.file.fresh() && r.local.current() == nil {
		if _, err := r.local.make(r.local.name()); err != nil {
			return err
		}
		r.log.Warn("made a new master key: back it up apart from the data", "dir", r.local.dir)
	}
	if err := r.catchUp(); err != nil {
		return err
	}
	if !r.file.readOnly {
		if err := r.local.tidy(r.held.wrappers(), false); err != nil {
			return err
		}
	}
	return r.ensureContext()
}

// Close releases the file. MAC keys already derived from stay usable; sealing
// and signing do not, because nobody would notice that a key was destroyed.
func (r *Ring) Close() error { return r.file.close() }

// ContextSecret signs the tenant contexts of Postgres transactions. It is the
// same in every process that shares the directory.
func (r *Ring) ContextSecret() [KeyBytes]byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return *r.held.context.secret.Load() // OpenWith has unwrapped it
}

// Create gives root keys to those of ids that have none and returns these, in
// the order given. They are durable when it returns; one fsync serves the whole
// call. After an error none of the new keys is in use anywhere. Beside those of
// Derive it gives ErrReadOnly.
func (r *Ring) Create(ids ...tenant.ID) (created []tenant.ID, err error) {
	for _, id := range ids {
		if !validID(id) {
			return nil, fmt.Errorf("keyring: create: %w", tenant.ErrInvalidID)
		}
	}
	if r.file.readOnly {
		return nil, ErrReadOnly
	}
	// Keys are wrapped before the lock is taken: a key service may be slow, and
	// the lock is everybody's. When the file is replaced in between, what they
	// were wrapped under may be gone.
	for {
		if err := r.refresh(); err != nil {
			return nil, fmt.Errorf("keyring: create: %w", err)
		}
		plain, replay := r.missing(ids)
		if len(plain) == 0 {
			return nil, nil
		}
		var again bool
		if created, again, err = r.add(plain, replay); err != nil {
			return nil, fmt.Errorf("keyring: create: %w", err)
		}
		if !again {
			return created, nil
		}
	}
}

// missing makes the root keys that ids still need, and says which reading of
// the file that is by.
func (r *Ring) missing(ids []tenant.ID) (plain []plainKey, replay int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	seen := make(map[tenant.ID]bool, len(ids))
	for _, id := range ids {
		have := r.held.tenants[id]
		if seen[id] || have != nil && have.complete() {
			continue
		}
		seen[id] = true
		if have == nil || have.integrity == nil {
			plain = append(plain, newRoot(kindIntegrity, id, r.now()))
		}
		if have == nil || have.sealing == nil && have.gone == 0 {
			plain = append(plain, newRoot(kindSealing, id, r.now()))
		}
	}
	return plain, r.replays
}

// add stores those of the keys that nobody else has made meanwhile, and says
// whose these are. again: the file was replaced.
func (r *Ring) add(plain []plainKey, replay int) (whose []tenant.ID, again bool, err error) {
	kms, err := r.current()
	if err != nil {
		return nil, false, err
	}
	items, err := r.wrapAll(kms, plain)
	if err != nil {
		return nil, false, err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	err = r.file.locked(func() error {
		if err := r.catchUp(); err != nil {
			return err
		}
		if again = r.replays != replay; again {
			return nil
		}
		var fresh []item
		for i := range items {
			t := r.held.tenants[items[i].tenant]
			if t != nil && (t.integrity != nil && plain[i].kind == kindIntegrity || plain[i].kind == kindSealing && (t.sealing != nil || t.gone != 0)) {
				continue
			}
			fresh = append(fresh, items[i])
			if n := len(whose); n == 0 || whose[n-1] != items[i].tenant {
				whose = append(whose, items[i].tenant)
			}
		}
		if err := r.store(fresh); err != nil {
			return err
		}
		r.keep(plain, items)
		return nil
	})
	return whose, again, err
}

// keep spares the question for a key that was just made.
func (r *Ring) keep(plain []plainKey, items []item) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for i := range plain {
		t := r.held.tenants[plain[i].tenant]
		k := t.integrity
		if plain[i].kind == kindSealing {
			k = t.sealing
		}
		if k != nil && string(k.wrapped) == string(items[i].wrapped) {
			k.secret.Store(&plain[i].secret)
		}
	}
}

// store makes items durable and only then puts them to use. The caller holds
// the file lock and has caught up.
func (r *Ring) store(items []item) error {
	if len(items) == 0 {
		return nil
	}
	if err := r.file.append(appendRecords(nil, items)); err != nil {
		return err
	}
	return r.use(items)
}

// use publishes durable items to look-ups. Damage that shows only here is
// remembered: the position in the file has moved on.
func (r *Ring) use(items []item) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.held.apply(items); err != nil {
		r.broken = err
		return err
	}
	for i := range items {
		if items[i].form == itemDestroyed {
			r.dropSealers(items[i].tenant)
		}
	}
	return nil
}

// dropSealers forgets derived keys of a tenant. The caller holds mu.
func (r *Ring) dropSealers(id tenant.ID) {
	for k := range r.sealers {
		if k.id == id {
			delete(r.sealers, k)
		}
	}
}

// ensureContext makes the installation's context secret once. The caller holds
// the file lock and has caught up.
func (r *Ring) ensureContext() error {
	if r.held.context != nil {
		return nil
	}
	if r.file.readOnly {
		return fmt.Errorf("%w: it was never completely made", ErrNoKeyring)
	}
	kms, err := r.current()
	if err != nil {
		return err
	}
	plain := newRoot(kindContext, "", r.now())
	it, err := r.wrap(kms, &plain)
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return r.store([]item{it})
}

// catchUp reads what was appended since the last look, or all of a file that
// has taken the last one's place. The caller holds the file lock, so that an
// unfinished record at the end is a crash's and no writer's; it is cut off.
// Bytes are made durable before they are used: their writer may have died
// between write and fsync.
func (r *Ring) catchUp() error {
	if r.broken != nil {
		return r.broken
	}
	data, from, err := r.file.unread()
	whole := from <= int64(len(logMagic))
	if err != nil || len(data) == 0 && !whole {
		return err
	}
	items, used, err := parseRecords(data, from)
	if err != nil {
		return err
	}
	if torn := len(data) - used; torn > 0 {
		r.log.Warn("keyring: cut off a record that a crash left unfinished", "offset", from+int64(used), "bytes", torn)
	}
	if whole && from > 0 || len(data) > 0 {
		if err := r.file.settle(from + int64(used)); err != nil {
			return err
		}
	}
	if whole {
		return r.replay(items)
	}
	return r.use(items)
}

// replay puts what a whole file says in the place of what is held.
func (r *Ring) replay(items []item) error {
	held := newContents()
	err := held.apply(items)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		err = held.carry(r.held)
	}
	if err != nil {
		r.broken = err
		return err
	}
	if r.replays++; r.replays > 1 {
		// Master keys may have changed with the file.
		if err := r.local.load(); err != nil {
			return err
		}
	}
	r.held = held
	for k := range r.sealers {
		if t := held.tenants[k.id]; t.gone != 0 {
			delete(r.sealers, k)
		}
	}
	return nil
}

// refresh looks for what other processes did. It costs one system call when
// there is nothing.
func (r *Ring) refresh() error {
	if grown, err := r.file.grown(); err != nil || !grown {
		return err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	if err := r.file.locked(r.catchUp); err != nil {
		return err
	}
	return r.clean()
}

// look is refresh for those who can go on from memory.
func (r *Ring) look() {
	if err := r.refresh(); err != nil {
		r.log.Error("keyring: cannot look for new keys", "err", err)
	}
}

// view is what a look-up answers from.
type view struct {
	integrity, sealing *root
	destroyed          bool
	active             [seriesCount]uint32
}

// find gives the roots of a tenant whose keys are complete.
func (r *Ring) find(id tenant.ID) (view, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	t := r.held.tenants[id]
	if t == nil || !t.complete() {
		return view{}, false
	}
	return view{t.integrity, t.sealing, t.gone != 0, t.active}, true
}

// lookup is find, with one more look at the file on a miss.
func (r *Ring) lookup(id tenant.ID) (view, error) {
	if t, ok := r.find(id); ok {
		return t, nil
	}
	if err := r.refresh(); err != nil {
		return view{}, err
	}
	if t, ok := r.find(id); ok {
		return t, nil
	}
	return view{}, fmt.Errorf("%w: %q", ErrNoKey, id)
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

// Destroyed reports whether the tenant's sealing root was destroyed. Such a
// tenant sends nothing any more; its chain stays and verifies.
func (r *Ring) Destroyed(id tenant.ID) bool {
	r.look()
	t, ok := r.find(id)
	return ok && t.destroyed
}

// Tenants lists every tenant with keys, system chains included, in order of id.
func (r *Ring) Tenants() []tenant.ID {
	r.look()
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.held.ids((*tenantKeys).complete)
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
