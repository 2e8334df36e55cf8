package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/ledger/checkpoint"
)

func (w *ledgerWorld) vkey() string {
	w.t.Helper()
	key, err := w.ring.SigningKey("acme", w.ring.Epoch("acme", keyring.Checkpoint))
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := note.NewEd25519VerifierKey("tallystick.local/ledger/acme", key.Public().(ed25519.PublicKey))
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func TestProveCommands(t *testing.T) {
	w := newLedgerWorld(t)
	w.want(exitNotFound, "checkpoint", "--tenant", "acme")
	w.sign()
	out := w.want(exitOK, "prove", "17", "--tenant", "acme")
	for _, want := range []string{"entry 17 is in the tree of 30", "the key that the server states", "tallystick.local/ledger/acme\n30\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("prove does not say %q:\n%s", want, out)
		}
	}
	if out := w.want(exitOK, "prove", "30", "--tenant", "acme", "--key", w.vkey()); !strings.Contains(out, "the key that you gave") {
		t.Error(out)
	}
	if out := w.want(exitOK, "checkpoint", "--tenant", "acme", "--keys"); out != w.vkey()+"\n" {
		t.Errorf("keys: %q, want %q", out, w.vkey())
	}
	kept := w.file("kept", strings.TrimSuffix(w.want(exitOK, "checkpoint", "--tenant", "acme"), "\n"))
	w.want(exitOK, "checkpoint", "--tenant", "acme", "--since", kept, "--key", w.vkey())
	if out := w.want(exitOK, "checkpoint", "--tenant", "acme", "--list"); !strings.Contains(out, "30") {
		t.Error(out)
	}

	w.want(exitNotFound, "prove", "31", "--tenant", "acme")
	w.want(exitUsage, "prove", "0", "--tenant", "acme")
	w.want(exitUsage, "prove", "x", "--tenant", "acme")
	w.want(exitUsage, "prove", "1", "--tenant", "acme", "--log", "other")
	w.want(exitUsage, "checkpoint", "--tenant", "acme", "--since", filepath.Join(w.dir, "missing"))
	w.want(exitUsage, "checkpoint", "--tenant", "acme", "--since", w.file("none", "no checkpoint\n"))
	w.want(exitUsage, "prove", "1", "--tenant", "acme", "--key", "no key")
	// The key of somebody else under the log's name: nothing is signed with it.
	other, err := note.NewEd25519VerifierKey("tallystick.local/ledger/acme", ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	w.want(exitIntegrity, "prove", "1", "--tenant", "acme", "--key", other)
	w.want(exitIntegrity, "checkpoint", "--tenant", "acme", "--key", other)
}

// TestProveFindsWhatWasChanged: whatever a hostile server changes, the command
// says so, and ends with exit code 3.
func TestProveFindsWhatWasChanged(t *testing.T) {
	for name, sql := range map[string]string{
		"the entry":  `update ledger.entry_0 set canonical = set_byte(canonical, 20, get_byte(canonical, 20) # 1) where seq = 17`,
		"a sibling":  `update ledger.entry_0 set canonical = set_byte(canonical, 20, get_byte(canonical, 20) # 1) where seq = 18`,
		"the note":   `update ledger.checkpoint set note = replace(note, E'\n30\n', E'\n29\n')`,
		"the signer": `update ledger.checkpoint set note = regexp_replace(note, '(— \S+ ....)....', '\1AAAA')`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newLedgerWorld(t)
			w.sign()
			w.want(exitOK, "prove", "17", "--tenant", "acme")
			if res, err := w.admin.Exec(sql); err != nil {
				t.Fatal(err)
			} else if n, _ := res.RowsAffected(); n == 0 {
				t.Fatal("nothing was changed")
			}
			w.want(exitIntegrity, "prove", "17", "--tenant", "acme", "--key", w.vkey())
		})
	}
}

func TestWitnessCommand(t *testing.T) {
	dir := t.TempDir()
	run := func(ctx context.Context, args ...string) (int, string, *bytes.Buffer) {
		var out, errOut bytes.Buffer
		root := newRootCommand()
		root.SetArgs(append([]string{"witness"}, args...))
		root.SetOut(&out)
		root.SetErr(&errOut)
		code := exitOK
		if err := root.ExecuteContext(ctx); err != nil {
			code = exitCode(err)
		}
		return code, out.String(), &errOut
	}
	key, logs := filepath.Join(dir, "w.key"), filepath.Join(dir, "logs")
	code, vkey, _ := run(t.Context(), "keygen", "--name", "witness.example/w1", "--key-file", key)
	if _, err := checkpoint.ParseCosigner(strings.TrimSpace(vkey)); code != exitOK || err != nil {
		t.Fatalf("keygen: %d, %q, %v", code, vkey, err)
	}
	if code, _, _ := run(t.Context(), "--key-file", key); code != exitUsage {
		t.Errorf("without logs: exit code %d", code)
	}
	logKey, err := note.NewEd25519VerifierKey("tallystick.local/ledger/acme", ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(logs, []byte(logKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := run(t.Context(), "--key-file", key, "--logs", logs, "--state-dir", filepath.Join(dir, "state"), "--listen", "0.0.0.0:0"); code != exitUsage {
		t.Errorf("plaintext outside loopback: exit code %d", code)
	}
	free, err := freeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	addr := free[0]
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		code, _, _ := run(ctx, "--key-file", key, "--logs", logs, "--state-dir", filepath.Join(dir, "state"), "--listen", addr)
		done <- code
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // polling a server
		res, err := http.Post("http://"+addr+"/add-checkpoint", "text/plain", strings.NewReader("old 0\n\nx\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— x y\n"))
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				t.Errorf("an unknown log: %d", res.StatusCode)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	stop()
	if code := <-done; code != exitOK {
		t.Errorf("the witness ended with %d", code)
	}
}
