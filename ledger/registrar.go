package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// firstEpoch is the key epoch that a tenant begins with.
const firstEpoch = 1

// TenantKeys makes the keys of tenants. *keyring.Ring is one.
type TenantKeys interface {
	// Create makes the keys of those tenants that have none; they are durable
	// when it returns. It returns those it made.
	Create(ids ...tenant.ID) ([]tenant.ID, error)
	// Tenants lists all tenants that have keys.
	Tenants() []tenant.ID
}

// Registrar writes the control records that make tenants, and price books that
// count from there on. It appends to no chain: only the Writer does, when it
// meets the records.
type Registrar struct {
	keys   TenantKeys
	store  Store
	pub    Publisher
	topics kafka.Topics
	topic  Topic

	mu      sync.Mutex // protects pending and moving
	pending map[tenant.ID]bool
	moving  map[tenant.ID]move
}

// move is a key epoch on its way to the ledger.
type move struct {
	epoch uint32
	said  time.Time
}

// sayAgain is when a key epoch's control record is taken for lost.
const sayAgain = time.Minute

// NewRegistrar makes a Registrar.
func NewRegistrar(keys TenantKeys, store Store, pub Publisher, topics kafka.Topics, topic Topic) *Registrar {
	return &Registrar{keys: keys, store: store, pub: pub, topics: topics, topic: topic, pending: make(map[tenant.ID]bool), moving: make(map[tenant.ID]move)}
}

// CreateTenants makes the tenants that do not exist and returns them. When it
// returns, their keys are durable and their first key epoch stands in the log
// before anything that can be written for them. Said twice, it does no harm.
func (r *Registrar) CreateTenants(ctx context.Context, ids []tenant.ID) ([]tenant.ID, error) {
	r.hold(ids)
	created, err := r.keys.Create(ids...)
	if err != nil {
		return nil, fmt.Errorf("create keys: %w", err)
	}
	if err := r.announce(ctx, created); err != nil {
		return nil, err // created stays held until Resume has announced it
	}
	r.letGo(ids)
	return created, nil
}

// Pending reports a tenant that has keys but may not stand in the log yet: an
// event that overtook its key epoch would be rejected as an unknown tenant's.
func (r *Registrar) Pending(id tenant.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pending[id]
}

func (r *Registrar) hold(ids []tenant.ID) {
	have := make(map[tenant.ID]bool)
	for _, id := range r.keys.Tenants() {
		have[id] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if !have[id] {
			r.pending[id] = true
		}
	}
}

func (r *Registrar) letGo(ids []tenant.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		delete(r.pending, id)
	}
}

// Resume announces the tenants whose keys were made and whose first key epoch
// may not have reached the log, because the process died in between.
func (r *Registrar) Resume(ctx context.Context) error {
	ids := r.keys.Tenants()
	for chunk := range slices.Chunk(ids, headsPerRead) {
		known, err := r.epochs(ctx, chunk)
		if err != nil {
			return err
		}
		var missing []tenant.ID
		for _, id := range chunk {
			if _, ok := known[id]; !ok && !id.IsSystem() {
				missing = append(missing, id)
			}
		}
		if err := r.announce(ctx, missing); err != nil {
			return err
		}
		r.letGo(missing)
	}
	return nil
}

// headsPerRead bounds one look at heads.
const headsPerRead = 1000

// epochs are the key epochs of those tenants that stand in the ledger.
func (r *Registrar) epochs(ctx context.Context, ids []tenant.ID) (map[tenant.ID]uint32, error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	heads, err := r.store.Heads(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	known := make(map[tenant.ID]uint32, len(heads))
	for i := range heads {
		known[tenant.ID(heads[i].Tenant)] = heads[i].KeyEpoch
	}
	return known, nil
}

// MoveEpochs leads tenants to MAC epochs that are durable in the keyring, one a
// tenant, and returns those that the ledger has come to: their keys are in use.
// It is called until all have. For the others it writes the control records
// that are still missing, which the ledger knows best: an epoch may only follow
// the one before it, and a process may have died between any two steps. What
// was written and not met yet is written again after a minute; said twice, it
// does no harm.
func (r *Registrar) MoveEpochs(ctx context.Context, to []keyring.KeyEpoch) (inForce []keyring.KeyEpoch, err error) {
	for chunk := range slices.Chunk(to, headsPerRead) {
		ids := make([]tenant.ID, len(chunk))
		for i := range chunk {
			ids[i] = chunk[i].Tenant
		}
		known, err := r.epochs(ctx, ids)
		if err != nil {
			return nil, err
		}
		var recs []kafka.Record
		var said []keyring.KeyEpoch
		for _, e := range chunk {
			switch now := known[e.Tenant]; {
			case now >= e.Number:
				inForce = append(inForce, e)
				r.moved(e)
			case !r.saidLately(e):
				said = append(said, e)
				for n := now + 1; n <= e.Number; n++ {
					recs = append(recs, r.keyEpoch(e.Tenant, n, time.Now()))
				}
			}
		}
		if len(recs) == 0 {
			continue
		}
		if err := r.pub.ProduceBatch(ctx, recs, nil); err != nil {
			return nil, fmt.Errorf("announce key epochs: %w", err)
		}
		r.say(said)
	}
	return inForce, nil
}

func (r *Registrar) saidLately(e keyring.KeyEpoch) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.moving[e.Tenant]
	return ok && m.epoch == e.Number && time.Since(m.said) < sayAgain
}

func (r *Registrar) say(epochs []keyring.KeyEpoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range epochs {
		r.moving[e.Tenant] = move{e.Number, time.Now()}
	}
}

func (r *Registrar) moved(e keyring.KeyEpoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.moving, e.Tenant)
}

// keyEpoch is the control record that begins a tenant's epoch.
func (r *Registrar) keyEpoch(id tenant.ID, epoch uint32, now time.Time) kafka.Record {
	return kafka.Record{
		Topic: r.topics.Events, Partition: id.Partition(r.topic.Partitions), Key: []byte(id), TimestampMs: now.UnixMilli(),
		Value: event.AppendControlRecord(nil, &event.Control{
			Kind: event.ControlKeyEpoch, Tenant: string(id), Version: strconv.FormatUint(uint64(epoch), 10), IssuedAt: now.UnixNano(),
		}),
	}
}

// announce writes the first key epoch of each tenant.
func (r *Registrar) announce(ctx context.Context, ids []tenant.ID) error {
	now := time.Now()
	recs := make([]kafka.Record, 0, len(ids))
	for _, id := range ids {
		if id.IsSystem() {
			continue // a system chain exists by itself
		}
		recs = append(recs, r.keyEpoch(id, firstEpoch, now))
	}
	if len(recs) == 0 {
		return nil
	}
	if err := r.pub.ProduceBatch(ctx, recs, nil); err != nil {
		return fmt.Errorf("announce tenants: %w", err)
	}
	return nil
}

// maxBookBytes bounds the control record of a price book, which is packed where
// it is long: a broker takes records of 1 MiB by default.
const maxBookBytes = 1_000_000 + 10_000

// ErrBookTooLarge says that a price book does not fit a control record.
var ErrBookTooLarge = errors.New("ledger: the price book does not fit a control record")

// PublishBook puts the book into every partition where it is not the newest
// one, by what inForce says of each.
func (r *Registrar) PublishBook(ctx context.Context, book *pricing.Book, inForce map[int32]chain.Hash) error {
	now := time.Now()
	value := event.AppendControlRecord(nil, &event.Control{
		Kind: event.ControlPriceBook, Version: book.Version(), Content: book.Marshal(), IssuedAt: now.UnixNano(),
	})
	if len(value) > maxBookBytes {
		return fmt.Errorf("%w: %d bytes when packed, at most %d", ErrBookTooLarge, len(value), maxBookBytes)
	}
	var recs []kafka.Record
	for p := range r.topic.Partitions {
		if inForce[p] == chain.Hash(book.Hash()) {
			continue
		}
		recs = append(recs, kafka.Record{
			Topic: r.topics.Events, Partition: p, Key: []byte(tenant.System(p)), Value: value, TimestampMs: now.UnixMilli(),
		})
	}
	if len(recs) == 0 {
		return nil
	}
	if err := r.pub.ProduceBatch(ctx, recs, nil); err != nil {
		return fmt.Errorf("publish price book: %w", err)
	}
	return nil
}
