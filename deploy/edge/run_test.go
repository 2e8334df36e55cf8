// Package edge_test tests the rules of `make edge`.
package edge_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs one of the scripts beside this file, and reports whether it was content.
func run(t *testing.T, stdin string, args ...string) (out string, content bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(b), err == nil
}

// figures are those of a run in which all is well.
const figures = `exchanges=789/789 ambiguous=7
replays=0/10000 valid_hellos=10000/10000
spool_lost=0 spool_told=13558
leaks=0
leaks=0 payloads=10000
spool_lost=0
sdk=ok
proxy_vs_bare=1.14 proxy_p50_us=330 proxy_p99_us=1024 proxy_p50_vs_bare=0.65 proxy_p99_vs_bare=0.28
`

func TestJudge(t *testing.T) {
	const line = "edge: exchanges=789/789 ambiguous=7 sdk=ok replays=0/10000 valid_hellos=10000/10000 leaks=0 spool_lost=0 proxy_vs_bare=1.14 proxy_p50_us=330 proxy_p99_us=1024\n"
	if out, content := run(t, figures, "./judge", "0"); !content || out != line {
		t.Errorf("of good figures: %v %s", content, out)
	}
	if out, content := run(t, figures, "./judge", "1"); content || out != line {
		t.Errorf("where a part failed: %v %s", content, out)
	}
	for _, bad := range [][2]string{
		{"789/789", "788/789"}, {"ambiguous=7", "ambiguous=8"}, {"replays=0", "replays=1"}, {"0/10000", "0/9999"}, {"10000/10000", "9999/10000"},
		{"sdk=ok", "sdk=no"}, {"sdk=ok", ""}, {"payloads=10000", "payloads=9999"}, {" payloads=10000", ""}, {"leaks=0 payloads", "leaks=1 payloads"}, {"leaks=0\n", ""},
		{"\nspool_lost=0\n", "\n"}, {"spool_lost=0 spool", "spool_lost=2 spool"}, {"proxy_p99_us=1024", ""},
	} {
		if !strings.Contains(figures, bad[0]) {
			t.Fatalf("%q is no figure", bad[0])
		}
		if out, content := run(t, strings.Replace(figures, bad[0], bad[1], 1), "./judge", "0"); content {
			t.Errorf("%q in place of %q is let pass: %s", bad[1], bad[0], out)
		}
	}
}

func TestAgainstBare(t *testing.T) {
	const good = "proxy_vs_bare=0.70 proxy_p50_us=9 proxy_p99_us=9 proxy_p50_vs_bare=1.30 proxy_p99_vs_bare=1.50"
	replace := func(old, by string) string { return strings.Replace(good, old, by, 1) }
	for _, c := range []struct {
		name    string
		tries   []string // what each prints; the last one is repeated
		content bool
		ran     int
	}{
		{"good", []string{good}, true, 1},
		{"one try is off", []string{replace("0.70", "0.69"), good}, true, 2},
		{"slow", []string{replace("0.70", "0.69")}, false, 4},
		{"median", []string{replace("1.30", "1.31")}, false, 4},
		{"tail", []string{replace("1.50", "24.05")}, false, 4},
		{"no figure", []string{replace("proxy_p99_vs_bare=1.50", "proxy_p99_vs_bare=NaN")}, false, 4},
		{"missing", []string{replace("proxy_p50_vs_bare=1.30", "")}, false, 4},
	} {
		dir := t.TempDir()
		script := "#!/usr/bin/env bash\necho x >>" + dir + "/ran\ncase $(wc -l <" + dir + "/ran) in\n"
		for i, try := range c.tries {
			script += fmt.Sprintf("%d) echo 'bench-further: %s' ;;\n", i+1, try)
		}
		script += fmt.Sprintf("*) echo 'bench-further: %s' ;;\nesac\n", c.tries[len(c.tries)-1])
		command := filepath.Join(dir, "bench")
		if err := os.WriteFile(command, []byte(script), 0o700); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
		out, content := run(t, "", "./against-bare", command)
		ran, err := os.ReadFile(filepath.Join(dir, "ran"))
		if err != nil || content != c.content || len(ran) != 2*c.ran {
			t.Errorf("%s: %v after %d tries: %s %v", c.name, content, len(ran)/2, out, err)
		}
		if n := strings.Count("\n"+out, "\nbench"); n != 1 {
			t.Errorf("%s: the figures of %d tries count: %s", c.name, n, out)
		}
	}
	if out, content := run(t, "", "./against-bare", "false"); content {
		t.Errorf("a benchmark that fails is let pass: %s", out)
	}
}
