package agentauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

var one = Key{"acme", "agt_one"}

// seenLog is a PepperLog in memory.
type seenLog struct {
	now  func() time.Time
	seen map[string]time.Time
	err  error
}

func newSeenLog(now func() time.Time) *seenLog {
	return &seenLog{now: now, seen: map[string]time.Time{}}
}

func (l *seenLog) FirstSeen(_ context.Context, fingerprint []byte) (time.Time, time.Duration, error) {
	if _, ok := l.seen[string(fingerprint)]; !ok {
		l.seen[string(fingerprint)] = l.now()
	}
	since := l.seen[string(fingerprint)]
	return since, l.now().Sub(since), l.err
}

func (l *seenLog) AnySeen(context.Context) (bool, error) { return len(l.seen) > 0, l.err }

// TestVectors keeps the derivation and the proofs: agents in the field depend on
// them. The file was computed by other code, from the text of telemetry.proto.
func TestVectors(t *testing.T) {
	c := Credential{one, Derive([]byte(strings.Repeat("p", 32)), one)}
	h := &pb.HelloProof{Version: 1, TenantId: "acme", AgentId: "agt_one", ProducerEpoch: 7, AgentVersion: "1.0", Host: "n1", AgentNonce: []byte("0123456789abcdef")}
	SignHello(&c.Secret, []byte(strings.Repeat("c", 32)), Binding{}, h)
	r := &pb.SendTelemetryRequest{Version: 1, TenantId: "acme", AgentId: "agt_one", ProducerEpoch: 7, SentAtUs: 1_700_000_000_000_000, Nonce: []byte("0123456789abcdef"), Frame: []byte{1, 2}}
	SignFrame(&c.Secret, r)
	got := fmt.Sprintf("%s\n%x\n%x\n", c.Text(), h.Mac, r.Mac)
	want, err := os.ReadFile(filepath.Join("testdata", "vectors.txt"))
	if err != nil || got != string(want) {
		t.Errorf("%v; got\n%swant\n%s", err, got, want)
	}
}

func TestCredentialText(t *testing.T) {
	c := Credential{one, Derive([]byte(NewPepper()), one)}
	got, err := ParseCredential(" " + c.Text() + "\n")
	if err != nil || got != c {
		t.Fatalf("%v, %v", got, err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, c.Secret); strings.Contains(s, c.Text()[len(c.Text())-43:]) || !strings.Contains(s, "***") {
		t.Errorf("the secret is printed: %s", s)
	}
	for _, bad := range []string{"", "tsa_", "tsk_" + c.Text()[4:], c.Text() + "x", c.Text()[:len(c.Text())-1], strings.Replace(c.Text(), "acme", "Acme", 1), strings.Replace(c.Text(), "agt", "agt.", 1)} {
		if _, err := ParseCredential(bad); !errors.Is(err, ErrCredential) || len(bad) > 40 && strings.Contains(err.Error(), bad[len(bad)-20:]) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestMessagesAreInjective: two different hellos never have the same bytes under
// the mac, wherever the border between two fields is put.
func TestMessagesAreInjective(t *testing.T) {
	text := rapid.SampledFrom([]string{"", "a", "b", "ab", "aa", "a\x00", "\x00\x00\x00\x01a"})
	hello := rapid.Custom(func(t *rapid.T) *pb.HelloProof {
		return &pb.HelloProof{
			Version: rapid.Uint32Range(0, 2).Draw(t, "version"), TenantId: text.Draw(t, "tenant"), AgentId: text.Draw(t, "agent"),
			ProducerEpoch: rapid.Int64Range(-1, 1).Draw(t, "epoch"), AgentVersion: text.Draw(t, "agent version"), Host: text.Draw(t, "host"),
			AgentNonce: []byte(text.Draw(t, "nonce")),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := hello.Draw(t, "a"), hello.Draw(t, "b")
		ca, cb := text.Draw(t, "challenge a"), text.Draw(t, "challenge b")
		same := ca == cb && a.String() == b.String()
		if got := string(HelloMessage([]byte(ca), Binding{}, a)) == string(HelloMessage([]byte(cb), Binding{}, b)); got != same {
			t.Errorf("%v and %v: equal bytes is %v", a, b, got)
		}
	})
}

func TestRotation(t *testing.T) {
	ctx := t.Context()
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	seen := newSeenLog(clock)
	text := strings.Repeat("a", 32)
	p := &Peppers{source: func(context.Context) (string, error) { return text, nil }, seen: seen, log: discard(), now: clock, nobody: []byte(NewPepper())}
	reload := func() {
		t.Helper()
		if err := p.reload(ctx); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(c Credential) (time.Time, error) {
		mac := Sign(&c.Secret, []byte("m"))
		return p.Verify(c.Key, []byte("m"), mac[:])
	}
	reload()
	old := p.Credential(one)
	if until, err := verify(old); err != nil || !until.IsZero() {
		t.Fatalf("the newest: %v, %v", until, err)
	}
	now = now.Add(time.Hour)
	text = strings.Repeat("b", 32) + "\n" + strings.Repeat("a", 32) + "\n"
	reload()
	fresh := p.Credential(one)
	if until, err := verify(old); err != nil || !until.Equal(now.Add(PepperOverlap)) {
		t.Errorf("the one before: %v, %v", until, err)
	}
	if until, err := verify(fresh); err != nil || !until.IsZero() || fresh == old {
		t.Errorf("the new one: %v, %v", until, err)
	}
	// A restart does not begin the day again.
	now = now.Add(23 * time.Hour)
	p.newest, p.previous = nil, nil
	reload()
	if until, err := verify(old); err != nil || !until.Equal(now.Add(time.Hour)) {
		t.Errorf("after 23 hours: %v, %v", until, err)
	}
	now = now.Add(time.Hour)
	if _, err := verify(old); !errors.Is(err, ErrRefused) {
		t.Errorf("after 24 hours: %v", err)
	}
	if _, err := verify(fresh); err != nil {
		t.Errorf("the new one after 24 hours: %v", err)
	}
	// What cannot be used changes nothing.
	for _, bad := range []string{"", "short", text + text} {
		text = bad
		if err := p.reload(ctx); !errors.Is(err, ErrPepper) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := verify(fresh); err != nil {
		t.Errorf("after bad ones: %v", err)
	}
}

func TestPepperFile(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "pepper")
	seen := newSeenLog(time.Now)
	if err := CreatePepperFile(ctx, path, seen); err != nil {
		t.Fatal(err)
	}
	p, err := LoadPeppers(ctx, PepperFile(path), seen, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := p.Credential(one)
	if err := CreatePepperFile(ctx, path, seen); err != nil {
		t.Error(err)
	}
	if err := RotatePepperFile(ctx, path); err != nil {
		t.Fatal(err)
	}
	if err := p.reload(ctx); err != nil {
		t.Fatal(err)
	}
	if p.Credential(one) == old || string(p.previous) == "" {
		t.Error("the file was not rotated")
	}
	mac := Sign(&old.Secret, nil)
	if _, err := p.Verify(one, nil, mac[:]); err != nil {
		t.Errorf("the one before: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := PepperFile(path)(ctx); !errors.Is(err, ErrPepper) {
		t.Errorf("others can read it: %v", err)
	}
	// A lost pepper is no first start.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := CreatePepperFile(ctx, path, seen); !errors.Is(err, ErrPepper) {
		t.Errorf("a lost pepper was replaced: %v", err)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
