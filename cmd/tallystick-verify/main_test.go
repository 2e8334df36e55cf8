package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// data is a file of the format's vectors (ledger/evidence/testdata).
func data(name string) string {
	return filepath.Join("..", "..", "ledger", "evidence", "testdata", name)
}

func verifyRun(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), args, &out, &errOut)
	return code, out.String(), errOut.String()
}

// damaged writes a copy of a vector with one byte changed, from the end on.
func damaged(t *testing.T, name string, at int) string {
	t.Helper()
	b, err := os.ReadFile(data(name))
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func cut(t *testing.T, name string, n int) string {
	t.Helper()
	b, err := os.ReadFile(data(name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b[:n], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodesAndVerdicts(t *testing.T) {
	keys, macs := data("keys.txt"), data("mac-keys.txt")
	others := filepath.Join(t.TempDir(), "macs")
	if err := os.WriteFile(others, []byte("tenant bravo\nmac 1 "+strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string // in what is printed
	}{
		"intact":                       {[]string{"--key", keys, data("whole.zip")}, exitIntact, "INTACT: entries 1 to 150 of acme"},
		"options behind the name":      {[]string{data("whole.zip"), "--key", keys, "--workers", "1"}, exitIntact, "not checked (no --mac-keys)"},
		"MACs":                         {[]string{"--key", keys, "--mac-keys", macs, data("whole.zip")}, exitIntact, "MACs              checked"},
		"MACs of another tenant":       {[]string{"--key", keys, "--mac-keys", others, data("whole.zip")}, exitUnknown, `the MAC keys are of tenant "bravo"`},
		"a day":                        {[]string{"--key", keys, data("day.zip")}, exitIntact, "24 entries, USD 0.000000018938"},
		"a witness":                    {[]string{"--key", keys, "--witness-key", data("witness.txt"), data("day.zip")}, exitIntact, "cosigned by witness.example/one"},
		"a witness that did not sign":  {[]string{"--key", keys, "--witness-key", data("witness.txt"), data("whole.zip")}, exitUnknown, "0 of the 1 witnesses"},
		"a checkpoint that was kept":   {[]string{"--key", keys, "--checkpoint", data("checkpoint-20.txt"), data("range.zip")}, exitIntact, "INTACT"},
		"one that is newer":            {[]string{"--key", keys, "--checkpoint", data("checkpoint-150.txt"), data("range.zip")}, exitUnknown, "the package is older, or the log was rolled back"},
		"forged":                       {[]string{"--key", keys, "--mac-keys", macs, data("forged.zip")}, exitBroken, "BROKEN at entry 41 of acme: root differs"},
		"a damaged entry":              {[]string{"--key", keys, damaged(t, "whole.zip", 3000)}, exitBroken, "BROKEN at entry"},
		"of another tenant":            {[]string{"--key", keys, "--tenant", "globex", data("whole.zip")}, exitBroken, "BROKEN of acme: manifest"},
		"cut":                          {[]string{"--key", keys, cut(t, "whole.zip", 20_000)}, exitUnknown, "cut or damaged"},
		"no key":                       {[]string{data("whole.zip")}, exitUnknown, "no trusted key"},
		"self-asserted":                {[]string{"--self-asserted", data("whole.zip")}, exitIntact, "WARNING: the keys are self-asserted"},
		"keys of somebody else":        {[]string{"--key", data("witness.txt"), data("whole.zip")}, exitUnknown, "no trusted key"},
		"another tenant":               {[]string{"--key", keys, "--tenant", "bravo", data("whole.zip")}, exitBroken, "manifest"},
		"no package":                   {[]string{"--key", keys, keys}, exitUsage, ""},
		"no such file":                 {[]string{"--key", keys, data("nowhere.zip")}, exitUsage, ""},
		"a folder":                     {[]string{"--key", keys, data("")}, exitUsage, ""},
		"no such key file":             {[]string{"--key", data("nowhere"), data("whole.zip")}, exitUsage, ""},
		"a key file that is none":      {[]string{"--key", macs, data("whole.zip")}, exitUsage, ""},
		"MAC keys that are none":       {[]string{"--key", keys, "--mac-keys", keys, data("whole.zip")}, exitUsage, ""},
		"no package at all":            {nil, exitUsage, ""},
		"two packages":                 {[]string{data("whole.zip"), data("day.zip")}, exitUsage, ""},
		"no such option":               {[]string{"--frobnicate", data("whole.zip")}, exitUsage, ""},
		"self-asserted beside a key":   {[]string{"--self-asserted", "--key", keys, data("whole.zip")}, exitUsage, ""},
		"help":                         {[]string{"--help"}, exitIntact, "Usage: tallystick-verify"},
		"version":                      {[]string{"--version"}, exitIntact, "tallystick-verify"},
		"a checkpoint of another form": {[]string{"--key", keys, "--checkpoint", macs, data("whole.zip")}, exitUnknown, "not a checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := verifyRun(t, c.args...)
			if code != c.code || !strings.Contains(out, c.want) {
				t.Errorf("exit code %d, want %d with %q\n%s%s", code, c.code, c.want, out, errOut)
			}
			if (code == exitUsage) != (errOut != "") {
				t.Errorf("on stderr: %q", errOut)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	code, out, _ := verifyRun(t, "--key", data("keys.txt"), "--mac-keys", data("mac-keys.txt"), "--json", data("forged.zip"))
	var r jsonReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if code != exitBroken || r.Verdict != "broken" || r.FirstBad != 41 || r.Reason != "root differs" || r.Detector != "root" || !r.MACsChecked || len(r.Checkpoints) != 4 {
		t.Errorf("%d: %+v", code, r)
	}
	_, out, _ = verifyRun(t, "--key", data("keys.txt"), "--json", data("whole.zip"))
	r = jsonReport{}
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Audit == nil || r.Audit.Verdict != "intact" || r.CostUSD != "0.000000127483" || r.Covered != 150 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A hostile package must not drive the reader's terminal.
func TestNothingForATerminalToObey(t *testing.T) {
	var b bytes.Buffer
	p := &printer{w: &b}
	p.line("%s", "a\x1b[2Jb\rc\u202ed")
	if got := b.String(); got != "a\ufffd[2Jb\ufffdc\ufffdd\n" {
		t.Errorf("%q", got)
	}
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	at := time.Unix(0, 0)
	p := &progress{w: &b, now: func() time.Time { return at }, begun: at}
	p.update(1, 100)
	if b.Len() > 0 {
		t.Error("a bar in the first second")
	}
	at = at.Add(2 * time.Second)
	p.update(50, 100)
	p.update(51, 100)
	if got := b.String(); strings.Count(got, "\r") != 1 || !strings.Contains(got, "[###############...............]  50 %  50 of 100 entries  25/s  2s left") {
		t.Errorf("%q", got)
	}
	p.finish()
	if !strings.HasSuffix(b.String(), "\r\x1b[K") {
		t.Errorf("%q", b.String())
	}
	none := newProgress(&b)
	none.update(1, 2)
	none.finish()
}

// maxBinaryBytes is what the program may weigh.
const maxBinaryBytes = 15 << 20

// The program is one static file that an auditor can take along.
func TestBinary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tallystick-verify")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxBinaryBytes {
		t.Fatalf("%d bytes, %v", info.Size(), err)
	}
	cmd := exec.CommandContext(ctx, path, "--key", data("keys.txt"), data("forged.zip"))
	cmd.Env = []string{} // nothing of the machine
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitBroken || !bytes.Contains(out, []byte("BROKEN at entry 41")) {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%.1f MiB", float64(info.Size())/(1<<20))
}
