package ledger

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ledger/chain"
)

// FuzzBuild gives the core any key and any value: it never panics, never wants
// to halt but for rules it does not know, and every record leaves a trace — an
// entry, a control record in force, a duplicate that was counted, or a key
// epoch that was in force already. What it writes decodes.
func FuzzBuild(f *testing.F) {
	m := newSimModel(newSimProcess("fuzz", 1, 0).read.rng)
	m.fill(120)
	for _, rec := range m.log.recs {
		f.Add(rec.Key, rec.Value)
	}
	f.Add([]byte(m.system), event.AppendControlRecord(nil, &event.Control{Kind: event.ControlRuleVersion, Version: "1"}))
	f.Add([]byte(m.system), event.AppendControlRecord(nil, &event.Control{Kind: event.ControlRuleVersion, Version: "2"}))
	f.Add([]byte(m.system), event.AppendControlRecord(nil, &event.Control{Kind: event.ControlKeyEpoch, Tenant: m.system, Version: "2"}))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		c := fuzzCore(t, m)
		recs := []record{{offset: 50, key: key, value: value}, {offset: 51, key: key, value: value}}
		b := &builder{}
		b.reset()
		c.begin()
		c.needs(recs)
		c.learn(nil, nil)
		for i := range recs {
			before := len(b.rows) + len(b.batch.Controls) + c.stats.Duplicates
			switch err := c.build(b, &recs[i]); {
			case errors.Is(err, ErrRuleVersion):
				return
			case err != nil:
				t.Fatalf("record %d: %v", i, err)
			}
			if len(b.rows)+len(b.batch.Controls)+c.stats.Duplicates == before && !repeatsEpoch(value) {
				t.Fatalf("record %d left no trace", i)
			}
		}
		c.finish(b)
		var e chain.Entry
		for i := range b.batch.Rows {
			row := &b.batch.Rows[i]
			if err := e.Decode(row.Canonical); err != nil {
				t.Fatalf("entry %d does not decode: %v", i, err)
			}
			if !bytes.Equal(e.Append(nil), row.Canonical) {
				t.Fatalf("entry %d is not canonical", i)
			}
		}
		for _, s := range b.batch.Subjects {
			if !isPseudonym(s.Pseudonym) || len(s.Identity) == 0 || len(s.Identity) > event.MaxSealedSubject || s.Day < 0 {
				t.Fatalf("a person that the store would refuse: %q, %d bytes, day %d", s.Pseudonym, len(s.Identity), s.Day)
			}
		}
		if len(b.batch.Rows) != len(b.rows) {
			t.Fatalf("%d rows were built and %d are in the batch", len(b.rows), len(b.batch.Rows))
		}
	})
}

// repeatsEpoch reports a key epoch, which may be in force already.
func repeatsEpoch(value []byte) bool {
	rec, err := event.SplitRecord(value)
	if err != nil || rec.Kind != event.ControlRecord {
		return false
	}
	c, err := event.DecodeControl(rec.Body)
	return err == nil && c.Kind == event.ControlKeyEpoch
}

// fuzzCore is a core that knows the model's tenants and a price book.
func fuzzCore(t testing.TB, m *simModel) *core {
	book := simBook(2)
	c, err := newCore(simTopic, simPartition, simKeys{}, State{Epoch: 1, Controls: []ControlRow{{
		Offset: 1, Kind: event.ControlPriceBook, Version: "b2", Content: book.Marshal(), Hash: chain.Hash(book.Hash()),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	c.needs(nil)
	for _, id := range m.names[1:] {
		c.tenantOf([]byte(id))
		c.learn([]Head{{Tenant: id, Seq: 3, Chain: chain.Genesis(id), KeyEpoch: 2}}, nil)
		c.tenants[id].loaded = true
	}
	return c
}
