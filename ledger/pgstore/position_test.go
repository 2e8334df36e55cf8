package pgstore_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/storetest"
)

// A stored offset that somebody moved halts, and says where it should be.
func TestMovedOffsetHalts(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	for range 3 {
		b := m.Batch(5, "acme")
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		m.Done(b)
	}
	admin, err := pgx.Connect(t.Context(), s.l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	for _, c := range []struct{ name, change, undo string }{
		{"raised", "update ledger.partition set next_offset = next_offset + 1", "update ledger.partition set next_offset = next_offset - 1"},
		{"lowered", "update ledger.partition set next_offset = next_offset - 1", "update ledger.partition set next_offset = next_offset + 1"},
		{"raised with the last batch",
			"with b as (update ledger.batch set first_offset = first_offset + 1, next_offset = next_offset + 1 where batch = 3) update ledger.partition set next_offset = next_offset + 1",
			"with b as (update ledger.batch set first_offset = first_offset - 1, next_offset = next_offset - 1 where batch = 3) update ledger.partition set next_offset = next_offset - 1"},
		{"a batch is gone",
			"create table kept as select * from ledger.batch where batch = 2; delete from ledger.batch where batch = 2",
			"insert into ledger.batch select * from kept; drop table kept"},
	} {
		if _, err := admin.Exec(t.Context(), c.change); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Assign(t.Context(), storetest.Topic, 0); !errors.Is(err, ledger.ErrPosition) || !ledger.Halts(err) {
			t.Errorf("%s: %v, want ErrPosition, which halts", c.name, err)
		}
		if _, err := admin.Exec(t.Context(), c.undo); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Assign(t.Context(), storetest.Topic, 0); err != nil {
		t.Errorf("put back: %v", err)
	}
}
