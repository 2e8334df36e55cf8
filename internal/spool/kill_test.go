package spool

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// childEnv tells a process of the test binary that it is the child, and where
// the folder is.
const childEnv = "TALLYSTICK_TEST_SPOOL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, child(dir, os.Stdout))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child appends from many goroutines until it is killed, and tells each number
// after Append has returned it.
func child(dir string, out io.Writer) error {
	s, err := Open(dir, Options{Key: key})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	errs := make(chan error)
	for w := range 16 {
		go func() {
			for n := 0; ; n++ {
				first, err := s.Append(context.Background(), [][]byte{killRecord(w, n), killRecord(w, -n)})
				if err != nil {
					errs <- err
					return
				}
				mu.Lock()
				_, err = fmt.Fprintf(out, "%d %d %d\n", first, w, n)
				mu.Unlock()
				if err != nil {
					errs <- err
					return
				}
				if first%997 == 0 && first > 5000 { // what the parent no longer needs
					if err := s.Ack(first - 5000); err != nil {
						errs <- err
						return
					}
				}
			}
		}()
	}
	return <-errs
}

func killRecord(w, n int) []byte {
	b := binary.AppendVarint(nil, int64(w))
	b = binary.AppendVarint(b, int64(n))
	return append(b, strings.Repeat("z", (n*31+w)&511)...)
}

// TestKilledProcessLosesNothing kills a process under load, opens its folder
// and looks for every record whose number it had told, again and again in the
// same folder.
func TestKilledProcessLosesNothing(t *testing.T) {
	dir := t.TempDir()
	told, lost := 0, 0
	for round := range 12 {
		promised := killedChild(t, dir, 300+round*150)
		s := open(t, dir, Options{Key: key})
		st := s.Stats()
		var b Batch
		seen := map[uint64]string{}
		for at := st.Acked; at < st.Last; at = b.Last() {
			if err := s.Read(t.Context(), at, 1<<20, &b); err != nil {
				t.Fatal(err)
			}
			for i, r := range b.Records {
				seen[b.First+uint64(i)] = string(r)
			}
		}
		for first, r := range promised {
			told++
			if first <= st.Acked {
				continue
			}
			if seen[first] != string(killRecord(r[0], r[1])) || seen[first+1] != string(killRecord(r[0], -r[1])) {
				lost++
				t.Errorf("round %d: record %d was told and is not there", round, first)
			}
		}
		closeSpool(t, s)
	}
	t.Logf("edge: spool_lost=%d spool_told=%d", lost, told)
}

// killedChild runs a child until it has told enough appends, and returns them.
func killedChild(t *testing.T, dir string, enough int) map[uint64][2]int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	promised := map[uint64][2]int{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var first uint64
		var r [2]int
		if _, err := fmt.Sscan(lines.Text(), &first, &r[0], &r[1]); err != nil {
			break // the line that the kill cut
		}
		promised[first] = r
		if len(promised) == enough {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(promised) < enough {
		t.Fatalf("the child ended by itself after %d appends: %v", len(promised), err)
	}
	return promised
}
