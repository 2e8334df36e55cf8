package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/checkpoint"
)

// How many attempts of each kind and how many verifications of what nobody
// touched a plain `go test` makes. `make tamper` asks for more.
const (
	tamperAttempts  = 1
	tamperCleanRuns = 60
	// cleanPerCopy is how many of these share a copy of the stores.
	cleanPerCopy = 50
)

// TestTamper makes every kind of tampering that docs/security.md lists, as
// superuser, on copies of a ledger that the whole program wrote, and wants each
// caught by the detector that is named for it, at the right entry; and it wants
// no detector to speak of a ledger that nobody touched.
//
// TALLYSTICK_TAMPER_ATTEMPTS and TALLYSTICK_TAMPER_CLEAN set how many of each,
// TALLYSTICK_TAMPER_SEED where.
func TestTamper(t *testing.T) {
	seed := uint64(number(t, "TALLYSTICK_TAMPER_SEED", int(time.Now().UnixNano()&0xffffff)))
	attempts, clean := number(t, "TALLYSTICK_TAMPER_ATTEMPTS", tamperAttempts), number(t, "TALLYSTICK_TAMPER_CLEAN", tamperCleanRuns)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newTamperWorld(t)

	falseAlarms := w.untouched(rng, clean)
	tried, detected := 0, 0
	for _, kind := range tamperKinds {
		for n := range attempts {
			tried++
			v := w.victim(w.now)
			place := v.place(rng, n)
			want := kind.do(v, place)
			found := v.inspect()
			if slices.ContainsFunc(found[:min(1, len(found))], want.fits) || want.beside && slices.ContainsFunc(found, want.fits) {
				detected++
			} else {
				t.Errorf("%s %s (%s, entry %d): want %s, found %v", kind.id, kind.what, place.tenant, place.seq, want, found)
			}
			v.drop()
		}
	}
	fmt.Printf("tamper: kinds=%d attempts=%d detected=%d clean_runs=%d false_alarms=%d\n", len(tamperKinds), tried, detected, clean, falseAlarms)
	if falseAlarms > 0 {
		t.Errorf("%d false alarms", falseAlarms)
	}
}

func number(t *testing.T, name string, def int) int {
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// untouched verifies what nobody touched: whole inspections of copies, and
// verifications of the chains.
func (w *tamperWorld) untouched(rng *rand.Rand, runs int) (alarms int) {
	w.t.Helper()
	for range max(runs/cleanPerCopy, 3) { // making the copy takes most of the time
		v := w.victim(w.now)
		if found := v.inspect(); len(found) > 0 {
			alarms++
			w.t.Errorf("nobody touched this, and still: %v", found)
		}
		v.drop()
	}
	v := w.victim(w.now)
	defer v.drop()
	app := v.as(roleOfReaders)
	defer app.Close()
	for range runs {
		id := tamperTenants[rng.IntN(len(tamperTenants))]
		if found := v.verify(app, id); len(found) > 0 {
			alarms++
			w.t.Errorf("nobody touched this, and still: %v", found)
		}
	}
	return alarms
}

// place is where an attempt strikes.
type place struct {
	tenant, other string
	seq           int64 // of a priced usage entry, in the first tile of the tree
	bit           int
	n             int // of the attempt
	rng           *rand.Rand
}

// place draws one.
func (v *victim) place(rng *rand.Rand, n int) *place {
	v.t.Helper()
	i := rng.IntN(len(tamperTenants))
	p := &place{tenant: tamperTenants[i], other: tamperTenants[1-i], bit: rng.IntN(8), n: n, rng: rng}
	rows, err := v.admin.Query(`select seq from ledger.entry where tenant_id = $1 and kind = 1 and cost_usd is not null
		and seq > 5 and seq < $2 order by seq`, p.tenant, checkpoint.TileWidth-5)
	if err != nil {
		v.t.Fatal(err)
	}
	defer rows.Close()
	var seqs []int64
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			v.t.Fatal(err)
		}
		seqs = append(seqs, seq)
	}
	if len(seqs) == 0 || rows.Err() != nil {
		v.t.Fatalf("no entries to tamper with: %v", rows.Err())
	}
	p.seq = seqs[rng.IntN(len(seqs))]
	return p
}

// covered is the size of the newest checkpoint of the tenant.
func (v *victim) covered(id string) int64 {
	v.t.Helper()
	size, _, ok, err := v.openDir(v.now).Newest(checkpoint.LedgerLog, tenant.ID(id))
	if err != nil || !ok {
		v.t.Fatalf("no checkpoint of %s: %v", id, err)
	}
	return size
}

// expected is the detector that must speak first, and of which entry.
type expected struct {
	detector string
	tenant   string
	seq      int64
	// beside: others may speak before it, for the store is more than a ledger.
	beside bool
}

func (e expected) String() string {
	return fmt.Sprintf("%s at entry %d of %s", e.detector, e.seq, e.tenant)
}

func (e expected) fits(c caught) bool {
	return c.Detector == e.detector && c.Tenant == e.tenant && c.Seq == e.seq
}

// tamperKind is a row of the list in docs/security.md.
type tamperKind struct {
	id, what string
	do       func(v *victim, p *place) expected
}

var tamperKinds = []tamperKind{
	{"T1", "flip a bit", func(v *victim, p *place) expected {
		s := v.forger(p.tenant).one(p.seq)
		at := p.rng.IntN(len(s.canonical))
		s.canonical[at] ^= 1 << p.bit
		v.exec(`update ledger.entry set canonical = $3 where tenant_id = $1 and seq = $2`, p.tenant, p.seq, s.canonical)
		return expected{"chain", p.tenant, p.seq, false}
	}},
	{"T2", "edit a projected column only", func(v *victim, p *place) expected {
		v.exec([]string{
			`update ledger.entry set cost_usd = cost_usd + 0.000000000001 where tenant_id = $1 and seq = $2`,
			`update ledger.entry set occurred_at = occurred_at + interval '1 microsecond' where tenant_id = $1 and seq = $2`,
			`update ledger.entry set kind = 2 where tenant_id = $1 and seq = $2`,
		}[p.n%3], p.tenant, p.seq)
		return expected{"projection", p.tenant, p.seq, false}
	}},
	{"T3", "edit and recompute the leaf", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.edit(p.seq, cheaper)
		f.rechain(p.seq, p.seq)
		return expected{"mac", p.tenant, p.seq, false}
	}},
	{"T4", "edit and recompute the rest of the chain", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.edit(p.seq, cheaper)
		f.rechain(p.seq, 0)
		return expected{"mac", p.tenant, p.seq, false}
	}},
	{"T5", "the same, keeping the old MACs", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.oldMACs = true
		f.edit(p.seq, cheaper)
		f.rechain(p.seq, 0)
		return expected{"mac", p.tenant, p.seq, false}
	}},
	{"T6", "delete in the middle", func(v *victim, p *place) expected {
		v.exec(`delete from ledger.entry where tenant_id = $1 and seq between $2 and $3`, p.tenant, p.seq, p.seq+int64(p.n%3))
		return expected{"number", p.tenant, p.seq, false}
	}},
	{"T7", "delete the tail", func(v *victim, p *place) expected {
		v.exec(`delete from ledger.entry where tenant_id = $1 and seq >= $2`, p.tenant, p.seq)
		if p.n%2 == 1 { // and move the head to hide it
			v.forger(p.tenant).moveHead()
			return expected{"root", p.tenant, p.seq, false}
		}
		return expected{"head", p.tenant, p.seq, false}
	}},
	{"T8", "delete the head", func(v *victim, p *place) expected {
		v.exec(`delete from ledger.head where tenant_id = $1`, p.tenant)
		return expected{"head", p.tenant, v.last(p.tenant) + 1, false}
	}},
	{"T9", "delete all rows", func(v *victim, p *place) expected {
		v.exec(`delete from ledger.entry where tenant_id = $1`, p.tenant)
		v.exec(`delete from ledger.head where tenant_id = $1`, p.tenant)
		return expected{"root", p.tenant, 1, false}
	}},
	{"T10", "swap two", func(v *victim, p *place) expected {
		v.exec(`update ledger.entry set seq = case seq when $2 then -1 else -2 end where tenant_id = $1 and seq in ($2, $3)`, p.tenant, p.seq, p.seq+1)
		v.exec(`update ledger.entry set seq = case seq when -1 then $3::bigint else $2::bigint end where tenant_id = $1 and seq < 0`, p.tenant, p.seq, p.seq+1)
		return expected{"chain", p.tenant, p.seq, false}
	}},
	{"T11", "duplicate as new", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.add(decode(v.t, f.one(p.seq).canonical))
		return expected{"mac", p.tenant, v.head(p.tenant), false}
	}},
	{"T12", "insert a forged one in the middle", func(v *victim, p *place) expected {
		v.exec(`update ledger.entry set seq = -seq where tenant_id = $1 and seq >= $2`, p.tenant, p.seq)
		v.exec(`update ledger.entry set seq = -seq + 1 where tenant_id = $1 and seq < 0`, p.tenant)
		f := v.forger(p.tenant)
		e := decode(v.t, f.one(p.seq-1).canonical)
		e.Event.ID = "forged"
		e.Seq = p.seq
		v.exec(`alter table ledger.entry_0 disable trigger user`)
		v.exec(`insert into ledger.entry select tenant_id, $2, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac from ledger.entry
			where tenant_id = $1 and seq = $3`, p.tenant, p.seq, p.seq-1)
		f.put(p.seq, e, e.Append(nil))
		f.rechain(p.seq, p.seq)
		f.moveHead()
		return expected{"mac", p.tenant, p.seq, false}
	}},
	{"T13", "append a forged tail", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		e := decode(v.t, f.one(p.seq).canonical)
		e.Event.ID = fmt.Sprint("forged-", p.n)
		f.add(e)
		return expected{"mac", p.tenant, v.head(p.tenant), false}
	}},
	{"T14", "move to another tenant", func(v *victim, p *place) expected {
		to := v.head(p.other) + 1
		v.exec(`update ledger.entry set tenant_id = $3, seq = $4 where tenant_id = $1 and seq = $2`, p.tenant, p.seq, p.other, to)
		v.forger(p.other).moveHead()
		if p.tenant < p.other { // the tenants are looked at in order
			return expected{"number", p.tenant, p.seq, false}
		}
		return expected{"chain", p.other, to, false}
	}},
	{"T15", "replay an old body as new", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		e := decode(v.t, f.one(p.seq).canonical)
		e.Position.Offset += 1_000_000
		f.oldMACs = p.n%2 == 0
		f.add(e)
		return expected{"mac", p.tenant, v.head(p.tenant), false}
	}},
	{"T16", "change the key id", func(v *victim, p *place) expected {
		v.exec(`update ledger.entry set key_epoch = key_epoch + 1 where tenant_id = $1 and seq = $2`, p.tenant, p.seq)
		return expected{"projection", p.tenant, p.seq, false}
	}},
	{"T17", "change the tenant", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.edit(p.seq, func(e *chain.Entry) { e.Event.Tenant = p.other })
		if p.n%2 == 0 {
			return expected{"chain", p.tenant, p.seq, false}
		}
		f.rechain(p.seq, 0)
		return expected{"projection", p.tenant, p.seq, false} // the row says another
	}},
	{"T18", "change a time", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.edit(p.seq, func(e *chain.Entry) {
			if p.n%2 == 0 {
				e.Event.OccurredAt -= int64(24 * time.Hour)
			} else {
				e.Event.ReceivedAt++
			}
		})
		return expected{"chain", p.tenant, p.seq, false}
	}},
	{"T19", "change the Kafka offset", func(v *victim, p *place) expected {
		v.forger(p.tenant).edit(p.seq, func(e *chain.Entry) { e.Position.Offset++ })
		return expected{"chain", p.tenant, p.seq, false}
	}},
	{"T20", "transplant a MAC", func(v *victim, p *place) expected {
		from := v.forger(p.tenant).one(p.seq - 1)
		if p.n%2 == 1 {
			from = v.forger(p.other).one(p.seq)
		}
		v.exec(`update ledger.entry set mac = $3 where tenant_id = $1 and seq = $2`, p.tenant, p.seq, from.mac)
		return expected{"mac", p.tenant, p.seq, false}
	}},
	{"T21", "restore an older snapshot", restoreOlder},
	{"T22", "fork two heads of one size", func(v *victim, p *place) expected {
		// With every key there is: MAC and signing keys of the tenant.
		f := v.forger(p.tenant)
		f.stolen = true
		f.edit(p.seq, cheaper)
		f.rechain(p.seq, 0)
		v.resign(p.tenant)
		return expected{"kept checkpoint", p.tenant, p.seq, false}
	}},
	{"T23", "rewrite after a checkpoint with a stolen MAC key", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.stolen = true
		if p.n%2 == 1 { // what a correction adds: it says itself what that comes to
			seq := v.after(p, chain.Correction)
			f.edit(seq, cheaper)
			f.rechain(seq, 0)
			return expected{byCorrections, p.tenant, seq, true}
		}
		seq := v.after(p, chain.Usage)
		f.edit(seq, cheaper)
		f.rechain(seq, 0)
		return expected{byPublished, p.tenant, seq, false}
	}},
	{"T24", "rewrite before a checkpoint with a stolen MAC key", func(v *victim, p *place) expected {
		f := v.forger(p.tenant)
		f.stolen = true
		f.edit(p.seq, cheaper)
		f.rechain(p.seq, 0)
		return expected{"root", p.tenant, p.seq, false}
	}},
	{"T25", "edit a checkpoint", editCheckpoint},
	{"T26", "delete a checkpoint", deleteCheckpoint},
	{"T27", "edit the price history", func(v *victim, p *place) expected {
		v.exec([]string{
			`update ledger.control set content = overlay(content placing '\x20' from 40) where kind = 'price_book'`,
			`update ledger.control set content = content || '\x0a' , content_hash = sha256(content || '\x0a') where kind = 'price_book'`,
			`delete from ledger.control where kind = 'price_book'`,
		}[p.n%3])
		return expected{byPrices, p.tenant, v.book(p.tenant), true}
	}},
	{"T28", "swap sealed attributes", swapSealed},
	{"T29", "raise the stored offset", func(v *victim, p *place) expected {
		partition := tenant.ID(p.tenant).Partition(v.topic.Partitions)
		v.exec(`update ledger.partition set next_offset = next_offset + $2 where partition = $1`, partition, 1+p.n)
		return expected{"offset", fmt.Sprint("partition ", partition), 0, false}
	}},
	{"T30", "write with triggers disabled", func(v *victim, p *place) expected {
		seq := v.head(p.tenant) + 1
		v.exec(`alter table ledger.entry_0 disable trigger user`)
		v.exec(`insert into ledger.entry_0 select $1, $2, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac from ledger.entry
			where tenant_id = $3 and seq = $4`, p.tenant, seq, p.other, p.seq)
		v.exec(`alter table ledger.entry_0 enable trigger user`)
		return expected{"head", p.tenant, seq, false}
	}},
	{"T31", "alter ClickHouse's aggregates", alterReports},
}

// cheaper is what an attacker wants most of an entry.
func cheaper(e *chain.Entry) { e.Cost /= 2 }

// last is the number of the last entry.
func (v *victim) last(id string) (seq int64) {
	v.t.Helper()
	if err := v.admin.QueryRow(`select max(seq) from ledger.entry where tenant_id = $1`, id).Scan(&seq); err != nil {
		v.t.Fatal(err)
	}
	return seq
}

// after is a priced entry behind the newest checkpoint.
func (v *victim) after(p *place, kind chain.Kind) (seq int64) {
	v.t.Helper()
	err := v.admin.QueryRow(`select seq from ledger.entry where tenant_id = $1 and seq > $2 and kind = $4 and cost_usd <> 0
		order by seq offset $3 limit 1`, p.tenant, v.covered(p.tenant), p.rng.IntN(tamperWave/20), int16(kind)).Scan(&seq)
	if err != nil {
		v.t.Fatal(err)
	}
	return seq
}

// book is the entry that brought the tenant its price book.
func (v *victim) book(id string) int64 {
	v.t.Helper()
	for _, s := range v.forger(id).read(1, 10) {
		if e := decode(v.t, s.canonical); e.Kind == chain.Control && strings.HasPrefix(e.ControlKind, "price") {
			return s.seq
		}
	}
	v.t.Fatal("the chain names no price book")
	return 0
}
