package main

import (
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// forger rewrites entries as somebody would who has the program's source, every
// right in the database, and as many keys as forging says.
type forger struct {
	v      *victim
	tenant string
	hasher *chain.Hasher
	// stolen has the forger sign with the true MAC keys; else MACs are made with a
	// key of the forger's own, or left as they were.
	stolen  bool
	oldMACs bool
}

func (v *victim) forger(id string) *forger {
	return &forger{v: v, tenant: id, hasher: chain.NewHasher()}
}

// stored is an entry as the table has it.
type stored struct {
	seq       int64
	epoch     uint32
	canonical []byte
	chain     chain.Hash
	mac       []byte
}

// read reads the entries from..to; to 0 is the last.
func (f *forger) read(from, to int64) (list []stored) {
	t := f.v.t
	t.Helper()
	rows, err := f.v.admin.Query(`select seq, key_epoch, canonical, chain, mac from ledger.entry
		where tenant_id = $1 and seq >= $2 and (seq <= $3 or $3 = 0) order by seq`, f.tenant, from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s stored
		var hash []byte
		if err := rows.Scan(&s.seq, &s.epoch, &s.canonical, &hash, &s.mac); err != nil {
			t.Fatal(err)
		}
		s.chain = chain.Hash(hash)
		list = append(list, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

func (f *forger) one(seq int64) stored {
	f.v.t.Helper()
	list := f.read(seq, seq)
	if len(list) != 1 {
		f.v.t.Fatalf("no entry %d of %s", seq, f.tenant)
	}
	return list[0]
}

// head is the number of the last entry.
func (v *victim) head(id string) (seq int64) {
	v.t.Helper()
	if err := v.admin.QueryRow(`select seq from ledger.head where tenant_id = $1`, id).Scan(&seq); err != nil {
		v.t.Fatal(err)
	}
	return seq
}

func decode(t *testing.T, canonical []byte) *chain.Entry {
	t.Helper()
	var e chain.Entry
	if err := e.Decode(canonical); err != nil {
		t.Fatal(err)
	}
	return e.Clone()
}

// edit changes an entry by its meaning, columns included, and nothing else.
func (f *forger) edit(seq int64, change func(*chain.Entry)) []byte {
	f.v.t.Helper()
	e := decode(f.v.t, f.one(seq).canonical)
	change(e)
	canonical := e.Append(nil)
	f.put(seq, e, canonical)
	return canonical
}

// put stores the entry's bytes and columns, which agree.
func (f *forger) put(seq int64, e *chain.Entry, canonical []byte) {
	f.v.t.Helper()
	var cost any
	if e.Priced {
		cost = e.Cost.String()
	}
	f.v.exec(`update ledger.entry set canonical = $3, kind = $4, cost_usd = $5::numeric, occurred_at = $6 where tenant_id = $1 and seq = $2`,
		f.tenant, seq, canonical, int16(e.Kind), cost, occurred(e))
}

// occurred is the projected time of an entry.
func occurred(e *chain.Entry) any {
	if e.Event.OccurredAt == 0 {
		return nil
	}
	micros := e.Event.OccurredAt / 1000
	if e.Event.OccurredAt%1000 < 0 {
		micros--
	}
	return time.UnixMicro(micros).UTC()
}

// rechain computes the chain hashes and MACs of from..to again; to 0 is the last
// entry, and then the head follows.
func (f *forger) rechain(from, to int64) {
	f.v.t.Helper()
	prev := chain.Genesis(f.tenant)
	if from > 1 {
		prev = f.one(from - 1).chain
	}
	for _, s := range f.read(from, to) {
		leaf := f.hasher.Leaf(s.canonical)
		prev = f.hasher.Next(&prev, &leaf)
		f.v.exec(`update ledger.entry set chain = $3, mac = $4 where tenant_id = $1 and seq = $2`, f.tenant, s.seq, prev[:], f.mac(&s, &prev))
	}
	if to == 0 {
		f.moveHead()
	}
}

// mac is what the forger puts for the MAC of a chain hash.
func (f *forger) mac(s *stored, hash *chain.Hash) []byte {
	f.v.t.Helper()
	if f.oldMACs {
		return s.mac
	}
	var key [32]byte
	if f.stolen {
		var err error
		if key, err = f.v.ring.ExportMACKey(tenant.ID(f.tenant), s.epoch); err != nil {
			f.v.t.Fatal(err)
		}
	}
	m := chain.NewMACKey(key, s.epoch).MAC(s.seq, hash)
	return m[:]
}

// moveHead makes the head that of the last entry.
func (f *forger) moveHead() {
	f.v.t.Helper()
	f.v.exec(`update ledger.head h set seq = e.seq, chain = e.chain from
		(select seq, chain from ledger.entry where tenant_id = $1 order by seq desc limit 1) e where h.tenant_id = $1`, f.tenant)
}

// add appends an entry behind the last one, chained, with the forger's MAC, and
// moves the head.
func (f *forger) add(e *chain.Entry) {
	f.v.t.Helper()
	last := f.one(f.v.head(f.tenant))
	e.Seq = last.seq + 1
	canonical := e.Append(nil)
	leaf := f.hasher.Leaf(canonical)
	hash := f.hasher.Next(&last.chain, &leaf)
	s := stored{seq: e.Seq, epoch: last.epoch, mac: last.mac}
	var cost any
	if e.Priced {
		cost = e.Cost.String()
	}
	// The trigger wants a signed context; a superuser does without it.
	f.v.exec(`alter table ledger.entry_0 disable trigger user`)
	f.v.exec(`insert into ledger.entry (tenant_id, seq, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac)
		values ($1, $2, $3, $4, $5, $6::numeric, $7, $8, $9)`, f.tenant, e.Seq, int16(e.Kind), s.epoch, occurred(e), cost, canonical, hash[:], f.mac(&s, &hash))
	f.v.exec(`alter table ledger.entry_0 enable trigger user`)
	f.moveHead()
}
