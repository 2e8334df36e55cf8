package chdb_test

import (
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMergesYield: once rows come in, the threads that merge run at a lower
// priority than the rest of the process.
func TestMergesYield(t *testing.T) {
	h := serve(t)
	run := func(sql, rows string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/?query="+url.QueryEscape(sql), strings.NewReader(rows)))
		if w.Code != 200 {
			t.Fatalf("%s: %d %s", sql, w.Code, w.Body)
		}
	}
	run("CREATE TABLE merged (a Int32) ENGINE = MergeTree ORDER BY a", "")
	want := max(10, nice(t, os.Getpid()))
	var got []int
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		run("INSERT INTO merged FORMAT TSV", "1\n") // the engine starts the threads a moment after the first
		got = merging(t)
		if len(got) > 0 && slices.Min(got) == want && slices.Max(got) == want {
			return
		}
	}
	t.Errorf("the threads that merge have nice %v, want %d; without any their name must have changed", got, want)
}

// merging are the nice values of the threads that merge.
func merging(t *testing.T) (values []int) {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range threads {
		name, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(name)) != "MergeMutate" {
			continue // another, or it has ended
		}
		tid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, nice(t, tid))
	}
	return values
}

// nice is a thread's nice value; the system call answers 20 less it.
func nice(t *testing.T, tid int) int {
	t.Helper()
	p, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - p
}
