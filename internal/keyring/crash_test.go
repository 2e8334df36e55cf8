package keyring_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// helperEnv makes this test binary a second process that uses a ring:
// "<dir> <first> <count>" creates tenants t<first>… one call each, and prints
// a tenant and its MAC key once Create has returned.
const helperEnv = "TALLYSTICK_KEYRING_HELPER"

// churnForEver is a count that makes the helper churn.
const churnForEver = -1

func TestMain(m *testing.M) {
	if spec := os.Getenv(helperEnv); spec != "" {
		os.Exit(helper(spec))
	}
	os.Exit(m.Run())
}

func helper(spec string) int {
	var dir string
	var first, count int
	if _, err := fmt.Sscan(spec, &dir, &first, &count); err != nil {
		return 2
	}
	if count == churnForEver {
		fmt.Fprintln(os.Stderr, churn(dir, first))
		return 1
	}
	r, err := keyring.Open(dir, nil)
	for i := first; err == nil && i < first+count; i++ {
		id := tenant.ID("t" + strconv.Itoa(i))
		if _, err = r.Create(id); err == nil {
			var k [32]byte
			k, err = r.Derive(id, keyring.MAC, 0)
			fmt.Printf("%s %x\n", id, k)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func helperCommand(t *testing.T, dir string, first, count int) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", helperEnv, dir, first, count))
	cmd.Stderr = os.Stderr
	return cmd
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// checkPrinted compares what a helper said with what the ring on disk holds.
func checkPrinted(t *testing.T, r *keyring.Ring, line string) {
	t.Helper()
	id, key, ok := strings.Cut(strings.TrimSpace(line), " ")
	if !ok || len(key) != 64 {
		return // the kill cut this line short
	}
	got, err := r.Derive(tenant.ID(id), keyring.MAC, 0)
	if err != nil || hex.EncodeToString(got[:]) != key {
		t.Errorf("%s: the key another process used is lost or changed (%v)", id, err)
	}
}

// TestProcessesShareARing starts writers over overlapping tenants on one new
// directory: all must agree on one master key and one key per tenant.
func TestProcessesShareARing(t *testing.T) {
	dir := t.TempDir()
	const writers, each = 4, 40
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range writers {
		cmd, out := helperCommand(t, dir, i*10, each), &bytes.Buffer{}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("writer: %v", err)
		}
	}
	r := mustOpen(t, dir)
	for _, out := range outs {
		if n := strings.Count(out.String(), "\n"); n != each {
			t.Errorf("a writer made %d of %d", n, each)
		}
		for line := range strings.Lines(out.String()) {
			checkPrinted(t, r, line)
		}
	}
	if got, want := len(r.Tenants()), (writers-1)*10+each; got != want {
		t.Errorf("%d tenants, want %d", got, want)
	}
}

// TestOpenRingSeesAnotherProcess looks up, in a ring opened before, what a
// process created after.
func TestOpenRingSeesAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, dir)
	if r.Has("t1") {
		t.Fatal("t1 is there already")
	}
	out, err := helperCommand(t, dir, 1, 1).Output()
	if err != nil {
		t.Fatal(err)
	}
	checkPrinted(t, r, string(out))
	if created := mustCreate(t, r, "t1", "t2"); len(created) != 1 || created[0] != "t2" {
		t.Errorf("created %v, want t2 only", created)
	}
}

// TestKilledWriterLosesNothing kills a writer with SIGKILL after it has
// acknowledged some keys; each acknowledged key must be there.
func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	for round := range 5 {
		cmd := helperCommand(t, dir, round*1000, 1000)
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for in := bufio.NewScanner(pipe); in.Scan(); {
			if lines = append(lines, in.Text()); len(lines) == 5+3*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer finished before it was killed")
		}
		r := mustOpen(t, dir)
		for _, line := range lines {
			checkPrinted(t, r, line)
		}
	}
}

// logWith makes a ring with three tenants, one record each, and answers the
// bytes of its file and the offsets where the records begin.
func logWith(t testing.TB, dir string) (data []byte, starts []int) {
	t.Helper()
	r := mustOpen(t, dir)
	path := filepath.Join(dir, "keys.log")
	for _, id := range []tenant.ID{"t1", "t2", "t3"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, int(info.Size()))
		mustCreate(t, r, id)
	}
	_ = r.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, starts
}

// TestTornTailIsCutOff leaves the file as a crash may leave it after any byte
// of the last record, short or filled with zeros, and goes on writing.
func TestTornTailIsCutOff(t *testing.T) {
	dir := t.TempDir()
	data, starts := logWith(t, dir)
	path := filepath.Join(dir, "keys.log")
	last := starts[2]
	for _, fill := range []string{"short", "zeros"} {
		// Disks write sectors, and a sector ends at least eight bytes before the
		// end of a record or behind it; the mark is then missing.
		for cut := last; cut <= len(data)-4; cut++ {
			torn := bytes.Clone(data[:cut])
			if fill == "zeros" {
				torn = append(torn, make([]byte, len(data)-cut)...)
			}
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := keyring.Open(dir, nil)
			if err != nil {
				t.Fatalf("%s after %d of %d bytes: %v", fill, cut-last, len(data)-last, err)
			}
			if !r.Has("t1") || !r.Has("t2") || r.Has("t3") {
				t.Fatalf("%s after %d bytes: tenants %v", fill, cut-last, r.Tenants())
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data[:last]) {
				t.Fatalf("%s after %d bytes: the file was not cut back to its last record", fill, cut-last)
			}
			_ = r.Close()
		}
	}
	r := mustOpen(t, dir)
	mustCreate(t, r, "t3")
	if again := mustOpen(t, dir); !again.Has("t3") || !again.Has("t1") {
		t.Error("keys made after a cut are lost")
	}
}

// TestHeaderCutShort is a crash in the very first write.
func TestHeaderCutShort(t *testing.T) {
	for n := range 9 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "keys.log"), []byte("TSKEYS1\n")[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		r := mustOpen(t, dir)
		mustCreate(t, r, "acme")
		if again := mustOpen(t, dir); !again.Has("acme") {
			t.Errorf("header of %d bytes: the tenant is lost", n)
		}
	}
}

// TestChangedByteIsDamage flips each byte of the file, the last record's too:
// it must never be taken for a torn tail, since that would forget a key in use.
func TestChangedByteIsDamage(t *testing.T) {
	dir := t.TempDir()
	data, _ := logWith(t, dir)
	path := filepath.Join(dir, "keys.log")
	for at := range data {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			bad := bytes.Clone(data)
			bad[at] ^= flip
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if r, err := keyring.Open(dir, nil); !errors.Is(err, keyring.ErrCorrupt) {
				if err == nil {
					_ = r.Close()
				}
				t.Fatalf("byte %d of %d changed: %v, want ErrCorrupt", at, len(data), err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, bad) {
				t.Fatal("a damaged file was changed")
			}
		}
	}
}

// TestDamageBeforeATornTail is two faults at once: neither hides the other.
func TestDamageBeforeATornTail(t *testing.T) {
	dir := t.TempDir()
	data, starts := logWith(t, dir)
	path := filepath.Join(dir, "keys.log")
	for _, end := range []string{"short", "zeros"} {
		bad := bytes.Clone(data[:len(data)-20])
		if end == "zeros" {
			bad = append(bad, make([]byte, 20)...)
		}
		bad[starts[1]+30] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := keyring.Open(dir, nil); !errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", end, err)
		}
	}
}

// TestOpenRingNoticesALostFileEnd takes bytes away under an open ring.
func TestOpenRingNoticesALostFileEnd(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, dir)
	mustCreate(t, r, "acme")
	path := filepath.Join(dir, "keys.log")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create("beta"); !errors.Is(err, keyring.ErrCorrupt) {
		t.Errorf("Create: %v, want ErrCorrupt", err)
	}
	if _, err := r.Derive("nobody", keyring.MAC, 0); !errors.Is(err, keyring.ErrCorrupt) {
		t.Errorf("Derive of an unknown tenant: %v, want ErrCorrupt", err)
	}
}

func FuzzParseLog(f *testing.F) {
	good := keyring.SampleLog()
	f.Add(good)
	f.Add(good[:len(good)-9])
	f.Add(append(bytes.Clone(good), 0, 0, 0, 0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, used, err := keyring.ParseLog(data)
		if err == nil && (used < 0 || used > len(data)) {
			t.Fatalf("used %d of %d bytes", used, len(data))
		}
		if err != nil && keys != 0 {
			t.Fatal("keys beside an error")
		}
	})
}

func BenchmarkDerive(b *testing.B) {
	r := mustOpen(b, b.TempDir())
	mustCreate(b, r, "acme")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Derive("acme", keyring.MAC, 1); err != nil {
			b.Fatal(err)
		}
	}
}
