package keyring_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// old copies the ring of the first version from testdata, which a program of
// that time wrote, with the modes that version control does not keep.
func old(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"keys.log", "master.key"} {
		data, err := os.ReadFile(filepath.Join("testdata", "v1", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What the program that wrote testdata/v1 derived from it.
const (
	oldAcmeMAC    = "dd48f61e3f601f34aa15cf1b3091ade590419dd4c90a1ca749ac839528c7388d"
	oldBetaDedupe = "d8368683f0b7b25560845c6c06fc227234a47ecc259a0bce4eacf2f6134b078f"
	oldContext    = "f10dea0bb727ddff2a7b26ac54d85f08c531ad841a002ce79b052ed8ff8ae627"
)

func checkOld(t testing.TB, r *keyring.Ring) {
	t.Helper()
	mac, dedupe, secret := mustDerive(t, r, "acme", keyring.MAC, 1), mustDerive(t, r, "beta", keyring.Dedupe, 0), r.ContextSecret()
	if hex.EncodeToString(mac[:]) != oldAcmeMAC || hex.EncodeToString(dedupe[:]) != oldBetaDedupe || hex.EncodeToString(secret[:]) != oldContext {
		t.Error("a ring of the first version gives other keys")
	}
}

// TestFirstVersion opens, uses and moves a ring of the first version.
func TestFirstVersion(t *testing.T) {
	dir, c := old(t), newClock()
	r := openAt(t, dir, c)
	checkOld(t, r)
	if reader, err := keyring.OpenExisting(old(t), nil); err != nil {
		t.Error(err)
	} else {
		checkOld(t, reader)
		_ = reader.Close()
	}
	// Its epochs have no age: they count from the first look.
	if made, err := r.RotateDue(keyring.DefaultSchedule()); err != nil || made != nil {
		t.Errorf("at first: %v, %v", made, err)
	}
	c.now = c.now.Add(90 * 24 * time.Hour)
	if made, err := r.RotateDue(keyring.DefaultSchedule()); err != nil || len(made) != 3 {
		t.Errorf("after 90 days: %v, %v", made, err)
	}
	mustCreate(t, r, "carol")
	if err := r.Destroy("beta"); err != nil {
		t.Fatal(err)
	}
	for _, ring := range []*keyring.Ring{r, openAt(t, dir, c)} {
		checkOld(t, ring)
		if !ring.Has("carol") || !ring.Destroyed("beta") || ring.Epoch("acme", keyring.SealTags) != 2 {
			t.Error("what was done since is lost")
		}
	}
	if n, err := r.Rewrap(); err != nil || n != 8 {
		t.Errorf("Rewrap: %d, %v", n, err)
	}
	checkOld(t, openAt(t, dir, c))
}

// TestRewrapLocal moves a ring to a new master key, under another process.
func TestRewrapLocal(t *testing.T) {
	dir := t.TempDir()
	r, other := mustOpen(t, dir), mustOpen(t, dir)
	mustCreate(t, r, "acme", "beta")
	path := filepath.Join(dir, "master.key")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(t.TempDir(), "old") // the old master key's blocks
	if err := os.Link(path, kept); err != nil {
		t.Fatal(err)
	}
	mac := mustDerive(t, r, "acme", keyring.MAC, 1)
	if n, err := r.Rewrap(); err != nil || n != 5 {
		t.Fatalf("Rewrap: %d, %v", n, err)
	}
	after, err := os.ReadFile(path)
	if err != nil || bytes.Equal(before, after) {
		t.Fatalf("the master key is the old one: %v", err)
	}
	if data, err := os.ReadFile(kept); err != nil || len(data) != 0 {
		t.Errorf("the old master key was left as it was: %d bytes, %v", len(data), err)
	}
	// A process that knew the old one only must not wrap under it any more.
	mustCreate(t, other, "carol")
	if mustDerive(t, other, "beta", keyring.MAC, 1) == mac {
		t.Error("two tenants share a key")
	}
	again := mustOpen(t, dir)
	if mustDerive(t, again, "acme", keyring.MAC, 1) != mac || mustDerive(t, again, "carol", keyring.MAC, 1) != mustDerive(t, other, "carol", keyring.MAC, 1) {
		t.Error("keys changed")
	}
	onlyRingFiles(t, dir, "master.key")
}

// onlyRingFiles checks that a finished replacement left nothing behind.
func onlyRingFiles(t testing.TB, dir, master string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"keys.log", master}) {
		t.Errorf("the directory holds %v", names)
	}
}

func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	with := func(phrase string) (*keyring.Ring, error) {
		r, err := keyring.OpenWith(dir, keyring.Options{Passphrase: []byte(phrase)})
		if err == nil {
			t.Cleanup(func() { _ = r.Close() })
		}
		return r, err
	}
	if _, err := with("too short"); !errors.Is(err, keyring.ErrMasterKey) {
		t.Errorf("a short passphrase: %v", err)
	}
	r, err := with("correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, r, "acme")
	mac := mustDerive(t, r, "acme", keyring.MAC, 1)
	onlyRingFiles(t, dir, "master.sealed")
	if again, err := with("correct horse battery"); err != nil || mustDerive(t, again, "acme", keyring.MAC, 1) != mac {
		t.Errorf("the same passphrase: %v", err)
	}
	if _, err := with("correct horse batterx"); !errors.Is(err, keyring.ErrMasterKey) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if _, err := keyring.Open(dir, nil); !errors.Is(err, keyring.ErrMasterKey) {
		t.Errorf("no passphrase: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "master.sealed"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 9, 30, len(data) - 1} {
		bad := bytes.Clone(data)
		bad[at] ^= 1
		if err := os.WriteFile(filepath.Join(dir, "master.sealed"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := with("correct horse battery"); !errors.Is(err, keyring.ErrMasterKey) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}

// TestPlainToPassphrase gives a ring that lies in the open a passphrase.
func TestPlainToPassphrase(t *testing.T) {
	dir := old(t)
	master, err := os.ReadFile(filepath.Join(dir, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	o := keyring.Options{Passphrase: []byte("correct horse battery")}
	r, err := keyring.OpenWith(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	checkOld(t, r)
	if n, err := r.Rewrap(); err != nil || n != 7 {
		t.Fatalf("Rewrap: %d, %v", n, err)
	}
	onlyRingFiles(t, dir, "master.sealed")
	if where := find(t, dir, master); where != nil {
		t.Errorf("the plain master key is in %v", where)
	}
	again, err := keyring.OpenWith(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	checkOld(t, again)
}

// TestLeftovers opens directories as a crash may leave them between any two
// steps of a replacement.
func TestLeftovers(t *testing.T) {
	setUp := func(t *testing.T) (dir string, before, wrapped []byte) {
		dir = t.TempDir()
		r := mustOpen(t, dir)
		mustCreate(t, r, "acme", "beta")
		wrapped = keyring.WrappedSealingRoot(r, "acme")
		_ = r.Close()
		before, err := os.ReadFile(filepath.Join(dir, "keys.log"))
		if err != nil {
			t.Fatal(err)
		}
		return dir, before, wrapped
	}
	for name, crash := range map[string]func(log string, before, destroyed []byte) error{
		"destruction appended": func(log string, _, destroyed []byte) error { return os.WriteFile(log, destroyed, 0o600) },
		"old file linked": func(log string, _, destroyed []byte) error {
			return errors.Join(os.WriteFile(log, destroyed, 0o600), os.Link(log, log+".old"))
		},
		"new file half written": func(log string, before, destroyed []byte) error {
			return errors.Join(os.WriteFile(log, destroyed, 0o600), os.Link(log, log+".old"), os.WriteFile(log+".new", before[:len(before)/2], 0o600))
		},
		"old file not overwritten": func(log string, before, destroyed []byte) error {
			err := errors.Join(os.Rename(log, log+".old"), os.WriteFile(log, destroyed, 0o600))
			r, openErr := keyring.Open(filepath.Dir(log), nil) // takes the root out
			if openErr != nil {
				return openErr
			}
			return errors.Join(err, r.Close(), os.WriteFile(log+".old", before, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, before, wrapped := setUp(t)
			log := filepath.Join(dir, "keys.log")
			if err := crash(log, before, append(bytes.Clone(before), keyring.DestroyedRecord("acme")...)); err != nil {
				t.Fatal(err)
			}
			r := mustOpen(t, dir)
			if !r.Destroyed("acme") || r.Destroyed("beta") {
				t.Error("the destruction is lost")
			}
			if where := find(t, dir, wrapped); where != nil {
				t.Errorf("the wrapped root is still in %v", where)
			}
			onlyRingFiles(t, dir, "master.key")
			mustDerive(t, mustOpen(t, dir), "beta", keyring.MAC, 1)
		})
	}
	t.Run("staged master key that nothing uses", func(t *testing.T) {
		dir, _, _ := setUp(t)
		if err := os.WriteFile(filepath.Join(dir, "master.key.next"), bytes.Repeat([]byte{9}, 32), 0o600); err != nil {
			t.Fatal(err)
		}
		mustDerive(t, mustOpen(t, dir), "beta", keyring.MAC, 1)
		onlyRingFiles(t, dir, "master.key")
	})
	t.Run("staged master key that all use", func(t *testing.T) {
		dir, _, _ := setUp(t)
		path := filepath.Join(dir, "master.key")
		if err := errors.Join(os.Rename(path, path+".next"), os.WriteFile(path, bytes.Repeat([]byte{9}, 32), 0o600)); err != nil {
			t.Fatal(err)
		}
		mustDerive(t, mustOpen(t, dir), "beta", keyring.MAC, 1)
		onlyRingFiles(t, dir, "master.key")
	})
}

// churn is what a killed process was doing: making, moving, destroying and
// rewrapping. It says what is done when it is.
func churn(dir string, first int) error {
	r, err := keyring.Open(dir, nil)
	if err != nil {
		return err
	}
	for i := first; ; i++ {
		id := tenant.ID(fmt.Sprintf("t%d", i))
		if _, err := r.Create(id); err != nil {
			return err
		}
		mac, err := r.Derive(id, keyring.MAC, 1)
		if err != nil {
			return err
		}
		fmt.Printf("made %s %x\n", id, mac)
		if _, err := r.Rotate(keyring.SeriesSealing, id); err != nil {
			return err
		}
		fmt.Printf("rotated %s\n", id)
		if i%2 == 0 {
			fmt.Printf("root %s %x\n", id, keyring.WrappedSealingRoot(r, id))
			if err := r.Destroy(id); err != nil {
				return err
			}
			fmt.Printf("destroyed %s\n", id)
		} else if _, err := r.Rewrap(); err != nil {
			return err
		}
	}
}

// TestKilledReplacements kills a process in the middle of destructions and
// rewraps: what it said stays so, and the next one finds a whole ring.
func TestKilledReplacements(t *testing.T) {
	dir := t.TempDir()
	made, rotated, destroyed := map[string]string{}, map[string]bool{}, map[string][]byte{}
	roots := map[string][]byte{}
	for round := range 25 {
		cmd := helperCommand(t, dir, 1000*round, churnForEver)
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := 1 + rand.IntN(12) // lines
		wait := time.Duration(rand.IntN(8000)) * time.Microsecond
		for in, n := bufio.NewScanner(pipe), 0; in.Scan(); n++ {
			if n == after {
				time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
			}
			f := strings.Fields(in.Text())
			switch {
			case len(f) == 3 && f[0] == "made" && len(f[2]) == 64:
				made[f[1]] = f[2]
			case len(f) == 2 && f[0] == "rotated":
				rotated[f[1]] = true
			case len(f) == 3 && f[0] == "root":
				roots[f[1]], _ = hex.DecodeString(f[2])
			case len(f) == 2 && f[0] == "destroyed":
				destroyed[f[1]] = roots[f[1]]
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the process ended before it was killed")
		}
		r := mustOpen(t, dir)
		onlyRingFiles(t, dir, "master.key")
		for id, want := range made {
			if got := mustDerive(t, r, tenant.ID(id), keyring.MAC, 1); hex.EncodeToString(got[:]) != want {
				t.Fatalf("round %d: %s has another key", round, id)
			}
		}
		for id := range rotated {
			if !r.Destroyed(tenant.ID(id)) && r.Epoch(tenant.ID(id), keyring.SealTags) != 2 {
				t.Fatalf("round %d: the rotation of %s is lost", round, id)
			}
		}
		for id, wrapped := range destroyed {
			if !r.Destroyed(tenant.ID(id)) || len(find(t, dir, wrapped)) > 0 {
				t.Fatalf("round %d: %s is not destroyed", round, id)
			}
		}
		_ = r.Close()
	}
	if len(destroyed) < 5 {
		t.Errorf("only %d destructions were seen: the test shows little", len(destroyed))
	}
}
