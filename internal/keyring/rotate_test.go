package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newClock() *clock { return &clock{time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)} }

func openAt(t testing.TB, dir string, c *clock) *keyring.Ring {
	t.Helper()
	r, err := keyring.OpenWith(dir, keyring.Options{Now: c.Now})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// states is a tenant's epochs as text, such as "mac 1 verify-only, mac 2 active".
func states(t testing.TB, r *keyring.Ring, id tenant.ID, s keyring.Series) string {
	t.Helper()
	all, err := r.Epochs(id)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range all {
		if e.Series == s {
			out = append(out, fmt.Sprintf("%d %s", e.Number, e.State))
		}
	}
	return strings.Join(out, ", ")
}

func rotate(t testing.TB, r *keyring.Ring, s keyring.Series, ids ...tenant.ID) []keyring.KeyEpoch {
	t.Helper()
	made, err := r.Rotate(s, ids...)
	if err != nil {
		t.Fatalf("Rotate(%s): %v", s, err)
	}
	return made
}

func TestRotate(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	r, other := openAt(t, dir, c), openAt(t, dir, c)
	mustCreate(t, r, "acme", "beta")
	at := keyring.Place{Table: "subject", Column: "identity", Row: "1"}
	before, err := r.Seal(nil, "acme", keyring.SealSubject, at, []byte("ann"))
	if err != nil {
		t.Fatal(err)
	}
	key1, _ := r.SigningKey("acme", 1)
	mac1 := mustDerive(t, r, "acme", keyring.MAC, 1)

	for _, s := range keyring.AllSeries() {
		rotate(t, r, s, "acme")
	}
	if again := rotate(t, r, keyring.SeriesMAC, "acme"); again[0].Number != 2 || again[0].State != keyring.Next {
		t.Errorf("a second rotation before the ledger has met the first: %+v", again)
	}
	for _, ring := range []*keyring.Ring{r, other, mustOpen(t, dir)} {
		for s, want := range map[keyring.Series]string{
			keyring.SeriesMAC: "1 active, 2 next", keyring.SeriesCheckpoint: "1 verify-only, 2 active",
			keyring.SeriesAudit: "1 verify-only, 2 active", keyring.SeriesSealing: "1 verify-only, 2 active",
		} {
			if got := states(t, ring, "acme", s); got != want {
				t.Errorf("%s: %s, want %s", s, got, want)
			}
			if got := states(t, ring, "beta", s); got != "1 active" {
				t.Errorf("beta's %s: %s", s, got)
			}
		}
		if ring.Epoch("acme", keyring.MAC) != 1 || ring.Epoch("acme", keyring.SealTags) != 2 || ring.Epoch("beta", keyring.SealTags) != 1 {
			t.Error("the active epoch is wrong")
		}
		if p := ring.Pending(); len(p) != 1 || p[0].Tenant != "acme" || p[0].Number != 2 {
			t.Errorf("pending %+v", p)
		}
		if got, err := ring.Open(nil, "acme", keyring.SealSubject, at, before); err != nil || string(got) != "ann" {
			t.Errorf("what an older epoch sealed: %q, %v", got, err)
		}
		now, err := ring.Seal(nil, "acme", keyring.SealSubject, at, nil)
		if epoch, ok := keyring.SealedEpoch(now); err != nil || !ok || epoch != 2 {
			t.Errorf("sealed under epoch %d, %v", epoch, err)
		}
		for _, epoch := range []uint32{0, 3} {
			if _, err := ring.SigningKey("acme", epoch); !errors.Is(err, keyring.ErrEpoch) {
				t.Errorf("epoch %d signs: %v", epoch, err)
			}
		}
		if key, err := ring.SigningKey("acme", 1); err != nil || !key.Equal(key1) {
			t.Errorf("the epoch before cannot hand over: %v", err)
		}
		if public, err := ring.VerifyKey("acme", 1); err != nil || !public.Equal(key1.Public()) {
			t.Errorf("an old epoch's public half: %v", err)
		}
		if mustDerive(t, ring, "acme", keyring.MAC, 1) != mac1 {
			t.Error("rotation changed a MAC key")
		}
	}
	for range 2 { // said twice it does no harm
		if err := other.Activate(r.Pending()...); err != nil {
			t.Fatal(err)
		}
	}
	if got := states(t, r, "acme", keyring.SeriesMAC); got != "1 verify-only, 2 active" || len(r.Pending()) != 0 {
		t.Errorf("after Activate: %s", got)
	}
	if err := r.Activate(keyring.KeyEpoch{Tenant: "acme", Series: keyring.SeriesMAC, Number: 4}); !errors.Is(err, keyring.ErrEpoch) {
		t.Errorf("an epoch that was never made: %v", err)
	}
}

// TestReadEpochs reads a directory without its master key.
func TestReadEpochs(t *testing.T) {
	dir := t.TempDir()
	if _, err := keyring.ReadEpochs(dir); !errors.Is(err, keyring.ErrNoKeyring) {
		t.Errorf("empty directory: %v", err)
	}
	r := mustOpen(t, dir)
	mustCreate(t, r, "beta", "acme")
	rotate(t, r, keyring.SeriesAudit, "beta")
	if err := os.Remove(filepath.Join(dir, "master.key")); err != nil {
		t.Fatal(err)
	}
	all, err := keyring.ReadEpochs(dir)
	if err != nil || len(all) != 9 || all[0].Tenant != "acme" || all[8].Tenant != "beta" {
		t.Errorf("%v, %v", all, err)
	}
	want, _ := r.Epochs("beta")
	if !slices.Equal(all[4:], want) {
		t.Errorf("%v, want %v", all[4:], want)
	}
}

func TestRotateRefuses(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, dir)
	mustCreate(t, r, "acme", "gone", "system/0")
	if err := r.Destroy("gone"); err != nil {
		t.Fatal(err)
	}
	reader, err := keyring.OpenExisting(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, c := range []struct {
		ring *keyring.Ring
		s    keyring.Series
		id   tenant.ID
		want error
	}{
		{r, keyring.SeriesSealing, "nobody", keyring.ErrNoKey},
		{r, keyring.SeriesSealing, "gone", keyring.ErrDestroyed},
		{r, keyring.SeriesMAC, "system/0", keyring.ErrPurpose},
		{r, 0, "acme", keyring.ErrPurpose},
		{r, 9, "acme", keyring.ErrPurpose},
		{reader, keyring.SeriesMAC, "acme", keyring.ErrReadOnly},
	} {
		if _, err := c.ring.Rotate(c.s, "acme", c.id); !errors.Is(err, c.want) {
			t.Errorf("Rotate(%s, %s): %v, want %v", c.s, c.id, err, c.want)
		}
	}
	if got := states(t, r, "acme", keyring.SeriesSealing); got != "1 active" {
		t.Errorf("a refused rotation moved a tenant: %s", got)
	}
	if _, err := keyring.ParseSeries("mac "); !errors.Is(err, keyring.ErrPurpose) {
		t.Errorf("ParseSeries: %v", err)
	}
	for _, s := range keyring.AllSeries() {
		if got, err := keyring.ParseSeries(s.String()); err != nil || got != s {
			t.Errorf("ParseSeries(%s) = %v, %v", s, got, err)
		}
	}
}

func TestRotateDue(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	r := openAt(t, dir, c)
	mustCreate(t, r, "acme", "beta", "gone", "system/0")
	if err := r.Destroy("gone"); err != nil {
		t.Fatal(err)
	}
	due := func(ring *keyring.Ring) (out []string) {
		t.Helper()
		made, err := ring.RotateDue(keyring.DefaultSchedule())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range made {
			out = append(out, fmt.Sprintf("%s %s %d", e.Tenant, e.Series, e.Number))
		}
		return out
	}
	const day = 24 * time.Hour
	if got := due(r); got != nil {
		t.Errorf("at once: %v", got)
	}
	c.now = c.now.Add(90*day - time.Second)
	if got := due(r); got != nil {
		t.Errorf("a second early: %v", got)
	}
	c.now = c.now.Add(time.Second)
	sealing := []string{"acme sealing 2", "beta sealing 2", "system/0 sealing 2"}
	if got := due(r); !slices.Equal(got, sealing) {
		t.Errorf("after 90 days: %v", got)
	}
	other := openAt(t, dir, c)
	if got := append(due(r), due(other)...); got != nil {
		t.Errorf("again on the same day: %v", got)
	}
	rotate(t, r, keyring.SeriesCheckpoint, "beta")
	c.now = c.now.Add(275 * day)
	want := []string{
		"acme mac 2", "acme checkpoint 2", "acme audit 2", "acme sealing 3", "beta mac 2", "beta audit 2", "beta sealing 3",
		"system/0 checkpoint 2", "system/0 audit 2", "system/0 sealing 3",
	}
	if got := due(other); !slices.Equal(got, want) {
		t.Errorf("after a year: %v\nwant %v", got, want)
	}
	if made, err := r.RotateDue(keyring.Schedule{}); err != nil || made != nil {
		t.Errorf("without a schedule: %v, %v", made, err)
	}
}

// find reports whether any file of the directory holds the bytes.
func find(t testing.TB, dir string, secret []byte) (where []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, secret) {
			where = append(where, e.Name())
		}
	}
	return where
}

func TestDestroy(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	r, other := openAt(t, dir, c), openAt(t, dir, c)
	mustCreate(t, r, "acme", "beta")
	rotate(t, r, keyring.SeriesSealing, "acme", "beta")
	rotate(t, r, keyring.SeriesMAC, "acme")
	at := keyring.Place{Table: "subject", Column: "identity", Row: "1"}
	sealed := map[tenant.ID][]byte{}
	for _, id := range []tenant.ID{"acme", "beta"} {
		var err error
		if sealed[id], err = other.Seal(nil, id, keyring.SealSubject, at, []byte("ann")); err != nil {
			t.Fatal(err)
		}
	}
	mac := mustDerive(t, r, "acme", keyring.MAC, 1)
	signing, _ := r.SigningKey("acme", 1)
	wrapped := keyring.WrappedSealingRoot(r, "acme")
	if len(find(t, dir, wrapped)) != 1 {
		t.Fatal("the test does not know where the wrapped root is")
	}
	// The old file's blocks, by another name that outlives it.
	kept := filepath.Join(t.TempDir(), "old")
	if err := os.Link(filepath.Join(dir, "keys.log"), kept); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Destroy("acme"); err != nil {
			t.Fatal(err)
		}
	}
	if where := find(t, dir, wrapped); where != nil {
		t.Errorf("the wrapped root is still in %v", where)
	}
	if data, err := os.ReadFile(kept); err != nil || len(data) != 0 {
		t.Errorf("the old file was left as it was: %d bytes, %v", len(data), err)
	}
	for name, ring := range map[string]*keyring.Ring{"this": r, "another": other, "a new": openAt(t, dir, c)} {
		if _, err := ring.Open(nil, "acme", keyring.SealSubject, at, sealed["acme"]); !errors.Is(err, keyring.ErrDestroyed) {
			t.Errorf("%s ring: Open: %v, want ErrDestroyed", name, err)
		}
		if _, err := ring.Open(nil, "acme", keyring.SealSubject, at, []byte("junk")); !errors.Is(err, keyring.ErrDestroyed) {
			t.Errorf("%s ring: Open of junk: %v, want ErrDestroyed", name, err)
		}
		if _, err := ring.Seal(nil, "acme", keyring.SealTags, at, nil); !errors.Is(err, keyring.ErrDestroyed) {
			t.Errorf("%s ring: Seal: %v, want ErrDestroyed", name, err)
		}
		if got, err := ring.Open(nil, "beta", keyring.SealSubject, at, sealed["beta"]); err != nil || string(got) != "ann" {
			t.Errorf("%s ring: another tenant's value: %v", name, err)
		}
		if mustDerive(t, ring, "acme", keyring.MAC, 1) != mac {
			t.Errorf("%s ring: the MAC key changed", name)
		}
		if key, err := ring.SigningKey("acme", 1); err != nil || !key.Equal(signing) {
			t.Errorf("%s ring: the last checkpoint cannot be signed: %v", name, err)
		}
		if !ring.Destroyed("acme") || ring.Destroyed("beta") || ring.Destroyed("nobody") || !ring.Has("acme") {
			t.Errorf("%s ring: Destroyed is wrong", name)
		}
		for s, want := range map[keyring.Series]string{
			keyring.SeriesMAC: "1 verify-only, 2 next", keyring.SeriesCheckpoint: "1 verify-only",
		} {
			if got := states(t, ring, "acme", s); got != want {
				t.Errorf("%s ring: %s %s, want %s", name, s, got, want)
			}
		}
		if got := states(t, ring, "acme", keyring.SeriesSealing); !strings.Contains(got, "1 destroyed") || strings.Contains(got, "active") {
			t.Errorf("%s ring: sealing %s", name, got)
		}
		if created := mustCreate(t, ring, "acme"); created != nil {
			t.Errorf("%s ring: made the destroyed tenant anew", name)
		}
	}
	if err := r.Destroy("nobody"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("unknown tenant: %v", err)
	}
	mustCreate(t, r, "system/1")
	if err := r.Destroy("system/1"); !errors.Is(err, keyring.ErrPurpose) {
		t.Errorf("system chain: %v", err)
	}
}

// TestOlderFileIsNoticed puts the file of before a destruction back.
func TestOlderFileIsNoticed(t *testing.T) {
	for name, change := range map[string]func(*keyring.Ring) error{
		"destruction": func(r *keyring.Ring) error { return r.Destroy("acme") },
		"rotation":    func(r *keyring.Ring) error { _, err := r.Rotate(keyring.SeriesAudit, "acme"); return err },
		"tenant":      func(r *keyring.Ring) error { _, err := r.Create("beta"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := mustOpen(t, dir)
			mustCreate(t, r, "acme")
			path := filepath.Join(dir, "keys.log")
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := change(r); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(path+".back", before, 0o600), os.Rename(path+".back", path)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Seal(nil, "acme", keyring.SealTags, keyring.Place{}, nil); !errors.Is(err, keyring.ErrCorrupt) {
				t.Errorf("Seal: %v, want ErrCorrupt", err)
			}
			if _, err := r.Create("gamma"); !errors.Is(err, keyring.ErrCorrupt) {
				t.Errorf("Create: %v, want ErrCorrupt", err)
			}
		})
	}
}

// TestRingAgainstModel does whatever may be done, in two rings of a directory
// and over restarts, and compares with a plain model.
func TestRingAgainstModel(t *testing.T) {
	type key struct {
		id tenant.ID
		s  keyring.Series
	}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "keyring")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		rings := make([]*keyring.Ring, 2)
		reopen := func(i int) {
			if rings[i] != nil {
				_ = rings[i].Close()
			}
			if rings[i], err = keyring.Open(dir, nil); err != nil {
				t.Fatal(err)
			}
		}
		reopen(0)
		reopen(1)
		defer func() { _ = rings[0].Close(); _ = rings[1].Close() }()
		newest, next, gone := map[key]uint32{}, map[tenant.ID]bool{}, map[tenant.ID]bool{}
		var made []tenant.ID
		secret := rings[0].ContextSecret()
		ids := rapid.SampledFrom([]tenant.ID{"a", "b", "c"})
		series := rapid.SampledFrom(keyring.AllSeries())
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			r, id, s := rings[rapid.IntRange(0, 1).Draw(t, "ring")], ids.Draw(t, "tenant"), series.Draw(t, "series")
			known := slices.Contains(made, id)
			switch rapid.SampledFrom([]string{"create", "rotate", "rotate", "activate", "destroy", "rewrap", "reopen"}).Draw(t, "step") {
			case "create":
				if _, err := r.Create(id); err != nil {
					t.Fatal(err)
				}
				if !known {
					made = append(made, id)
					for _, s := range keyring.AllSeries() {
						newest[key{id, s}] = 1
					}
				}
			case "rotate":
				_, err := r.Rotate(s, id)
				if (err == nil) != (known && !gone[id]) {
					t.Fatalf("rotate: %v", err)
				}
				if err == nil && (s != keyring.SeriesMAC || !next[id]) {
					newest[key{id, s}]++
					next[id] = next[id] || s == keyring.SeriesMAC
				}
			case "activate":
				if err := r.Activate(r.Pending()...); err != nil {
					t.Fatal(err)
				}
				clear(next)
			case "destroy":
				if err := r.Destroy(id); (err == nil) != known {
					t.Fatal(err)
				}
				gone[id] = known
			case "rewrap":
				if _, err := r.Rewrap(); err != nil {
					t.Fatal(err)
				}
			case "reopen":
				reopen(rapid.IntRange(0, 1).Draw(t, "which"))
			}
			for _, r := range rings {
				if r.ContextSecret() != secret {
					t.Fatal("the context secret changed")
				}
				for _, id := range made {
					for p, s := range map[keyring.Purpose]keyring.Series{
						keyring.MAC: keyring.SeriesMAC, keyring.Checkpoint: keyring.SeriesCheckpoint,
						keyring.Audit: keyring.SeriesAudit, keyring.SealTags: keyring.SeriesSealing,
					} {
						want := newest[key{id, s}]
						if s == keyring.SeriesMAC && next[id] {
							want--
						}
						if s == keyring.SeriesSealing && gone[id] {
							want = 0
						}
						if got := r.Epoch(id, p); got != want {
							t.Fatalf("%s of %s: epoch %d, want %d", s, id, got, want)
						}
					}
				}
			}
		}
	})
}
