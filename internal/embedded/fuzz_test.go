package embedded

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzPostmasterPID feeds the lock file that a crash, or anything else, left.
func FuzzPostmasterPID(f *testing.F) {
	f.Add("9431\n/proc/self/cwd\n1795316070\n5432\nrun\n\n  9995938         4\nready   \n")
	f.Add("")
	f.Add("-1\n")
	f.Add("99999999999999999999\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content string) {
		if err := os.WriteFile(filepath.Join(dir, pidFileName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		pid, ready := readPostmasterPID(dir)
		if pid < 0 {
			t.Errorf("pid %d would signal a process group", pid)
		}
		if ready && (pid == 0 || !strings.Contains(content, pidFileReadyStatus)) {
			t.Errorf("ready by %q", content)
		}
	})
}

// FuzzProcStat feeds process names, which may hold anything.
func FuzzProcStat(f *testing.F) {
	f.Add("sleep", "S")
	f.Add("a) Z (b", "R")
	f.Add("", "Z")
	f.Fuzz(func(t *testing.T, name, state string) {
		if len(state) != 1 || state == ")" {
			return
		}
		stat := "17 (" + name + ") " + state + " 1 17 17"
		if got := isZombie([]byte(stat)); got != (state == "Z") {
			t.Errorf("isZombie(%q) = %v", stat, got)
		}
	})
}

// FuzzPostgresVersion feeds what a program that is called postgres prints.
func FuzzPostgresVersion(f *testing.F) {
	f.Add("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n")
	f.Add("postgres (PostgreSQL) 18beta1")
	f.Add("postgres (PostgreSQL) 99999999999999999999")
	f.Fuzz(func(t *testing.T, line string) {
		major, err := parsePostgresMajor(line)
		if err == nil && (major < 0 || !strings.Contains(line, "(PostgreSQL) ")) {
			t.Errorf("%q is version %d", line, major)
		}
	})
}
