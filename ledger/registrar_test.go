package ledger

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// fakeRing makes keys at once.
type fakeRing struct{ ids []tenant.ID }

func (r *fakeRing) Tenants() []tenant.ID { return slices.Clone(r.ids) }

func (r *fakeRing) Create(ids ...tenant.ID) (made []tenant.ID, err error) {
	for _, id := range ids {
		if !slices.Contains(r.ids, id) {
			r.ids, made = append(r.ids, id), append(made, id)
		}
	}
	return made, nil
}

// fakeLog takes records, or fails.
type fakeLog struct {
	recs []kafka.Record
	err  error
}

func (l *fakeLog) ProduceBatch(_ context.Context, recs []kafka.Record, _ []kafka.Result) error {
	if l.err == nil {
		l.recs = append(l.recs, recs...)
	}
	return l.err
}

// A tenant whose announcement may not have reached the log is pending until it
// has: an event that overtook it would be an unknown tenant's.
func TestRegistrarHoldsWhatIsNotAnnounced(t *testing.T) {
	ring, log := &fakeRing{}, &fakeLog{err: errors.New("the broker is away")}
	db := newSimDB(t.Fatalf, simTopic)
	store := simStore{db, newSimProcess("registrar", 1, 0)}
	r := NewRegistrar(ring, store, log, kafka.Topics{Events: "events"}, simTopic)
	if _, err := r.CreateTenants(t.Context(), []tenant.ID{"acme"}); !errors.Is(err, log.err) {
		t.Fatalf("got %v", err)
	}
	if !r.Pending("acme") {
		t.Error("acme has keys, is not announced and is not pending")
	}
	log.err = nil
	if err := r.Resume(t.Context()); err != nil || r.Pending("acme") {
		t.Fatalf("after Resume: pending %v, %v", r.Pending("acme"), err)
	}
	if made, err := r.CreateTenants(t.Context(), []tenant.ID{"acme", "bravo"}); err != nil || len(made) != 1 || made[0] != "bravo" {
		t.Errorf("created %v, %v; want bravo alone", made, err)
	}
	if len(log.recs) != 2 {
		t.Fatalf("%d records, want one key epoch each", len(log.recs))
	}
	for i, id := range []tenant.ID{"acme", "bravo"} {
		rec := log.recs[i]
		parts, err := event.SplitRecord(rec.Value)
		if err != nil || parts.Kind != event.ControlRecord || string(rec.Key) != string(id) || rec.Partition != id.Partition(simTopic.Partitions) {
			t.Fatalf("record %d: kind %v key %s partition %d, %v", i, parts.Kind, rec.Key, rec.Partition, err)
		}
		if c, err := event.DecodeControl(parts.Body); err != nil || c.Tenant != string(id) || c.Kind != event.ControlKeyEpoch || c.Version != "1" {
			t.Errorf("record %d: %+v, %v", i, c, err)
		}
	}
	// Tenants whose chain exists are not announced again.
	db.heads["acme"], db.heads["bravo"] = Head{Tenant: "acme"}, Head{Tenant: "bravo"}
	if err := r.Resume(t.Context()); err != nil || len(log.recs) != 2 {
		t.Errorf("Resume announced %d records of known tenants, %v", len(log.recs)-2, err)
	}
}

// A book goes to every partition where it is not in force, and nowhere else.
func TestRegistrarPublishesABook(t *testing.T) {
	log := &fakeLog{}
	r := NewRegistrar(&fakeRing{}, nil, log, kafka.Topics{Events: "events"}, Topic{Partitions: 4})
	book := simBook(2)
	if err := r.PublishBook(t.Context(), book, map[int32]chain.Hash{1: chain.Hash(book.Hash()), 2: {9}}); err != nil {
		t.Fatal(err)
	}
	var at []int32
	for _, rec := range log.recs {
		at = append(at, rec.Partition)
		if string(rec.Key) != string(tenant.System(rec.Partition)) {
			t.Errorf("partition %d: key %s", rec.Partition, rec.Key)
		}
	}
	if !slices.Equal(at, []int32{0, 2, 3}) {
		t.Errorf("published to partitions %v, want 0, 2 and 3", at)
	}
}
