package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/tenant"
)

// vectorKey is the MAC key of the vectors' one epoch.
var vectorKey = [32]byte(bytes.Repeat([]byte{0x5a}, 32))

// vectorEvents are the events of testdata/chain-acme.txt.
func vectorEvents() []Event {
	at := time.Unix(0, 1_760_000_000_123_456_789).UTC()
	return []Event{
		{Tenant: "acme", At: at, Actor: "admin-token", Action: "token.create", Resource: "token/tok_1", Outcome: OK, Addr: "192.0.2.7", Client: "curl/8.5", RequestID: "r-1"},
		{Tenant: "acme", At: at.Add(time.Second), Actor: "tok_1", Action: Authenticate, Outcome: OK, Addr: "2001:db8::1", Count: 300, Until: at.Add(time.Minute)},
		{Tenant: "acme", At: at.Add(time.Hour), Actor: "tok_1", Action: Authorize, Resource: "tallystick.v1.AdminService/CreateTenants", Outcome: Denied, Reason: "scope admin is missing", Client: "Ünïcode/1"},
		{Tenant: "acme", At: at.Add(24 * time.Hour), Action: "secret.reveal", Outcome: Attempted},
	}
}

// TestVectors holds the writer against the file that verifiers are written
// from; docs/verify.py and `ledger/verify` read the same form.
func TestVectors(t *testing.T) {
	var out strings.Builder
	chain := Genesis("acme")
	fmt.Fprintf(&out, "tenant acme\nepoch 3\nkey %x\ngenesis %x\n====\n", vectorKey, chain)
	for i, ev := range vectorEvents() {
		seq := int64(i + 1)
		b := ev.append(nil, seq)
		leaf := Leaf(b)
		chain = Next(chain, leaf)
		writeFields(&out, &ev, seq)
		fmt.Fprintf(&out, "----\ncanonical %x\nleaf %x\nchain %x\nmac %x\n====\n", b, leaf, chain, MAC(vectorKey, 3, seq, chain))
	}
	path := filepath.Join("testdata", "chain-acme.txt")
	if os.Getenv("REWRITE") != "" {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != out.String() {
		t.Errorf("%v; the form has changed: an audit log that was written before can no longer be verified\n%s", err, out.String())
	}
}

// writeFields writes the fields that are there, one a line, by their names in
// docs/ledger-format.md; times in unix nanoseconds.
func writeFields(w *strings.Builder, ev *Event, seq int64) {
	fmt.Fprintf(w, "tenant_id %s\nseq %d\nat %d\n", ev.Tenant, seq, ev.At.UnixNano())
	for _, f := range []struct{ name, value string }{
		{"actor", ev.Actor}, {"action", ev.Action}, {"resource", ev.Resource}, {"outcome", ev.Outcome}, {"reason", ev.Reason},
		{"addr", ev.Addr}, {"client", ev.Client}, {"request_id", ev.RequestID},
	} {
		if f.value != "" {
			fmt.Fprintf(w, "%s %s\n", f.name, f.value)
		}
	}
	if ev.Count > 1 {
		fmt.Fprintf(w, "count %d\nuntil %d\n", ev.Count, ev.Until.UnixNano())
	}
}

func anyEvent(rt *rapid.T) Event {
	text := rapid.String()
	ev := Event{
		Tenant: "acme", At: time.Unix(0, rapid.Int64Min(1).Draw(rt, "at")).UTC(), Actor: text.Draw(rt, "actor"),
		Action: text.Draw(rt, "action"), Resource: text.Draw(rt, "resource"), Outcome: text.Draw(rt, "outcome"),
		Reason: text.Draw(rt, "reason"), Addr: text.Draw(rt, "addr"), Client: text.Draw(rt, "client"), RequestID: text.Draw(rt, "id"),
		Count: rapid.Int64Range(1, 1<<40).Draw(rt, "count"),
	}
	if ev.Count > 1 {
		ev.Until = time.Unix(0, rapid.Int64Min(1).Draw(rt, "until")).UTC()
	}
	return ev
}

// What is written is read back, and fits.
func TestDecodeReadsWhatAppendWrites(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ev := anyEvent(rt)
		ev.fit()
		seq := rapid.Int64Min(1).Draw(rt, "seq")
		b := ev.append(nil, seq)
		got, n, err := Decode(b)
		if err != nil || n != seq || got != ev {
			rt.Fatalf("Decode = %+v, %d, %v; want %+v", got, n, err, ev)
		}
		if len(b) > 4096 {
			rt.Fatalf("%d bytes do not fit the column", len(b))
		}
	})
}

func TestCleanFitsAndStaysFit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z ]{0,9}tsk_[a-z.]{0,70}[é\n]{0,400}`)).Draw(rt, "s")
		got := clean(s, 64)
		if len(got) > 64 || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x00\x1b") {
			rt.Fatalf("clean(%q) = %q", s, got)
		}
	})
	huge := strings.Repeat("\xff", 1<<20)
	if got := clean(huge, maxTextBytes); len(got) > maxTextBytes {
		t.Errorf("%d bytes of a hostile header are left", len(got))
	}
}

func TestDecodeRefusesOtherEncodings(t *testing.T) {
	ev := vectorEvents()[0]
	good := ev.append(nil, 7)
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"another version": append([]byte{2}, good[1:]...),
		"a ledger entry":  append([]byte{1, 1}, good[2:]...),
		"a cut value":     good[:len(good)-1],
		"a field twice":   append(bytes.Clone(good), good[len(good)-5:]...),
		"an empty text":   append(bytes.Clone(good), tagRequestID+1, 0),
		"a long length":   append([]byte{1, 64, tagTenant, 0x84, 0x00}, good[4:]...),
		"a count of one":  append(bytes.Clone(good), tagCount, 1, 1),
		"no number":       {1, 64, tagTenant, 1, 'a'},
	} {
		if _, _, err := Decode(b); err == nil {
			t.Errorf("%s: %s decodes", name, hex.EncodeToString(b))
		}
	}
}

func FuzzDecode(f *testing.F) {
	for i, ev := range vectorEvents() {
		f.Add(ev.append(nil, int64(i+1)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, seq, err := Decode(b)
		if err == nil && !bytes.Equal(ev.append(nil, seq), b) {
			t.Errorf("%x decodes and is not the one encoding", b)
		}
	})
}

func TestInstallationCannotBeNamed(t *testing.T) {
	if tenant.ValidID(string(Installation)) {
		t.Errorf("a request can name %s", Installation)
	}
}
