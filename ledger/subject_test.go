package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/arena"
)

const dayNanos = 86_400_000_000_000

// A person is told of once a day and tenant, whatever the batches are.
func TestSubjectsAreToldOncePerDay(t *testing.T) {
	var s subjects
	acme, bravo := &tenantState{id: "acme", number: 1}, &tenantState{id: "bravo", number: 2}
	jane, john := fmt.Sprintf("%032x", 1), fmt.Sprintf("%032x", 2)
	var got []string
	for _, c := range []struct {
		t         *tenantState
		pseudonym string
		sealed    string
		day       int64
	}{
		{acme, jane, "s1", 20_000}, {acme, jane, "s2", 20_000}, {bravo, jane, "s3", 20_000}, {acme, john, "s4", 20_000},
		{acme, jane, "s5", 20_001}, {acme, jane, "s6", 20_000}, // late
		{acme, jane, "", 20_002},                      // the edge sent none
		{acme, "short", "s7", 20_000},                 // not the form of a pseudonym
		{acme, "", "s8", 20_000},                      // nobody
		{acme, strings.Repeat("é", 16), "s8", 20_000}, // 32 bytes of something else
		{acme, john, "s9", 20_000 + 10},               // much later
	} {
		b := &builder{arena: arena.New(arena.NewPool(1 << 20))}
		sealed := []byte(c.sealed)
		s.note(b, c.t, &event.Event{UserPseudonym: c.pseudonym, ReceivedAt: c.day * dayNanos}, sealed)
		clear(sealed) // the record's memory is reused
		for _, r := range b.batch.Subjects {
			got = append(got, fmt.Sprintf("%s %s %s %d", r.Tenant, r.Pseudonym[31:], r.Identity, r.Day))
		}
	}
	want := []string{"acme 1 s1 20000", "bravo 1 s3 20000", "acme 2 s4 20000", "acme 1 s5 20001", "acme 2 s9 20010"}
	if !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
}

// The memory of persons is bounded, and those who are seen again and again stay
// in it.
func TestSubjectsForgetTheOldest(t *testing.T) {
	var s subjects
	acme := &tenantState{id: "acme", number: 1}
	b := &builder{arena: arena.New(arena.NewPool(1 << 20))}
	told := func(n int) bool {
		b.arena.Reset()
		b.batch.Subjects = nil
		s.note(b, acme, &event.Event{UserPseudonym: fmt.Sprintf("%032x", n), ReceivedAt: 20_000 * dayNanos}, []byte("s"))
		return len(b.batch.Subjects) == 1
	}
	for n := range 5 * maxSubjects {
		if !told(n + 1) {
			t.Fatalf("person %d was taken for known", n+1)
		}
		if n%1000 == 0 && told(0) != (n == 0) {
			t.Fatalf("person 0 was forgotten after %d others", n)
		}
		if len(s.young) > maxSubjects || len(s.old) > maxSubjects {
			t.Fatalf("%d and %d persons are remembered", len(s.young), len(s.old))
		}
	}
}

// Only what is ledgered as usage names a person: a duplicate has nothing new to
// say, and what was rejected is nobody's.
func TestCoreTellsOfLedgeredPersonsOnly(t *testing.T) {
	b := newBench(t)
	acme := b.m.names[0]
	b.m.makeTenants(acme)
	b.batch()
	person := func(n int) string { return fmt.Sprintf("%032x", n) }
	put := func(key, id string, mac byte, pseudonym string) {
		e := event.Event{
			ID: id, Tenant: acme, OccurredAt: 1_760_000_000_000_000_000, ReceivedAt: 20_000 * dayNanos, Provider: "openai", Model: "m",
			Status: "ok", ServiceTier: "standard", ContentMAC: [32]byte{mac}, HasContentMAC: true, UserPseudonym: pseudonym,
		}
		producer, span := e.AppendProducerMarked(nil)
		b.m.log.add(key, event.AppendUsageRecordOf(nil, &e, producer, span, []byte("sealed "+pseudonym)))
	}
	put(acme, "a", 1, person(1))
	put(acme, "a", 1, person(2))         // a duplicate
	put(acme, "a", 2, person(3))         // a conflict
	put(b.m.names[1], "b", 1, person(4)) // another tenant's record
	put(acme, "c", 1, person(5))
	put(acme, "d", 1, person(1))
	b.batch()
	var got []string
	for _, s := range b.db.subjects {
		got = append(got, s.Tenant+" "+s.Pseudonym+" "+string(s.Identity))
	}
	want := []string{acme + " " + person(1) + " sealed " + person(1), acme + " " + person(5) + " sealed " + person(5)}
	if !slices.Equal(got, want) {
		t.Errorf("the batch tells of %q, want %q", got, want)
	}
}
