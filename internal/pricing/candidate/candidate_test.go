package candidate_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/pricing/candidate"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// auditKeys authenticate audit rows.
type auditKeys struct{}

func (auditKeys) Epoch(tenant.ID, keyring.Purpose) uint32 { return 1 }

func (auditKeys) Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s/%v/%d", id, p, epoch)), nil
}

// list is a list of one price.
func list(t *testing.T, version, rate string) *pricing.Book {
	t.Helper()
	text := "provider,model,input_per_mtok\nopenai,gpt-4o," + rate + "\n"
	b, _, err := pricing.ImportCSV(strings.NewReader(text), pricing.ImportOptions{AsOf: time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC), Version: version})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// publish puts a book in force as hop 3 does.
func publish(t *testing.T, pg *testenv.Ledger, book *pricing.Book, offset int64) {
	t.Helper()
	hash := book.Hash()
	pg.Exec(t, `
		insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset)
		values (0, '00000000-0000-4000-8000-000000000007', 1, 1, 0) on conflict do nothing`)
	pg.Exec(t, `insert into ledger.control (partition, kafka_offset, kind, version, content_hash, content, issued_at) values (0, $1, 'price_book', $2, $3, $4, 1)`,
		offset, book.Version(), hash[:], book.Marshal())
}

func TestCandidates(t *testing.T) {
	pg, ctx := testenv.MigratedPostgres(t), t.Context()
	app := pg.Open(t, postgres.RoleApp)
	store, strict := candidate.New(app, auditKeys{}, false), candidate.New(app, auditKeys{}, true)
	ann, bob := audit.Event{Actor: "ann"}, audit.Event{Actor: "bob"}
	if _, err := store.InForce(ctx); !errors.Is(err, candidate.ErrNotFound) {
		t.Errorf("before the first book: %v", err)
	}
	publish(t, pg, list(t, "one", "2"), 1)
	propose := func(version, rate string) candidate.Candidate {
		t.Helper()
		c, changes, err := store.Propose(ctx, ann, &candidate.Proposal{List: list(t, version, rate), Note: "n"})
		if err != nil || changes.Changed != 1 || c.State != candidate.Proposed || c.ProposedBy != "ann" || c.Version != version {
			t.Fatalf("%+v, %+v, %v", c, changes, err)
		}
		return c
	}
	two, other := propose("two", "3"), propose("other", "4")
	if _, _, err := store.Propose(ctx, ann, &candidate.Proposal{List: list(t, "same", "2")}); !errors.Is(err, candidate.ErrInvalid) {
		t.Errorf("what says nothing new: %v", err)
	}
	if _, err := strict.Decide(ctx, ann, two.ID, true, ""); !errors.Is(err, candidate.ErrFourEyes) {
		t.Errorf("who proposed it approves it: %v", err)
	}
	c, err := strict.Decide(ctx, bob, two.ID, true, "fine")
	if err != nil || c.State != candidate.Approved || c.DecidedBy != "bob" || c.Reason != "fine" || c.DecidedAt.IsZero() {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := store.Decide(ctx, bob, two.ID, false, ""); !errors.Is(err, candidate.ErrDecided) {
		t.Errorf("a second decision: %v", err)
	}
	// On its way to the ledger or in force there, it makes the other one stale.
	if _, err := store.Decide(ctx, bob, other.ID, true, ""); !errors.Is(err, candidate.ErrStale) {
		t.Errorf("a candidate of the book before: %v", err)
	}
	content, err := store.Content(ctx, c.Hash)
	if err != nil {
		t.Fatal(err)
	}
	book, err := pricing.ParseBook(content)
	if err != nil || book.Hash() != c.Hash || book.Len() != 3 { // what was known then, what was in force, and what is
		t.Fatalf("%d rows, %v", book.Len(), err)
	}
	publish(t, pg, book, 2)
	if in, err := store.InForce(ctx); err != nil || in.Hash() != c.Hash {
		t.Errorf("in force: %v, %v", in, err)
	}
	if _, err := store.Decide(ctx, bob, other.ID, false, "late"); err != nil {
		t.Error(err)
	}
	if list, err := store.List(ctx, candidate.Rejected); err != nil || len(list) != 1 || list[0].ID != other.ID {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := store.History(ctx); err != nil || len(list) != 2 || list[0].Version != "two" || list[1].Version != "one" {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := store.Get(ctx, "00000000-0000-4000-8000-000000000000"); !errors.Is(err, candidate.ErrNotFound) {
		t.Errorf("no such candidate: %v", err)
	}
	keptAsItIs(t, pg, other.ID, two.ID)
}

// keptAsItIs: what was proposed and decided is changed by none of our roles.
func keptAsItIs(t *testing.T, pg *testenv.Ledger, rejected, approved string) {
	t.Helper()
	for name, c := range map[string]struct {
		role postgres.Role
		sql  string
		id   string
	}{
		"the content":               {postgres.RoleApp, `update ledger.price_candidate set content = '\x00' where candidate_id::text = $1`, approved},
		"who decided":               {postgres.RoleApp, `update ledger.price_candidate set decided_by = 'x' where candidate_id::text = $1`, approved},
		"a rejection":               {postgres.RoleApp, `update ledger.price_candidate set state = 'approved' where candidate_id::text = $1`, rejected},
		"published by the app":      {postgres.RoleApp, `update ledger.price_candidate set state = 'published', published_at = now() where candidate_id::text = $1`, approved},
		"deleted":                   {postgres.RoleApp, `delete from ledger.price_candidate where candidate_id::text = $1`, approved},
		"approved by the writer":    {postgres.RoleLedger, `update ledger.price_candidate set state = 'approved' where candidate_id::text = $1`, rejected},
		"the content by the writer": {postgres.RoleLedger, `update ledger.price_candidate set content = '\x00' where candidate_id::text = $1`, approved},
	} {
		err := pg.Open(t, c.role).Tx(t.Context(), func(tx postgres.Tx) error {
			_, err := tx.Exec(t.Context(), c.sql, c.id)
			return err
		})
		if state := postgres.SQLState(err); state != "42501" && state != "23514" {
			t.Errorf("%s was changed: %v", name, err)
		}
	}
}
