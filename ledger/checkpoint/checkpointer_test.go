package checkpoint_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"
)

func TestSignsWhatIsStored(t *testing.T) {
	w := newWorld(t)
	w.append("acme", 700)
	w.append("globex", 3)
	c := w.signer()
	w.round(c)
	w.clean(c)
	for id, size := range map[tenant.ID]int64{"acme": 700, "globex": 3} {
		p := w.newest(id)
		v, err := note.NewVerifier(w.vkey(id, 1))
		if err != nil {
			t.Fatal(err)
		}
		n, err := note.Open([]byte(p.Note), note.VerifierList(v))
		if err != nil {
			t.Fatal(err)
		}
		h, err := checkpoint.ParseText(n.Text)
		if err != nil || h.Size != size || h.Origin != "test.example/ledger/"+string(id) || h.Root != merkle(t, w.leaves(string(id))) {
			t.Fatalf("%s: %+v, %v", id, h, err)
		}
		inDir, err := w.dir.Read(checkpoint.LedgerLog, id, size)
		if err != nil || inDir != p.Note {
			t.Fatalf("directory and store differ: %q, %v", inDir, err)
		}
	}
	w.round(c) // nothing is new, nothing is signed
	if s := c.Status(); s.Checkpoints != 2 || s.Entries != 703 {
		t.Fatalf("status %+v", s)
	}
}

// TestGrowsAndResumes signs in steps around tile borders, with a new process now
// and then, and holds every pair of checkpoints together.
func TestGrowsAndResumes(t *testing.T) {
	w := newWorld(t)
	w.options.MaxEntries = 300
	c := w.signer()
	for i, n := range []int{1, 254, 1, 1, 255, 600, 70_000, 3} {
		w.append("acme", n)
		if i%3 == 2 {
			c = w.signer()
		}
		w.round(c)
		w.clean(c)
	}
	leaves := w.leaves("acme")
	sizes, err := w.dir.Sizes(checkpoint.LedgerLog, "acme")
	if err != nil || sizes[len(sizes)-1] != int64(len(leaves)) {
		t.Fatalf("sizes %v, %v", sizes, err)
	}
	newest := w.newest("acme")
	if newest.Root != merkle(t, leaves) {
		t.Fatal("the root is not that of the entries")
	}
	r := checkpoint.NewReader(w.store(), checkpoint.LedgerLog, "acme")
	last := checkpoint.Head{Size: newest.Size, Root: newest.Root}
	for i := 0; i < len(sizes); i += 1 + len(sizes)/20 {
		h := w.head(sizes[i])
		proof, err := checkpoint.Consistency(t.Context(), r, h.Size, newest.Size, newest.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkpoint.VerifyConsistency(&h, &last, proof); err != nil {
			t.Fatalf("from %d: %v", h.Size, err)
		}
		index := h.Size - 1
		proof, err = checkpoint.Inclusion(t.Context(), r, index, h.Size, newest.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkpoint.VerifyInclusion(checkpoint.Hash(leaves[index]), index, &h, proof); err != nil {
			t.Fatalf("entry %d: %v", index+1, err)
		}
	}
}

func (w *world) head(size int64) checkpoint.Head {
	w.t.Helper()
	signed, err := w.dir.Read(checkpoint.LedgerLog, "acme", size)
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := checkpoint.OpenUnverified(signed)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// TestHalts tampers as superuser and wants signing to stop, with the first bad
// entry and the reason, whether the process runs on or starts anew.
func TestHalts(t *testing.T) {
	cases := []struct {
		name   string
		tamper func(w *world)
		seq    int64
		reason string
		fresh  bool // only a process that starts can know
	}{
		{"new entry edited", func(w *world) {
			w.exec(`update ledger.entry_0 set canonical = set_byte(canonical, 40, get_byte(canonical, 40) # 1) where seq = 620`)
		}, 620, string(verify.Hash), false},
		{"new entry deleted", func(w *world) {
			w.exec(`delete from ledger.entry_0 where seq = 630`)
		}, 630, string(verify.Gap), false},
		{"tail deleted", func(w *world) {
			w.exec(`delete from ledger.entry_0 where seq > 640`)
		}, 641, string(verify.Truncated), false},
		{"first new entry chained to something else", func(w *world) {
			w.exec(`update ledger.entry_0 set chain = sha256(chain) where seq = 601`)
		}, 601, string(verify.Hash), false},
		{"head rewritten", func(w *world) {
			w.exec(`update ledger.head set chain = sha256(chain) where tenant_id = 'acme'`)
		}, 700, checkpoint.ReasonHeadHash, false},
		{"rolled back below the checkpoint", func(w *world) {
			w.exec(`delete from ledger.entry_0 where seq > 500`)
			w.exec(`update ledger.head set seq = 500, chain = (select chain from ledger.entry_0 where tenant_id = 'acme' and seq = 500) where tenant_id = 'acme'`)
		}, 600, checkpoint.ReasonBelow, false},
		{"rolled back together with its checkpoints", func(w *world) {
			w.exec(`delete from ledger.entry_0 where seq > 500`)
			w.exec(`update ledger.head set seq = 500, chain = (select chain from ledger.entry_0 where tenant_id = 'acme' and seq = 500) where tenant_id = 'acme'`)
			w.exec(`delete from ledger.checkpoint where size > 400`)
			w.exec(`delete from ledger.tree_tile where index >= 1`)
		}, 600, checkpoint.ReasonBelow, true},
		{"entry below the checkpoint edited", func(w *world) {
			w.exec(`update ledger.entry_0 set canonical = set_byte(canonical, 40, get_byte(canonical, 40) # 1) where seq = 599`)
		}, 600, checkpoint.ReasonTree, true},
		{"tile edited", func(w *world) {
			w.exec(`update ledger.tree_tile set root = sha256(root) where index = 1`)
		}, 600, checkpoint.ReasonTree, true},
		{"tile deleted", func(w *world) {
			w.exec(`delete from ledger.tree_tile where index = 0`)
		}, 600, checkpoint.ReasonTree, true},
		{"root of the checkpoint edited", func(w *world) {
			w.exec(`update ledger.checkpoint set root = sha256(root) where size = 600`)
		}, 600, checkpoint.ReasonNote, true},
		{"note edited", func(w *world) {
			w.exec(`update ledger.checkpoint set note = replace(note, '600', '599') where size = 600`)
		}, 600, checkpoint.ReasonNote, true},
		{"checkpoint deleted and the chain rewritten", func(w *world) {
			w.exec(`delete from ledger.checkpoint where size = 600`)
			w.exec(`delete from ledger.tree_tile where index >= 1`)
			w.rewrite(450)
		}, 600, checkpoint.ReasonForked, true},
		{"statement of a key replaced", func(w *world) {
			w.exec(`update ledger.signing_key set vkey = replace(vkey, '+', '-')`)
		}, 600, checkpoint.ReasonKeys, true},
	}
	for _, c := range cases {
		for _, fresh := range []bool{true, false} {
			if c.fresh && !fresh {
				continue
			}
			t.Run(c.name+map[bool]string{true: " at start", false: ""}[fresh], func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.append("acme", 400)
				s := w.signer()
				w.round(s)
				w.append("acme", 200)
				w.round(s)
				w.append("acme", 100)
				w.append("globex", 5)
				c.tamper(w)
				if fresh {
					s = w.signer()
				}
				w.round(s)
				w.round(s) // it stays so
				st := s.Status()
				if len(st.Faults) != 1 || st.Faults[0].Tenant != "acme" || st.Faults[0].Seq != c.seq || st.Faults[0].Reason != c.reason {
					t.Fatalf("faults %+v, want %s at %d", st.Faults, c.reason, c.seq)
				}
				if w.newest("globex").Size != 5 {
					t.Error("another tenant's log is not signed")
				}
				if p := w.newest("acme"); p.Size > 600 {
					t.Errorf("a checkpoint of size %d was signed over it", p.Size)
				}
			})
		}
	}
}

// rewrite changes an entry and chains everything behind it anew, head included.
func (w *world) rewrite(from int64) {
	w.t.Helper()
	db := w.admin()
	rows, err := db.Query(`select seq, canonical from ledger.entry_0 where seq >= $1 order by seq`, from)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	type row struct {
		seq       int64
		canonical []byte
	}
	var list []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.seq, &r.canonical); err != nil {
			w.t.Fatal(err)
		}
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	var prev []byte
	if err := db.QueryRow(`select chain from ledger.entry_0 where seq = $1`, from-1).Scan(&prev); err != nil {
		w.t.Fatal(err)
	}
	list[0].canonical[40] ^= 1
	for _, r := range list {
		if err := db.QueryRow(`
			update ledger.entry_0 set canonical = $2, chain = sha256('tallystick/chain/v1'::bytea || '\x00'::bytea || $3 || sha256('\x00'::bytea || $2))
			where tenant_id = 'acme' and seq = $1 returning chain`, r.seq, r.canonical, prev).Scan(&prev); err != nil {
			w.t.Fatal(err)
		}
	}
	w.exec(`update ledger.head set chain = $1 where tenant_id = 'acme'`, prev)
}

// countingStore counts what is asked about newest checkpoints.
type countingStore struct {
	checkpoint.Store
	asked int
}

func (c *countingStore) Newest(ctx context.Context, log string, ids []tenant.ID) (map[tenant.ID]checkpoint.Published, error) {
	c.asked++
	return c.Store.Newest(ctx, log, ids)
}

// TestIdleTenantsCostNothing: a tenant whose log does not grow, or that has
// none, is looked at once.
func TestIdleTenantsCostNothing(t *testing.T) {
	w := newWorld(t)
	w.append("acme", 300)
	w.options.Tenants = func() []tenant.ID { return []tenant.ID{"acme", "empty"} }
	store := &countingStore{Store: w.store()}
	c := checkpoint.New(w.source(), store, w.dir, w.keys, w.options, discard())
	for range 5 {
		w.round(c)
	}
	if store.asked != 2 || w.newest("acme").Size != 300 {
		t.Errorf("asked %d times for 2 tenants in 5 rounds", store.asked)
	}
	w.append("empty", 2) // it is not forgotten
	w.round(c)
	if w.newest("empty").Size != 2 {
		t.Error("the first entries of a tenant are not signed")
	}
	w.exec(`delete from ledger.entry_0 where tenant_id = 'acme'`)
	w.exec(`delete from ledger.head where tenant_id = 'acme'`)
	w.round(c)
	if f := c.Status().Faults; len(f) != 1 || f[0].Reason != checkpoint.ReasonBelow || f[0].Seq != 300 {
		t.Errorf("a log that is gone: %+v", f)
	}
}

// TestNewDirectoryIsFilled: a directory that lost what the store has gets it back.
func TestNewDirectoryIsFilled(t *testing.T) {
	w := newWorld(t)
	w.append("acme", 10)
	w.round(w.signer())
	var err error
	if w.dir, err = checkpoint.OpenDir(filepath.Join(t.TempDir(), "new")); err != nil {
		t.Fatal(err)
	}
	w.append("acme", 10)
	c := w.signer()
	w.round(c)
	w.clean(c)
	if sizes, _ := w.dir.Sizes(checkpoint.LedgerLog, "acme"); !slices.Equal(sizes, []int64{10, 20}) {
		t.Fatalf("sizes %v", sizes)
	}
}

// TestTwoProcesses: both sign the same log; what is published is one history.
func TestTwoProcesses(t *testing.T) {
	w := newWorld(t)
	a, b := w.signer(), w.signer()
	for range 5 {
		w.append("acme", 100)
		w.round(a)
		if err := b.Round(t.Context()); err != nil && !errors.Is(err, checkpoint.ErrMoved) {
			t.Fatal(err)
		}
		w.round(b)
		w.clean(a)
		w.clean(b)
		a, b = b, a
	}
	if p := w.newest("acme"); p.Size != 500 || p.Root != merkle(t, w.leaves("acme")) {
		t.Fatalf("%+v", p)
	}
}

// childDSNs names what the child of TestDiesBetween needs, as its environment.
const childEnv = "TALLYSTICK_TEST_CHECKPOINT_CHILD"

// dyingStore is killed where Postgres would be written.
type dyingStore struct{ checkpoint.Store }

func (dyingStore) Publish(context.Context, string, tenant.ID, int64, []checkpoint.Tile, *checkpoint.Published) error {
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// dieBetween is the child: it signs, and dies between directory and store.
func dieBetween() bool {
	dsns, ok := os.LookupEnv(childEnv)
	if !ok {
		return false
	}
	parts := strings.Split(dsns, "\n")
	ctx := context.Background()
	signer := postgres.NewSigner(1, [32]byte{1, 2, 3})
	many, err := postgres.Open(ctx, parts[0], signer, postgres.Options{})
	if err != nil {
		panic(err)
	}
	one, err := postgres.Open(ctx, parts[1], signer, postgres.Options{})
	if err != nil {
		panic(err)
	}
	dir, err := checkpoint.OpenDir(parts[2])
	if err != nil {
		panic(err)
	}
	w := &world{many: many, one: one, dir: dir, keys: testKeys{}}
	w.options = checkpoint.Options{Installation: installation, Tenants: func() []tenant.ID { return []tenant.ID{"acme"} }}
	c := checkpoint.New(w.source(), dyingStore{pgstore.NewCheckpoints(many)}, dir, w.keys, w.options, discard())
	panic(c.Round(ctx))
}

func TestDiesBetweenDirectoryAndStore(t *testing.T) {
	w := newWorld(t)
	w.append("acme", 400)
	w.round(w.signer())
	for _, more := range []int{1, 300, 20_000} {
		w.append("acme", more)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{w.pg.DSNs[postgres.RoleLedger], w.pg.DSNs[postgres.RoleApp], w.dir.Path()}, "\n"))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the child was not killed: %v\n%s", err, out)
		}
		size, signed, _, err := w.dir.Newest(checkpoint.LedgerLog, "acme")
		if err != nil || size != w.heads["acme"].Seq || w.newest("acme").Size >= size {
			t.Fatalf("directory at %d, store at %d (%v)", size, w.newest("acme").Size, err)
		}
		w.append("acme", 7) // the ledger goes on meanwhile
		c := w.signer()
		w.round(c)
		w.clean(c)
		list, err := w.store().List(t.Context(), checkpoint.LedgerLog, "acme", 0, 2)
		if err != nil || len(list) != 2 || list[1].Note != signed || list[0].Size != size+7 {
			t.Fatalf("published %+v, %v", list, err)
		}
	}
}

// TestRotation: a new key is stated by the one before it, so that who trusts the
// first key follows to the newest, and old checkpoints still verify.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	w.append("acme", 10)
	w.round(w.signer())
	w.keys = testKeys{epoch: 3}
	w.append("acme", 10)
	c := w.signer()
	w.round(c)
	w.clean(c)
	origin := checkpoint.Origin(installation, checkpoint.LedgerLog, "acme")
	statements, err := w.dir.Statements(checkpoint.LedgerLog, "acme")
	if err != nil || len(statements) != 3 {
		t.Fatalf("statements %q, %v", statements, err)
	}
	verifiers, err := checkpoint.Verifiers(origin, w.vkey("acme", 1), statements)
	if err != nil || len(verifiers) != 3 {
		t.Fatalf("%d verifiers, %v", len(verifiers), err)
	}
	for _, size := range []int64{10, 20} {
		signed, _ := w.dir.Read(checkpoint.LedgerLog, "acme", size)
		if _, err := checkpoint.Open(signed, origin, verifiers...); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
	signed, _ := w.dir.Read(checkpoint.LedgerLog, "acme", 20)
	if _, err := checkpoint.Open(signed, origin, verifiers[0]); err == nil {
		t.Error("the new checkpoint verifies with the old key")
	}
	// Without the link in the middle nothing leads from the first key to the third.
	cut := []string{statements[0], statements[2]}
	if verifiers, err = checkpoint.Verifiers(origin, w.vkey("acme", 1), cut); err != nil || len(verifiers) != 1 {
		t.Errorf("a cut chain of statements gives %d verifiers, %v", len(verifiers), err)
	}
	forged := strings.Replace(statements[1], "\n2\n", "\n7\n", 1)
	if _, err := checkpoint.Verifiers(origin, w.vkey("acme", 1), []string{statements[0], forged}); !errors.Is(err, checkpoint.ErrSignature) {
		t.Errorf("a changed statement: %v", err)
	}
}
