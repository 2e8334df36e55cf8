package ledger

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
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

// MoveEpochs writes what the ledger still lacks, once, and says what is in force.
func TestRegistrarMovesEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{err: errors.New("the broker is away")}
		db := newSimDB(t.Fatalf, simTopic)
		r := NewRegistrar(&fakeRing{}, simStore{db, newSimProcess("registrar", 1, 0)}, log, kafka.Topics{Events: "events"}, simTopic)
		to := []keyring.KeyEpoch{
			{Tenant: "acme", Series: keyring.SeriesMAC, Number: 2, State: keyring.Next},
			{Tenant: "bravo", Series: keyring.SeriesMAC, Number: 3, State: keyring.Next}, // whose first epochs never arrived
			{Tenant: "carol", Series: keyring.SeriesMAC, Number: 2, State: keyring.Next},
		}
		db.heads["acme"], db.heads["carol"] = Head{Tenant: "acme", KeyEpoch: 1}, Head{Tenant: "carol", KeyEpoch: 2}
		move := func() (in []string) {
			t.Helper()
			inForce, err := r.MoveEpochs(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range inForce {
				in = append(in, string(e.Tenant))
			}
			return in
		}
		if _, err := r.MoveEpochs(t.Context(), to); !errors.Is(err, log.err) {
			t.Fatalf("got %v", err)
		}
		log.err = nil
		if got := move(); !slices.Equal(got, []string{"carol"}) {
			t.Errorf("in force: %v", got)
		}
		said := func() (out []string) {
			for _, rec := range log.recs {
				parts, err := event.SplitRecord(rec.Value)
				if err != nil {
					t.Fatal(err)
				}
				c, err := event.DecodeControl(parts.Body)
				if err != nil || c.Kind != event.ControlKeyEpoch || c.Tenant != string(rec.Key) || rec.Partition != tenant.ID(c.Tenant).Partition(simTopic.Partitions) {
					t.Fatalf("%+v in partition %d: %v", c, rec.Partition, err)
				}
				out = append(out, c.Tenant+" "+c.Version)
			}
			return out
		}
		want := []string{"acme 2", "bravo 1", "bravo 2", "bravo 3"}
		if got := said(); !slices.Equal(got, want) {
			t.Errorf("said %v, want %v", got, want)
		}
		move()
		if got := said(); len(got) != 4 {
			t.Errorf("said at once again: %v", got)
		}
		db.heads["acme"], db.heads["bravo"] = Head{Tenant: "acme", KeyEpoch: 2}, Head{Tenant: "bravo", KeyEpoch: 2}
		time.Sleep(sayAgain)
		if got := move(); !slices.Equal(got, []string{"acme", "carol"}) {
			t.Errorf("in force: %v", got)
		}
		if got := said(); !slices.Equal(got, append(want, "bravo 3")) {
			t.Errorf("said %v after a minute, want what is missing", got)
		}
	})
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
