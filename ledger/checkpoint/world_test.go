package checkpoint_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

func TestMain(m *testing.M) {
	if dieBetween() {
		return
	}
	testenv.Main(m)
}

// testKeys are signing keys that are a function of tenant and epoch.
type testKeys struct{ epoch uint32 }

func (k testKeys) SigningEpoch(tenant.ID) uint32 { return max(k.epoch, 1) }

func (k testKeys) SigningKey(id tenant.ID, epoch uint32) (ed25519.PrivateKey, error) {
	seed := sha256.Sum256(fmt.Appendf(nil, "sign/%s/%d", id, epoch))
	return ed25519.NewKeyFromSeed(seed[:]), nil
}

const installation = "test.example"

// world is a ledger in a real Postgres with a checkpoint directory.
type world struct {
	t       testing.TB
	pg      *testenv.Ledger
	many    *postgres.DB
	one     *postgres.DB
	writer  *pgstore.Store
	state   ledger.State
	heads   map[string]*ledger.Head
	dir     *checkpoint.Dir
	keys    checkpoint.Keys
	options checkpoint.Options
}

var topic = ledger.Topic{ID: [16]byte{7}, Partitions: 1}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, pg: testenv.MigratedPostgres(t), heads: make(map[string]*ledger.Head), keys: testKeys{}}
	w.many, w.one = w.pg.Open(t, postgres.RoleLedger), w.pg.Open(t, postgres.RoleApp)
	w.writer = pgstore.New(w.many)
	var err error
	if w.state, err = w.writer.Assign(t.Context(), topic, 0); err != nil {
		t.Fatal(err)
	}
	if w.dir, err = checkpoint.OpenDir(filepath.Join(t.TempDir(), "checkpoints")); err != nil {
		t.Fatal(err)
	}
	w.options = checkpoint.Options{Installation: installation, Tenants: w.tenants}
	return w
}

func (w *world) tenants() (ids []tenant.ID) {
	for id := range w.heads {
		ids = append(ids, tenant.ID(id))
	}
	slices.Sort(ids)
	return ids
}

func (w *world) source() *pglog.Ledger { return pglog.NewLedger(w.many, w.one) }

func (w *world) store() *pgstore.Checkpoints { return pgstore.NewCheckpoints(w.many) }

// signer is a Checkpointer as a process would start it.
func (w *world) signer() *checkpoint.Checkpointer {
	return checkpoint.New(w.source(), w.store(), w.dir, w.keys, w.options, discard())
}

// append commits n entries of a tenant through the writer's store.
func (w *world) append(id string, n int) {
	w.t.Helper()
	head, ok := w.heads[id]
	if !ok {
		head = &ledger.Head{Tenant: id, Chain: chain.Genesis(id)}
		w.heads[id] = head
	}
	hasher := chain.NewHasher()
	for n > 0 {
		count := min(n, 20_000)
		b := &ledger.Batch{Topic: topic, Epoch: w.state.Epoch, Number: w.state.LastBatch + 1,
			FirstOffset: w.state.NextOffset, NextOffset: w.state.NextOffset + int64(count)}
		g := ledger.Group{Before: *head, New: head.Seq == 0, Count: count}
		for i := range count {
			e := entry(id, head.Seq+1, w.state.NextOffset+int64(i))
			if e.Kind == chain.Control {
				head.KeyEpoch++
			}
			b.Rows = append(b.Rows, seal(e, head, hasher))
		}
		g.After = *head
		b.Groups = []ledger.Group{g}
		if err := w.writer.Commit(w.t.Context(), b); err != nil {
			w.t.Fatal(err)
		}
		w.state.LastBatch, w.state.NextOffset = b.Number, b.NextOffset
		n -= count
	}
}

func seal(e *chain.Entry, head *ledger.Head, h *chain.Hasher) ledger.Row {
	canonical := e.Append(nil)
	leaf := h.Leaf(canonical)
	head.Seq, head.Chain, head.ReceivedAt = e.Seq, h.Next(&head.Chain, &leaf), e.Event.ReceivedAt
	return ledger.Row{
		Sealed: chain.Sealed{Canonical: canonical, Chain: head.Chain, MAC: chain.Hash{9}, Epoch: head.KeyEpoch},
		Seq:    e.Seq, Kind: e.Kind, OccurredAt: e.Event.OccurredAt, Priced: e.Priced, Cost: e.Cost, Key: e.Key,
	}
}

func entry(id string, seq, offset int64) *chain.Entry {
	e := &chain.Entry{Seq: seq, Position: chain.Position{TopicID: topic.ID, Offset: offset}}
	e.Event.Tenant, e.Event.ReceivedAt = id, 1_760_000_001_000_000_000+seq
	if seq == 1 {
		e.Kind, e.ControlKind, e.ControlVersion = chain.Control, event.ControlKeyEpoch, "1"
		e.Key = chain.ControlKey(&e.Position, id)
		return e
	}
	e.Kind, e.PricingVersion, e.PriceBook = chain.Usage, 1, chain.Hash{3}
	ev := &e.Event
	ev.ID, ev.OccurredAt = fmt.Sprintf("%08x-2345-7abc-8def-0123456789ab", seq), 1_760_000_000_000_000_999+seq*1e6
	ev.ProducerID, ev.ProducerEpoch, ev.ProducerSeq = "proxy-1", 1_760_000_000, seq
	ev.Provider, ev.Model, ev.Status, ev.ServiceTier = "openai", "gpt-4o", "ok", "standard"
	ev.Team, ev.Service, ev.Environment = "search", "api", "prod"
	ev.ContentMAC, ev.HasContentMAC = sha256.Sum256([]byte(ev.ID)), true
	ev.Tokens[tokens.Input], ev.Tokens[tokens.Output] = 1000+seq%997, seq%300
	e.Key = event.KeyOf(ev.ID)
	e.Priced, e.Cost, e.PriceRow = true, money.Pico(seq*2_500_003), "openai/gpt-4o@2024-08-06"
	return e
}

// admin opens the database as superuser. The driver is the one that package
// migrations registers.
func (w *world) admin() *sql.DB {
	w.t.Helper()
	db, err := sql.Open("pgx", w.pg.AdminDSN)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	return db
}

// exec runs a statement as superuser and wants it to change something.
func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	res, err := w.admin().Exec(sql, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		w.t.Fatalf("%s changed nothing", sql)
	}
}

func (w *world) round(c *checkpoint.Checkpointer) {
	w.t.Helper()
	if err := c.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) clean(c *checkpoint.Checkpointer) {
	w.t.Helper()
	if s := c.Status(); len(s.Faults) > 0 || s.LastError != "" {
		w.t.Fatalf("status %+v", s)
	}
}

func (w *world) newest(id tenant.ID) checkpoint.Published {
	w.t.Helper()
	found, err := w.store().Newest(w.t.Context(), checkpoint.LedgerLog, []tenant.ID{id})
	if err != nil {
		w.t.Fatal(err)
	}
	return found[id]
}

// vkey is the tenant's public key of an epoch, as a stranger is given it.
func (w *world) vkey(id tenant.ID, epoch uint32) string {
	key, err := w.keys.SigningKey(id, epoch)
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := note.NewEd25519VerifierKey(checkpoint.Origin(installation, checkpoint.LedgerLog, id), key.Public().(ed25519.PublicKey))
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// leaves reads the tenant's leaf hashes as superuser would.
func (w *world) leaves(id string) (list []tlog.Hash) {
	w.t.Helper()
	rows, err := w.admin().Query(`select canonical from ledger.entry where tenant_id = $1 order by seq`, id)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			w.t.Fatal(err)
		}
		list = append(list, tlog.RecordHash(b))
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return list
}

// merkle is the root of leaves by another implementation.
func merkle(t testing.TB, leaves []tlog.Hash) checkpoint.Hash {
	t.Helper()
	var tree hashList
	for i, leaf := range leaves {
		hs, err := tlog.StoredHashesForRecordHash(int64(i), leaf, &tree)
		if err != nil {
			t.Fatal(err)
		}
		tree = append(tree, hs...)
	}
	root, err := tlog.TreeHash(int64(len(leaves)), &tree)
	if err != nil {
		t.Fatal(err)
	}
	return checkpoint.Hash(root)
}

type hashList []tlog.Hash

func (h *hashList) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = (*h)[x]
	}
	return out, nil
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
