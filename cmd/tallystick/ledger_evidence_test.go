package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"
)

// sign publishes a checkpoint of all that there is, in the world's directory.
func (w *ledgerWorld) sign() {
	w.t.Helper()
	dir, err := checkpoint.OpenDir(w.checkpoints())
	if err != nil {
		w.t.Fatal(err)
	}
	opts := checkpoint.Options{Installation: "tallystick.local", Tenants: func() []tenant.ID { return []tenant.ID{"acme"} }}
	c := checkpoint.New(pglog.NewLedger(w.ledgerDB, w.app), pgstore.NewCheckpoints(w.ledgerDB), dir, signingKeys{w.ring}, opts, slog.New(slog.DiscardHandler))
	if err := c.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ledgerWorld) checkpoints() string { return filepath.Join(w.dir, "checkpoints") }

// keys are the public keys that an auditor would be given.
func (w *ledgerWorld) keys() verify.VerifierKeys {
	w.t.Helper()
	keys, err := (&publishedNotes{ring: w.ring, name: "tallystick.local"}).keys("acme")
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

func (w *ledgerWorld) checkPackage(path string, kept ...string) verify.Report {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	o := verify.PackageOptions{Trusted: w.keys(), MACKeys: ringKeys(w.ring, "acme"), Workers: 2}
	for _, note := range kept {
		o.Kept = append(o.Kept, []byte(note))
	}
	r, err := verify.Package(w.t.Context(), bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// Both ways to a package, the server's and the database's, give what an auditor
// can check with public keys.
func TestEvidenceFromServerAndDatabase(t *testing.T) {
	w := newLedgerWorld(t)
	path := filepath.Join(w.dir, "a.zip")
	w.want(exitUsage, "export", "--tenant", "acme", "--evidence", "-o", path) // no checkpoint yet
	w.sign()
	keys := filepath.Join(w.dir, "keys")
	for name, c := range map[string]struct {
		args     []string
		from, to int64
	}{
		"server":           {nil, 1, 30},
		"server, a range":  {[]string{"--from", "7", "--to", "21"}, 7, 21},
		"database":         {[]string{"--postgres-dsn-file", w.dsnFile, "--keys-dir", keys}, 1, 30},
		"database, a part": {[]string{"--postgres-dsn-file", w.dsnFile, "--keys-dir", keys, "--from", "30", "--kept", "30"}, 30, 30},
		"a day":            {[]string{"--from", "1970-01-01", "--to", "1970-01-01", "--format", "zip"}, 2, 30},
		"a day elsewhere":  {[]string{"--from", "1969-12-31", "--to", "1970-01-01", "--format", "zip", "--time-zone", "America/New_York"}, 2, 30},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.zip")
			w.want(exitOK, append([]string{"export", "--tenant", "acme", "--evidence", "-o", path}, c.args...)...)
			if r := w.checkPackage(path); r.Verdict != verify.Intact || r.From != c.from || r.To != c.to || r.Covered != 30 || !r.MACsChecked {
				t.Errorf("%+v", r)
			}
			w.want(exitConflict, append([]string{"export", "--tenant", "acme", "--evidence", "-o", path}, c.args...)...)
		})
	}
	for _, args := range [][]string{
		{"--from", "31"}, {"--to", "99"}, {"--from", "9", "--to", "8"}, {"--from", "2026-01-01"}, {"--from", "2026-01-01", "--to", "2026-01-01"},
		{"--from", "yesterday"}, {"--kept", "31"}, {"--time-zone", "Nowhere/Land"},
	} {
		w.want(exitUsage, append([]string{"export", "--tenant", "acme", "--evidence", "-o", path}, args...)...)
	}
	for _, args := range [][]string{
		{"--format", "pdf"}, {"--evidence", "--format", "tsx"}, {"--kept", "3"}, {"--time-zone", "UTC"}, {"--from", "2026-01-01"},
	} {
		w.want(exitUsage, append([]string{"export", "--tenant", "acme", "-o", path}, args...)...)
	}
	w.want(exitNotFound, "export", "--tenant", "acme", "--evidence", "--from", "31", "-o", path, "--postgres-dsn-file", w.dsnFile, "--keys-dir", keys)
	left, err := filepath.Glob(filepath.Join(w.dir, ".export-*"))
	if _, statErr := os.Stat(path); statErr == nil || err != nil || len(left) > 0 {
		t.Errorf("a refused export leaves %v", left)
	}
}

// The file of MAC keys is what the verifier reads.
func TestMACKeys(t *testing.T) {
	w := newLedgerWorld(t)
	w.sign()
	path, keys, out := filepath.Join(w.dir, "a.zip"), filepath.Join(w.dir, "keys"), filepath.Join(w.dir, "macs")
	w.want(exitOK, "export", "--tenant", "acme", "--evidence", "-o", path)
	w.want(exitOK, "mac-keys", "--tenant", "acme", "--keys-dir", keys, "-o", out)
	w.want(exitConflict, "mac-keys", "--tenant", "acme", "--keys-dir", keys, "-o", out)
	w.want(exitNotFound, "mac-keys", "--tenant", "nobody", "--keys-dir", keys, "-o", filepath.Join(w.dir, "none"))
	w.want(exitUsage, "mac-keys", "--tenant", "acme")
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	macs, err := verify.ParseMACKeys(text)
	if err != nil || macs.Audit == nil || macs.Tenant != "acme" {
		t.Fatalf("%s: %v", text, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		keys verify.Keys
		want verify.Verdict
	}{
		"the tenant's": {macs.Ledger, verify.Intact},
		"another's":    {func(uint32) ([32]byte, error) { return [32]byte{1}, nil }, verify.Broken},
	} {
		r, err := verify.Package(t.Context(), bytes.NewReader(b), int64(len(b)), verify.PackageOptions{Trusted: w.keys(), MACKeys: c.keys})
		if err != nil || r.Verdict != c.want {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// A download that breaks off leaves no file.
func TestBrokenDownloadLeavesNothing(t *testing.T) {
	w := newLedgerWorld(t)
	w.sign()
	w.exec(`alter table ledger.entry_0 disable trigger all`)
	w.exec(`delete from ledger.entry_0 where seq = 20`)
	path := filepath.Join(w.dir, "out", "a.zip")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	w.want(exitUnavailable, "export", "--tenant", "acme", "--evidence", "-o", path)
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// exportChild is the environment variable by which a test process becomes an
// export that hangs half way.
const exportChild = "TALLYSTICK_TEST_EXPORT"

// An export that is killed leaves nothing under the name asked for.
func TestKilledExportLeavesNoFile(t *testing.T) {
	if path := os.Getenv(exportChild); path != "" {
		err := createWhole(path, func(f *os.File) error {
			if _, err := f.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
			fmt.Println("half way")
			_, err := io.Copy(io.Discard, os.Stdin) // until somebody kills us
			return err
		})
		t.Fatalf("it went on: %v", err)
	}
	path := filepath.Join(t.TempDir(), "a.zip")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledExportLeavesNoFile$")
	child.Env = append(os.Environ(), exportChild+"="+path)
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close() //nolint:errcheck // the child is gone by then
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "half way\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file under the name asked for: %v", err)
	}
	parts := func() []string {
		left, err := filepath.Glob(filepath.Join(filepath.Dir(path), partPattern))
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	if left := parts(); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	// The next export takes it away, but not that of one beside it.
	err = createWhole(path, func(first *os.File) error {
		return createWhole(path+"2", func(second *os.File) error {
			if left := parts(); !slices.Contains(left, first.Name()) || !slices.Contains(left, second.Name()) || len(left) != 2 {
				t.Errorf("two exports write to %v", left)
			}
			return nil
		})
	})
	if left := parts(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// The ledger is held against the checkpoints in the database, in the directory,
// and from outside.
func TestLedgerVerifyHoldsCheckpoints(t *testing.T) {
	w := newLedgerWorld(t)
	w.sign()
	w.fillMore("acme", 31, 60)
	w.sign()
	keys := filepath.Join(w.dir, "keys")
	direct := []string{"verify", "-o", "json", "--postgres-dsn-file", w.dsnFile, "--keys-dir", keys, "--checkpoint-dir", w.checkpoints()}
	note := filepath.Join(w.checkpoints(), "ledger", "acme", "00000000000000000060")
	server := []string{"verify", "-o", "json", "--keys-dir", keys, "--checkpoint", note}
	expect := func(what string, code int, by verify.Detector, seq int64, args ...string) {
		t.Helper()
		var reports []jsonReport
		if err := json.Unmarshal([]byte(w.want(code, args...)), &reports); err != nil || len(reports) != 1 {
			t.Fatalf("%s: %v, %v", what, reports, err)
		}
		if r := reports[0]; r.Detector != string(by) || r.FirstBad != seq || code == exitOK && r.Covered != 60 {
			t.Errorf("%s: %+v", what, r)
		}
	}
	expect("database", exitOK, "", 0, direct...)
	expect("server", exitOK, "", 0, server...)

	w.exec(`alter table ledger.checkpoint disable trigger all`)
	w.exec(`update ledger.checkpoint set note = replace(note, E'\n60\n', E'\n61\n') where size = 60`)
	expect("an edited checkpoint", exitIntegrity, verify.BySignature, 60, "verify", "-o", "json")
	w.exec(`update ledger.checkpoint set note = replace(note, E'\n61\n', E'\n60\n') where size = 60`)
	w.exec(`create temp table kept as select * from ledger.checkpoint where size = 30`)
	w.exec(`delete from ledger.checkpoint where size = 30`)
	expect("a deleted checkpoint", exitIntegrity, verify.BySignature, 30, direct...)
	w.exec(`insert into ledger.checkpoint select * from kept`)
	expect("put back", exitOK, "", 0, direct...)

	// Rolled back with everything in the database: only what is outside knows.
	w.exec(`alter table ledger.entry_0 disable trigger all`)
	w.exec(`delete from ledger.checkpoint where size = 60`)
	w.exec(`delete from ledger.entry_0 where seq > 30`)
	w.exec(`update ledger.head set seq = 30, chain = (select chain from ledger.entry_0 where seq = 30)`)
	expect("rolled back, from outside", exitIntegrity, verify.ByRoot, 31, direct...)
	expect("rolled back, by the server", exitIntegrity, verify.ByRoot, 31, server...)
	if out := w.want(exitOK, "verify"); !strings.Contains(out, "intact") {
		t.Errorf("without a checkpoint from outside: %s", out)
	}
}

func (w *ledgerWorld) exec(sql string) {
	w.t.Helper()
	if _, err := w.admin.ExecContext(context.Background(), sql); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// The meter counts the entries of a package that goes by, in pieces of any size.
func TestPackageMeter(t *testing.T) {
	for piece := 1; piece < 60; piece += 7 {
		var out bytes.Buffer
		var counts []int64
		m := &packageMeter{out: &out, first: 31, last: 110, progress: func(done, total int64) { counts = append(counts, done, total) }}
		b, err := os.ReadFile(filepath.Join("..", "..", "ledger", "evidence", "testdata", "range.zip"))
		if err != nil {
			t.Fatal(err)
		}
		for rest := b; len(rest) > 0; {
			n := min(piece, len(rest))
			if _, err := m.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !bytes.Equal(out.Bytes(), b) || len(counts) != 2 || counts[0] != 80 || counts[1] != 80 {
			t.Errorf("in pieces of %d: %v", piece, counts)
		}
	}
	if _, err := zip.OpenReader(filepath.Join("..", "..", "ledger", "evidence", "testdata", "range.zip")); err != nil {
		t.Error(err)
	}
}
