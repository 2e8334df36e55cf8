package witness

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ledger/checkpoint"
)

const logOrigin = "example.com/behind-the-sofa"

func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// forest is a log with the means to prove it; salt makes another one.
type forest struct {
	salt   string
	hashes []tlog.Hash
	size   int64
}

func (f *forest) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = f.hashes[x]
	}
	return out, nil
}

func newForest(t testing.TB, salt string, n int64) *forest {
	t.Helper()
	f := &forest{salt: salt, size: n}
	for i := range n {
		// Logs of different salts part after 10 entries.
		leaf := fmt.Sprintf("leaf %d", i)
		if i >= 10 {
			leaf += salt
		}
		hs, err := tlog.StoredHashes(i, []byte(leaf), f)
		if err != nil {
			t.Fatal(err)
		}
		f.hashes = append(f.hashes, hs...)
	}
	return f
}

func (f *forest) signed(t testing.TB, size int64) string {
	t.Helper()
	root := checkpoint.EmptyRoot()
	if size > 0 {
		h, err := tlog.TreeHash(size, f)
		if err != nil {
			t.Fatal(err)
		}
		root = checkpoint.Hash(h)
	}
	s, err := checkpoint.NewSigner(logOrigin, testKey("log"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.SignHead(&checkpoint.Head{Origin: logOrigin, Size: size, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (f *forest) proof(t testing.TB, old, size int64) (proof []checkpoint.Hash) {
	t.Helper()
	if old == 0 || old >= size {
		return nil
	}
	p, err := tlog.ProveTree(size, old, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range p {
		proof = append(proof, checkpoint.Hash(h))
	}
	return proof
}

func (f *forest) request(t testing.TB, old, size int64) string {
	return string(checkpoint.AppendRequest(nil, old, f.proof(t, old, size), f.signed(t, size)))
}

func logKey(t testing.TB) note.Verifier {
	t.Helper()
	s, err := checkpoint.NewSigner(logOrigin, testKey("log"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newWitness(t testing.TB, dir string) *Witness {
	t.Helper()
	w, err := New(Options{
		Name: "witness.example/w1", Key: testKey("witness"), Logs: []note.Verifier{logKey(t)}, StateDir: dir,
		Now: func() time.Time { return time.Unix(1_679_315_147, 0) },
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func post(t testing.TB, w *Witness, body string) (int, string, string) {
	t.Helper()
	srv := httptest.NewServer(w.Handler())
	defer srv.Close()
	res, err := http.Post(srv.URL+"/add-checkpoint", "text/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), string(b)
}

// TestAnswers has a line for each answer of the specification. The witness has
// cosigned the log at 20.
func TestAnswers(t *testing.T) {
	f, other := newForest(t, "", 60), newForest(t, "another", 60)
	good := f.request(t, 20, 40)
	for _, c := range []struct {
		name, body string
		status     int
		answer     string // of a 409
	}{
		{"the next checkpoint", good, 200, ""},
		{"the same checkpoint again", f.request(t, 20, 20), 200, ""},
		{"old size below", f.request(t, 10, 40), 409, "20\n"},
		{"old size above", f.request(t, 30, 40), 409, "20\n"},
		{"old size zero", f.request(t, 0, 40), 409, "20\n"},
		{"the same size with another root", other.request(t, 20, 20), 409, "20\n"},
		{"a fork", other.request(t, 20, 40), 422, ""},
		{"a proof of another old size", strings.Replace(f.request(t, 19, 40), "old 19", "old 20", 1), 422, ""},
		{"no proof", "old 20\n\n" + f.signed(t, 40), 422, ""},
		{"a proof where none can be", string(checkpoint.AppendRequest(nil, 20, []checkpoint.Hash{{1}}, f.signed(t, 20))), 422, ""},
		{"old size above the checkpoint's", "old 41\n\n" + f.signed(t, 40), 400, ""},
		{"an unknown log", strings.ReplaceAll(good, logOrigin, "example.com/unknown"), 404, ""},
		{"another key's signature", strings.Replace(good, "— "+logOrigin+" ", "— example.com/somebody ", 1), 403, ""},
		{"a changed text", strings.Replace(good, "\n40\n", "\n41\n", 1), 403, ""},
		{"a leading zero", strings.Replace(good, "old 20", "old 020", 1), 400, ""},
		{"a negative old size", strings.Replace(good, "old 20", "old -20", 1), 400, ""},
		{"no old line", strings.Replace(good, "old 20\n", "", 1), 400, ""},
		{"a tab for the blank", strings.Replace(good, "old 20", "old\t20", 1), 400, ""},
		{"carriage returns", strings.ReplaceAll(good, "\n", "\r\n"), 400, ""},
		{"a short hash", strings.Replace(good, "old 20\n", "old 20\nAAAA\n", 1), 400, ""},
		{"64 proof lines", "old 20\n" + strings.Repeat(base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n", 64) + "\n" + f.signed(t, 40), 400, ""},
		{"no checkpoint", "old 20\n\n", 400, ""},
		{"nothing", "", 400, ""},
		{"too much", good + strings.Repeat("x", MaxRequestBytes), 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWitness(t, t.TempDir())
			defer w.Close()
			if status, _, body := post(t, w, f.request(t, 0, 20)); status != 200 {
				t.Fatalf("the first checkpoint: %d %s", status, body)
			}
			status, kind, body := post(t, w, c.body)
			if status != c.status {
				t.Fatalf("status %d, want %d: %s", status, c.status, body)
			}
			if c.answer != "" && (body != c.answer || kind != "text/x.tlog.size") {
				t.Errorf("answer %q of type %q, want %q", body, kind, c.answer)
			}
			seen := w.logs[logOrigin].seen.Size
			if want := map[bool]int64{true: 40, false: 20}[c.name == "the next checkpoint"]; seen != want {
				t.Errorf("the witness stands at %d, want %d", seen, want)
			}
		})
	}
}

// TestInteroperates: what we cosign is verified by transparency-dev's code, and
// what that signs by ours.
func TestInteroperates(t *testing.T) {
	f := newForest(t, "", 30)
	w := newWitness(t, t.TempDir())
	defer w.Close()
	_, _, lines := post(t, w, f.request(t, 0, 30))
	v, err := formats.NewVerifierForCosignatureV1(w.VKey())
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open([]byte(f.signed(t, 30)+lines), note.VerifierList(v, logKey(t)))
	if err != nil || len(n.Sigs) != 2 {
		t.Fatalf("%+v, %v", n, err)
	}
	at, err := formats.CoSigV1Timestamp(n.Sigs[1])
	if err != nil || at.Unix() != 1_679_315_147 {
		t.Errorf("time %v, %v", at, err)
	}

	skey, vkey, err := note.GenerateKey(nil, "witness.example/theirs")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := formats.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: n.Text}, theirs)
	if err != nil {
		t.Fatal(err)
	}
	covkey, err := formats.VKeyToCosignatureV1(vkey)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{vkey, covkey} {
		c, err := checkpoint.ParseCosigner(key)
		if err != nil || c.KeyHash() != theirs.KeyHash() || c.VKey() != covkey {
			t.Fatalf("%s: %v", key, err)
		}
		if _, err := note.Open(signed, note.VerifierList(c)); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// TestKeysOfOthers: verifier keys of type 4 that are in use by public witnesses.
func TestKeysOfOthers(t *testing.T) {
	const remora = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
	c, err := checkpoint.ParseCosigner(remora)
	if err != nil || c.VKey() != remora {
		t.Fatalf("%v, %v", c, err)
	}
	for _, bad := range []string{"", "x", remora[:len(remora)-4], strings.Replace(remora, "da77", "da78", 1), strings.Replace(remora, "+BO", "+CO", 1), "a b" + remora} {
		if _, err := checkpoint.ParseCosigner(bad); !errors.Is(err, checkpoint.ErrCosigner) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestSpecificationExample reads the request of C2SP tlog-witness.
func TestSpecificationExample(t *testing.T) {
	const body = `old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
`
	r, err := parseRequest([]byte(body))
	if err != nil || r.old != 20852014 || len(r.proof) != 4 || r.head.Size != 20852163 || r.head.Origin != logOrigin {
		t.Fatalf("%+v, %v", r, err)
	}
	if again := string(checkpoint.AppendRequest(nil, r.old, r.proof, r.signed)); again != body {
		t.Errorf("written again:\n%s", again)
	}
}

// TestStateOutlivesTheProcess: what was cosigned before a death is known after it.
func TestStateOutlivesTheProcess(t *testing.T) {
	f, other := newForest(t, "", 60), newForest(t, "another", 60)
	dir := t.TempDir()
	w := newWitness(t, dir)
	if status, _, _ := post(t, w, f.request(t, 0, 20)); status != 200 {
		t.Fatal(status)
	}
	if _, err := New(w.opts, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrState) {
		t.Errorf("a second witness on the same state: %v", err)
	}
	w.Close() // as a kill would: nothing is written
	w = newWitness(t, dir)
	if status, _, body := post(t, w, other.request(t, 0, 40)); status != 409 || body != "20\n" {
		t.Errorf("after a restart: %d %q", status, body)
	}
	if status, _, _ := post(t, w, f.request(t, 20, 40)); status != 200 {
		t.Errorf("after a restart: %d", status)
	}
	w.Close()
	for name, content := range map[string]string{"garbage": "garbage", "another log's": strings.ReplaceAll(f.signed(t, 40), "example.com", "example.org")} {
		if err := os.WriteFile(w.state.file(logOrigin), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(w.opts, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrState) {
			t.Errorf("state is %s: %v", name, err)
		}
	}
}

// TestNeverForks sends requests of two logs that part, in any order and from
// several clients at once: what was cosigned is always one history.
func TestNeverForks(t *testing.T) {
	f, other := newForest(t, "", 40), newForest(t, "another", 40)
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "state")
		if err != nil {
			r.Fatal(err)
		}
		w := newWitness(t, dir)
		defer w.Close()
		var mu sync.Mutex
		var cosigned []checkpoint.Head
		var clients sync.WaitGroup
		for i := range 3 {
			type step struct {
				log       *forest
				old, size int64
			}
			steps := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) step {
				size := rapid.Int64Range(0, 40).Draw(r, "size")
				return step{rapid.SampledFrom([]*forest{f, other}).Draw(r, "log"), rapid.Int64Range(0, size).Draw(r, "old"), size}
			}), 0, 30).Draw(r, fmt.Sprint("client", i))
			clients.Go(func() {
				for _, s := range steps {
					if a := w.add([]byte(s.log.request(t, s.old, s.size))); a.status == 200 {
						h, _ := checkpoint.OpenUnverified(s.log.signed(t, s.size))
						mu.Lock()
						cosigned = append(cosigned, h)
						mu.Unlock()
					}
				}
			})
		}
		clients.Wait()
		for _, log := range []*forest{f, other} {
			all := true
			for _, h := range cosigned {
				root := checkpoint.EmptyRoot()
				if h.Size > 0 {
					x, _ := tlog.TreeHash(h.Size, log)
					root = checkpoint.Hash(x)
				}
				all = all && root == h.Root
			}
			if all {
				return
			}
		}
		r.Fatalf("cosigned checkpoints of two histories: %+v", cosigned)
	})
}

func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.key")
	vkey, err := CreateKey(path, "witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	name, key, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := checkpoint.NewCosigner(name, key.Public().(ed25519.PublicKey))
	if err != nil || c.VKey() != vkey {
		t.Errorf("%v, %v", c, err)
	}
	b, _ := os.ReadFile(path)
	if _, err := formats.NewSignerForCosignatureV1(strings.TrimSpace(string(b))); err != nil {
		t.Errorf("other tools cannot read the key: %v", err)
	}
	if _, err := CreateKey(path, "witness.example/w1"); err == nil {
		t.Error("a key was replaced")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadKey(path); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a key that others can read: %v", err)
	}
	list := filepath.Join(t.TempDir(), "logs")
	if err := os.WriteFile(list, []byte("# ours\n\n"+logKey(t).(*checkpoint.Signer).VKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if keys, err := LoadLogs(list); err != nil || len(keys) != 1 || keys[0].Name() != logOrigin {
		t.Errorf("%v, %v", keys, err)
	}
}

func FuzzRequest(f *testing.F) {
	log := newForest(f, "", 12)
	f.Add([]byte(log.request(f, 5, 12)))
	f.Add([]byte("old 0\n\n" + log.signed(f, 3)))
	f.Add([]byte("old 1\n\n\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseRequest(body)
		if err != nil {
			return
		}
		again := checkpoint.AppendRequest(nil, r.old, r.proof, r.signed)
		if string(again) != string(body) {
			t.Fatalf("%q was read as %q", body, again)
		}
	})
}
