package pgread_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func macKey(id string, epoch uint32) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "mac/%s/%d", id, epoch))
}

func keysOf(id string) verify.Keys {
	return func(epoch uint32) ([32]byte, error) { return macKey(id, epoch), nil }
}

// fill writes n entries of each tenant through the writer's store: two key
// epochs, priced and unpriced usage, rejections.
func fill(t testing.TB, l *testenv.Ledger, n int, ids ...string) {
	t.Helper()
	db := l.Open(t, postgres.RoleLedger)
	store := pgstore.New(db)
	topic := ledger.Topic{ID: [16]byte{7}, Partitions: 1}
	st, err := store.Assign(t.Context(), topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		for b := range batches(topic, &st, id, n) {
			if err := store.Commit(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			st.LastBatch, st.NextOffset = b.Number, b.NextOffset
		}
	}
}

const batchEntries = 20_000

// batches makes the commits that give a tenant n entries.
func batches(topic ledger.Topic, st *ledger.State, id string, n int) func(func(*ledger.Batch) bool) {
	return func(yield func(*ledger.Batch) bool) {
		head := ledger.Head{Tenant: id, Chain: chain.Genesis(id)}
		h := chain.NewHasher()
		for n > 0 {
			count := min(n, batchEntries)
			b := &ledger.Batch{Topic: topic, Epoch: st.Epoch, Number: st.LastBatch + 1, FirstOffset: st.NextOffset, NextOffset: st.NextOffset + int64(count)}
			g := ledger.Group{Before: head, New: head.Seq == 0, Count: count}
			for i := range count {
				e := entry(id, head.Seq+1, topic, st.NextOffset+int64(i))
				if e.Kind == chain.Control {
					head.KeyEpoch++
				}
				b.Rows = append(b.Rows, seal(e, &head, h))
			}
			g.After = head
			b.Groups = []ledger.Group{g}
			if n -= count; !yield(b) {
				return
			}
		}
	}
}

func seal(e *chain.Entry, head *ledger.Head, h *chain.Hasher) ledger.Row {
	canonical := e.Append(nil)
	leaf := h.Leaf(canonical)
	head.Seq, head.Chain, head.ReceivedAt = e.Seq, h.Next(&head.Chain, &leaf), e.Event.ReceivedAt
	mac := chain.NewMACKey(macKey(head.Tenant, head.KeyEpoch), head.KeyEpoch).MAC(e.Seq, &head.Chain)
	return ledger.Row{
		Sealed: chain.Sealed{Canonical: canonical, Chain: head.Chain, MAC: mac, Epoch: head.KeyEpoch},
		Seq:    e.Seq, Kind: e.Kind, OccurredAt: e.Event.OccurredAt, Priced: e.Priced, Cost: e.Cost, Key: e.Key,
	}
}

func entry(id string, seq int64, topic ledger.Topic, offset int64) *chain.Entry {
	e := &chain.Entry{Seq: seq, Position: chain.Position{TopicID: topic.ID, Offset: offset}}
	e.Event.Tenant, e.Event.ReceivedAt = id, 1_760_000_001_000_000_000+seq
	switch {
	case seq == 1 || seq == 40:
		e.Kind, e.ControlKind, e.ControlVersion = chain.Control, event.ControlKeyEpoch, map[int64]string{1: "1", 40: "2"}[seq]
		e.Key = chain.ControlKey(&e.Position, id)
	case seq%10 == 0:
		e.Kind, e.RejectReason, e.BodySize, e.Key = chain.Rejected, chain.RejectUndecodable, seq, chain.RejectionKey(&e.Position)
	default:
		usage(e, seq)
	}
	return e
}

func usage(e *chain.Entry, seq int64) {
	e.Kind, e.PricingVersion, e.PriceBook = chain.Usage, 1, chain.Hash{3}
	ev := &e.Event
	ev.ID, ev.OccurredAt = fmt.Sprintf("%08x-2345-7abc-8def-0123456789ab", seq), 1_760_000_000_000_000_999+seq*1e6
	ev.ProducerID, ev.ProducerEpoch, ev.ProducerSeq = "proxy-1", 1_760_000_000, seq
	ev.Provider, ev.Model, ev.Status, ev.ServiceTier = "openai", "gpt-4o", "ok", "standard"
	ev.Team, ev.Service, ev.Environment = "search", "api", "prod"
	ev.ContentMAC, ev.HasContentMAC = sha256.Sum256([]byte(ev.ID)), true
	ev.Tokens[tokens.Input], ev.Tokens[tokens.Output] = 1000+seq%997, seq%300
	e.Key = event.KeyOf(ev.ID)
	if seq%11 == 0 {
		e.UnpricedReason = "unknown_model"
		return
	}
	e.Priced, e.Cost, e.PriceRow = true, money.Pico(seq*2_500_003), "openai/gpt-4o@2024-08-06"
}

// admin opens the database as superuser, to tamper. The driver is the one that
// package migrations registers.
func admin(t testing.TB, l *testenv.Ledger) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func check(t testing.TB, src verify.Source, o verify.Options) verify.Report {
	t.Helper()
	r, err := verify.Verify(t.Context(), src, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestIntact(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	fill(t, l, 120_000, "acme")
	fill(t, l, 50, "bravo")
	db := l.Open(t, postgres.RoleApp)
	for _, c := range []struct {
		id       string
		from, to int64
		workers  int
		entries  int64
	}{
		{"acme", 0, 0, 1, 120_000}, {"acme", 0, 0, 3, 120_000}, {"acme", 41, 99_000, 2, 98_960}, {"acme", 2, 2, 1, 1},
		{"acme", 120_000, 0, 1, 1}, {"acme", 1, 900_000, 1, 120_000}, {"bravo", 0, 0, 2, 50},
	} {
		var last int64
		r := check(t, pgread.New(db, tenant.ID(c.id)), verify.Options{
			Tenant: c.id, From: c.from, To: c.to, Workers: c.workers, Keys: keysOf(c.id),
			Progress: func(done, total int64) { last = done },
		})
		if r.Verdict != verify.Intact || r.Entries != c.entries || last != c.entries || !r.MACsChecked {
			t.Errorf("%+v: %+v, progress %d", c, r, last)
		}
	}
	if r := check(t, pgread.New(db, "nobody"), verify.Options{Tenant: "nobody"}); r.Verdict != verify.Unknown {
		t.Errorf("a tenant that the ledger does not know: %+v", r)
	}
}

// A store that fails in the middle gives no verdict of intact or broken.
func TestStoreAway(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	fill(t, l, 100, "acme")
	db := l.Open(t, postgres.RoleApp)
	db.Close()
	if r := check(t, pgread.New(db, "acme"), verify.Options{Tenant: "acme"}); r.Verdict != verify.Unknown || r.Message == "" {
		t.Errorf("%+v", r)
	}
}

// tampering is done as superuser, with triggers and row security out of the way.
type tampering struct {
	name   string
	sql    string
	bad    int64
	reason verify.Reason
	keys   bool // only seen with MAC keys
}

var tamperings = []tampering{
	{"flip a bit", `update ledger.entry set canonical = set_bit(canonical, 77, 1 - get_bit(canonical, 77)) where tenant_id = 'acme' and seq = 51`, 51, verify.Hash, false},
	{"flip a bit of the chain", `update ledger.entry set chain = set_bit(chain, 7, 1 - get_bit(chain, 7)) where tenant_id = 'acme' and seq = 51`, 51, verify.Hash, false},
	{"flip a bit of the MAC", `update ledger.entry set mac = set_bit(mac, 7, 1 - get_bit(mac, 7)) where tenant_id = 'acme' and seq = 51`, 51, verify.MAC, true},
	{"edit the cost column", `update ledger.entry set cost_usd = cost_usd + 0.000000000001 where tenant_id = 'acme' and seq = 52`, 52, verify.Projection, false},
	{"null the cost column", `update ledger.entry set cost_usd = null where tenant_id = 'acme' and seq = 52`, 52, verify.Projection, false},
	{"price an unpriced entry", `update ledger.entry set cost_usd = 0 where tenant_id = 'acme' and seq = 55`, 55, verify.Projection, false},
	{"NaN cost", `update ledger.entry set cost_usd = 'NaN' where tenant_id = 'acme' and seq = 55`, 55, verify.Projection, false},
	{"edit the time column", `update ledger.entry set occurred_at = occurred_at + interval '1 microsecond' where tenant_id = 'acme' and seq = 53`, 53, verify.Projection, false},
	{"edit the kind column", `update ledger.entry set kind = 3 where tenant_id = 'acme' and seq = 53`, 53, verify.Projection, false},
	{"change the key id", `update ledger.entry set key_epoch = 1 where tenant_id = 'acme' and seq = 53`, 53, verify.Projection, false},
	{"delete in the middle", `delete from ledger.entry where tenant_id = 'acme' and seq = 60`, 60, verify.Gap, false},
	{"delete many in the middle", `delete from ledger.entry where tenant_id = 'acme' and seq between 60 and 70`, 60, verify.Gap, false},
	{"delete the first", `delete from ledger.entry where tenant_id = 'acme' and seq = 1`, 1, verify.Gap, false},
	{"delete the tail", `delete from ledger.entry where tenant_id = 'acme' and seq > 90`, 91, verify.Truncated, false},
	{"delete all", `delete from ledger.entry where tenant_id = 'acme'`, 1, verify.Truncated, false},
	{"delete the head", `delete from ledger.head where tenant_id = 'acme'`, 101, verify.MissingAnchor, false},
	{"delete tail, head follows the count only", `with d as (delete from ledger.entry where tenant_id = 'acme' and seq > 90) update ledger.head set seq = 90 where tenant_id = 'acme'`, 90, verify.Hash, false},
	{"roll the head back", `update ledger.head h set seq = 90, chain = (select chain from ledger.entry e where e.tenant_id = 'acme' and e.seq = 90) where tenant_id = 'acme'`, 91, verify.Truncated, false},
	{"swap two bodies", `update ledger.entry a set canonical = b.canonical, chain = b.chain, mac = b.mac, kind = b.kind, occurred_at = b.occurred_at, cost_usd = b.cost_usd from ledger.entry b where a.tenant_id = 'acme' and b.tenant_id = 'acme' and a.seq + b.seq = 123 and a.seq in (61, 62)`, 61, verify.PreviousHash, false},
	{"duplicate as new", `update ledger.entry a set canonical = b.canonical, kind = b.kind, occurred_at = b.occurred_at, cost_usd = b.cost_usd from ledger.entry b where a.tenant_id = 'acme' and b.tenant_id = 'acme' and a.seq = 77 and b.seq = 76`, 77, verify.Hash, false},
	{"another tenant's body", `update ledger.entry a set canonical = b.canonical, chain = b.chain, mac = b.mac from ledger.entry b where a.tenant_id = 'acme' and b.tenant_id = 'bravo' and a.seq = 77 and b.seq = 77`, 77, verify.PreviousHash, false},
	{"transplant a MAC", `update ledger.entry a set mac = b.mac from ledger.entry b where a.tenant_id = 'acme' and b.tenant_id = 'acme' and a.seq = 77 and b.seq = 78`, 77, verify.MAC, true},
	{"edit and recompute the hash", `update ledger.entry a set canonical = e.c, chain = sha256('tallystick/chain/v1'::bytea || '\x00' || p.chain || sha256('\x00' || e.c))
		from (select set_byte(canonical, length(canonical) - 1, 2) as c from ledger.entry where tenant_id = 'acme' and seq = 63) e, ledger.entry p
		where p.tenant_id = 'acme' and p.seq = 62 and a.tenant_id = 'acme' and a.seq = 63`, 63, verify.MAC, true},
	{"forge a tail", `insert into ledger.entry select tenant_id, 101, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac from ledger.entry where tenant_id = 'acme' and seq = 99`, 101, verify.Truncated, false},
}

func TestTampering(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	fill(t, l, 100, "acme", "bravo")
	su, db := admin(t, l), l.Open(t, postgres.RoleApp)
	for _, table := range []string{"ledger.entry", "ledger.head"} {
		if _, err := su.Exec("create table saved_" + table[len("ledger."):] + " as select * from " + table); err != nil {
			t.Fatal(err)
		}
	}
	src := pgread.New(db, "acme")
	for _, c := range tamperings {
		t.Run(c.name, func(t *testing.T) {
			tamper(t, su, c.sql)
			r := check(t, src, verify.Options{Tenant: "acme", Workers: 2, Keys: keysOf("acme")})
			if r.Verdict != verify.Broken || r.FirstBad != c.bad || r.Reason != c.reason {
				t.Errorf("got %s at %d: %s (%s); want %s at %d", r.Verdict, r.FirstBad, r.Reason, r.Message, c.reason, c.bad)
			}
			r = check(t, src, verify.Options{Tenant: "acme"})
			// Without the key, recomputing the hash moves the first bad entry to the
			// next one, and a MAC alone is not looked at.
			if !c.keys && (r.Verdict != verify.Broken || r.FirstBad != c.bad) {
				t.Errorf("without keys: %s at %d: %s; want %d", r.Verdict, r.FirstBad, r.Reason, c.bad)
			}
		})
	}
	if r := check(t, src, verify.Options{Tenant: "acme", Keys: keysOf("acme")}); r.Verdict != verify.Intact {
		t.Errorf("restored, the ledger is %+v", r)
	}
}

// tamper runs a statement as superuser and puts everything back with the test.
func tamper(t *testing.T, su *sql.DB, statement string) {
	t.Helper()
	run := func(statements ...string) {
		t.Helper()
		conn, err := su.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, s := range append([]string{"set session_replication_role = replica"}, statements...) {
			if _, err := conn.ExecContext(context.Background(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	run(statement)
	t.Cleanup(func() {
		run("delete from ledger.entry", "delete from ledger.head",
			"insert into ledger.entry select * from saved_entry", "insert into ledger.head select * from saved_head")
	})
}

// Any single bit of any stored column makes the entry bad, and the one before good.
func TestAnyBit(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	fill(t, l, 100, "acme")
	su, db := admin(t, l), l.Open(t, postgres.RoleApp)
	for _, table := range []string{"ledger.entry", "ledger.head"} {
		if _, err := su.Exec("create table saved_" + table[len("ledger."):] + " as select * from " + table); err != nil {
			t.Fatal(err)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		seq, bit, column := rnd.IntN(100)+1, rnd.IntN(1<<20), []string{"canonical", "chain", "mac"}[rnd.IntN(3)]
		t.Run(fmt.Sprintf("%s of %d", column, seq), func(t *testing.T) {
			tamper(t, su, fmt.Sprintf(`update ledger.entry set %[1]s = set_bit(%[1]s, %[2]d %% (8 * length(%[1]s)), 1 - get_bit(%[1]s, %[2]d %% (8 * length(%[1]s))))
				where tenant_id = 'acme' and seq = %[3]d`, column, bit, seq))
			r := check(t, pgread.New(db, "acme"), verify.Options{Tenant: "acme", Keys: keysOf("acme")})
			if r.Verdict != verify.Broken || r.FirstBad != int64(seq) || r.Entries != int64(seq-1) {
				t.Errorf("bit %d: %+v", bit, r)
			}
		})
	}
}

// BenchmarkVerify measures, in one run, the limit (a binary COPY of the same
// columns that is thrown away) and the verifier with one and two workers.
func BenchmarkVerify(b *testing.B) {
	l := testenv.MigratedPostgres(b)
	const n = 400_000
	fill(b, l, n, "acme")
	if _, err := admin(b, l).Exec("vacuum analyze ledger.entry_0"); err != nil {
		b.Fatal(err)
	}
	db := l.Open(b, postgres.RoleApp)
	rate := func(b *testing.B, run func()) {
		start := time.Now()
		for b.Loop() {
			run()
		}
		b.ReportMetric(float64(n)*float64(b.N)/time.Since(start).Seconds(), "entries/s")
	}
	b.Run("drain", func(b *testing.B) {
		rate(b, func() {
			err := db.InTenant(b.Context(), "acme", func(tx postgres.Tx) error {
				_, err := tx.Conn().PgConn().CopyTo(b.Context(), io.Discard, `copy (
					select seq, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac from ledger.entry
					where tenant_id = 'acme' order by tenant_id, seq) to stdout (format binary)`)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	})
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			rate(b, func() {
				r := check(b, pgread.New(db, "acme"), verify.Options{Tenant: "acme", Workers: workers, Keys: keysOf("acme")})
				if r.Verdict != verify.Intact || r.Entries != n {
					b.Fatalf("%+v", r)
				}
			})
		})
	}
}
