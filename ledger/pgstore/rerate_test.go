package pgstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/storetest"
)

// startJob asks for a job as the API does, under the app's role.
func (s store) startJob(t *testing.T, tenant, id string, from, to time.Time) error {
	t.Helper()
	return s.l.Open(t, postgres.RoleApp).InTenantsWrite(t.Context(), []string{tenant}, func(tx postgres.Tx) error {
		_, err := tx.Exec(t.Context(), `
			insert into ledger.rerate (tenant_id, job_id, from_time, to_time, dry_run, asked_by) values ($1, $2, $3, $4, false, 'test')`,
			tenant, id, from, to)
		return err
	})
}

const (
	jobA, jobB     = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
	ownerA, ownerB = "10000000-0000-4000-8000-00000000000a", "10000000-0000-4000-8000-00000000000b"
)

// A job has one owner until its lease is over, keeps what was saved, and ends once.
func TestRerateJobs(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	b := m.Batch(5, "acme", "bravo")
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	both := []string{"acme", "bravo"}
	claim := func(owner string, lease time.Duration) (ledger.RerateJob, bool) {
		t.Helper()
		job, ok, err := s.ClaimRerate(t.Context(), both, owner, lease)
		if err != nil {
			t.Fatal(err)
		}
		return job, ok
	}
	if _, ok := claim(ownerA, time.Minute); ok {
		t.Error("there is a job before one was asked for")
	}
	from, to := time.Unix(1_700_000_000, 0), time.Unix(1_800_000_000, 0)
	if err := s.startJob(t, "acme", jobA, from, to); err != nil {
		t.Fatal(err)
	}
	if err := s.startJob(t, "acme", jobB, from, to); postgres.SQLState(err) != "23505" {
		t.Errorf("a second job of the tenant: %v", err)
	}
	if job, ok, err := s.ClaimRerate(t.Context(), []string{"bravo"}, ownerB, time.Minute); ok || err != nil {
		t.Errorf("another tenant's job is %+v, %v", job, err)
	}
	job, ok := claim(ownerA, time.Minute)
	if !ok || job.Tenant != "acme" || job.ID != jobA || job.Last != 5 || job.From != from.UnixNano() || job.To != to.UnixNano() || job.AskedAt == 0 {
		t.Fatalf("claimed %+v, %v", job, ok)
	}
	if _, ok := claim(ownerB, time.Minute); ok {
		t.Error("a leased job was leased again")
	}
	job.Cursor, job.Planned, job.LookedAt, job.Changed, job.Difference = 2, 4, 2, 1, money.SumOf(-5)
	if err := s.SaveRerate(t.Context(), &job, ownerA, 0); err != nil {
		t.Fatal(err)
	}
	again, ok := claim(ownerB, time.Minute)
	if !ok || again != job {
		t.Errorf("the next owner finds %+v, %v; want %+v", again, ok, job)
	}
	if err := s.SaveRerate(t.Context(), &job, ownerA, time.Minute); !errors.Is(err, ledger.ErrLease) {
		t.Errorf("saving without the lease: %v", err)
	}
	if err := s.EndRerate(t.Context(), &job, ownerA, ""); !errors.Is(err, ledger.ErrLease) {
		t.Errorf("ending without the lease: %v", err)
	}
	if err := s.EndRerate(t.Context(), &again, ownerB, "no reason"); err != nil {
		t.Fatal(err)
	}
	if err := s.EndRerate(t.Context(), &again, ownerB, ""); !errors.Is(err, ledger.ErrLease) {
		t.Errorf("ending twice: %v", err)
	}
	if err := s.startJob(t, "acme", jobB, from, to); err != nil {
		t.Errorf("a job after the first has ended: %v", err)
	}
}

// A job sees usage of its tenant and time range, in its newest form.
func TestRerateStates(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	b := m.Batch(9, "acme", "bravo")
	b.Rows[4].Kind = chain.Rejected // acme 5
	b.Rows[7].Kind, b.Rows[7].Corrects = chain.Correction, 3
	b.Rows[8].Kind, b.Rows[8].Corrects = chain.Correction, 3 // acme 9, the newest of 3
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	job := ledger.RerateJob{Tenant: "acme", From: b.Rows[1].OccurredAt, To: b.Rows[6].OccurredAt} // 2 to 6
	states, err := s.RerateStates(t.Context(), &job, 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := s.RerateStates(t.Context(), &job, 4, 9)
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for _, st := range append(states, rest...) {
		got = append(got, st.Seq)
		if string(st.Canonical) != string(b.Rows[st.Seq-1].Canonical) {
			t.Errorf("the bytes of %d are %q", st.Seq, st.Canonical)
		}
	}
	if len(got) != 4 || got[0] != 2 || got[1] != 9 || got[2] != 4 || got[3] != 6 {
		t.Errorf("states %v, want 2 9 4 6", got)
	}
	if next, err := s.NextOffset(t.Context(), 0); err != nil || next != b.NextOffset {
		t.Errorf("ledgered up to %d, %v; want %d", next, err, b.NextOffset)
	}
	if next, err := s.NextOffset(t.Context(), 3); err != nil || next != 0 {
		t.Errorf("a partition that was never written stands at %d, %v", next, err)
	}
}

// The newest book of the partition, without its content for whoever has it.
func TestNewestBook(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	if hash, content, err := s.NewestBook(t.Context(), 0, chain.Hash{}); err != nil || content != nil || hash != (chain.Hash{}) {
		t.Errorf("before the first book: %x, %q, %v", hash, content, err)
	}
	for n := range int64(2) {
		b := m.Batch(0)
		b.Controls = []ledger.ControlRow{
			{Offset: 10 + n, Kind: "price_book", Version: "1", Hash: chain.Hash{byte(1 + n)}, Content: []byte{'a' + byte(n)}, IssuedAt: 1},
		}
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		m.Done(b)
	}
	hash, content, err := s.NewestBook(t.Context(), 0, chain.Hash{1})
	if err != nil || hash != (chain.Hash{2}) || string(content) != "b" {
		t.Errorf("the newest book is %x, %q, %v", hash, content, err)
	}
	if hash, content, err := s.NewestBook(t.Context(), 0, chain.Hash{2}); err != nil || hash != (chain.Hash{2}) || content != nil {
		t.Errorf("the book at hand is %x, %q, %v", hash, content, err)
	}
}
