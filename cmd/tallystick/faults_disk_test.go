package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/client"
)

// smallDisk is the size of the log's file system: more than the broker asks for
// at its start, and soon full.
const smallDisk = 96 << 20

// A full disk below the log: no event is acknowledged that is not durable, and
// with space again everything goes on in the same process; what was acknowledged
// before, in between and after is all there, also after a kill -9.
func TestFullLog(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: a full disk. It needs a small file system, and only root can mount one")
	}
	var disk string
	srv := startFaultServer(t, func(s *smokeServer) {
		disk = filepath.Join(s.dataDir(), "kafka")
		mountSmall(t, disk, smallDisk)
	})
	var p *probe
	srv.under(t, func(t *testing.T, l *faultLoad) {
		p = &probe{l: l, taken: map[string]bool{}}
		p.makeTenant()
		if code := p.send(); code != 202 {
			t.Fatalf("an event is answered %d", code)
		}
		filler := filepath.Join(disk, "filler")
		fillDisk(t, filler)
		l.await("ingest says that it cannot take events", faultRecovery, func() bool {
			return p.send() == 503
		})
		began, before := time.Now(), l.acked.Load()
		refused := 0
		for time.Since(began) < 2*time.Second {
			fillDisk(t, filler) // what the broker's own clean-up may have freed
			if p.send() == 503 {
				refused++
			}
			time.Sleep(50 * time.Millisecond)
		}
		// An event may still fit into a block that is there already.
		if refused == 0 {
			t.Error("every event was taken on a full disk")
		}
		t.Logf("on the full disk: %d events acknowledged, %d probes refused", l.acked.Load()-before, refused)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		l.await("ingest takes events again", faultRecovery, func() bool { return p.send() == 202 })
		t.Logf("taken again %.2f s after there was room", time.Since(began).Seconds())
		l.awaitAcked(500)
		if srv.gone() {
			t.Fatal(srv.lastWords("the server ended by itself"))
		}
		if _, err := srv.kill(); err != nil { // what was acknowledged is on the disk
			t.Fatal(err)
		}
		srv.mustStart(t)
	})
	p.check(t)
	srv.checkCounters(t)
}

// chaos is set where faults are tested that take longer than `make test` should.
const chaos = "TALLYSTICK_CHAOS"

// A full disk below Postgres, then one below ClickHouse: the log takes every
// event at the first attempt, and with space again the rest catches up by itself.
func TestFullStores(t *testing.T) {
	if os.Getenv(chaos) == "" {
		t.Skip("set " + chaos + "=1 to test a full disk below Postgres and ClickHouse")
	}
	if os.Getuid() != 0 {
		t.Fatal("a full disk needs a small file system, and only root can mount one")
	}
	srv := startFaultServer(t, func(s *smokeServer) {
		for _, store := range []string{"postgres", "clickhouse"} {
			mountSmall(t, filepath.Join(s.dataDir(), store), 640<<20)
		}
	})
	for _, store := range []string{"postgres", "clickhouse"} {
		ok := t.Run(store, func(t *testing.T) {
			res := srv.under(t, func(t *testing.T, l *faultLoad) {
				before, logged := l.acked.Load(), fileSize(t, srv.log.Name())
				filler := filepath.Join(srv.dataDir(), store, "filler")
				for began := time.Now(); time.Since(began) < 3*time.Second; time.Sleep(100 * time.Millisecond) {
					fillDisk(t, filler)
				}
				if l.acked.Load() == before {
					t.Error("nothing was acknowledged meanwhile")
				}
				if text, err := os.ReadFile(srv.log.Name()); err != nil || !fullDisk.Match(text[logged:]) {
					t.Errorf("nobody complained of the full disk (%v)", err)
				}
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
				l.await("the server is ready again", time.Minute, func() bool { code, _ := l.ready(); return code == 200 })
				if srv.gone() {
					t.Fatal(srv.lastWords("the server ended by itself"))
				}
			})
			if res.Retries != 0 {
				t.Errorf("%d requests had to be sent again", res.Retries)
			}
		})
		if !ok {
			return
		}
	}
	srv.checkCounters(t)
}

// fullDisk is how Postgres, Go and ClickHouse say it.
var fullDisk = regexp.MustCompile(`(?i)no space left|could not extend|NOT_ENOUGH_SPACE|disk full`)

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// mountSmall mounts a file system of its own at a folder.
func mountSmall(t *testing.T, dir string, size int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tallystick-test", dir, "tmpfs", 0, "size="+strconv.Itoa(size)+",mode=0711"); err != nil {
		t.Fatalf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fillDisk writes until nothing more can be written.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// probeTenant is the tenant of the events that a probe sends.
const probeTenant = "fault-probe"

// probe sends single events and remembers which were acknowledged.
type probe struct {
	l     *faultLoad
	sent  int
	taken map[string]bool
}

func (p *probe) makeTenant() {
	p.l.t.Helper()
	code, _, body := p.l.ask(http.MethodPost, "/v1/tenants:batchCreate", "application/json", `{"tenant_ids":["`+probeTenant+`"]}`)
	if code != 200 {
		p.l.t.Fatalf("making a tenant: %d %s", code, body)
	}
}

// send sends one event, which is taken or refused for now, and nothing else.
func (p *probe) send() int {
	p.l.t.Helper()
	p.sent++
	id := fmt.Sprintf("probe-%d", p.sent)
	code, header, body := p.l.ask(http.MethodPost, "/v1/events:batch", "application/json", fmt.Sprintf(
		`{"events":[{"event_id":"%s","tenant_id":"%s","occurred_at":"%s","provider":"openai","model":"gpt-5"}]}`,
		id, probeTenant, time.Now().UTC().Format(time.RFC3339)))
	switch {
	case code == 202:
		p.taken[id] = true
	case code != 503 || header.Get("Retry-After") == "" || header.Get("Content-Type") != "application/problem+json":
		p.l.t.Fatalf("an event is answered %d, Retry-After %q, %s: %s", code, header.Get("Retry-After"), header.Get("Content-Type"), body)
	}
	return code
}

// check looks for every acknowledged event in the ledger, once.
func (p *probe) check(t *testing.T) {
	t.Helper()
	api := client.New(p.l.srv.url(), p.l.srv.token)
	defer api.Close()
	seen := map[string]int{}
	err := api.Entries(t.Context(), probeTenant, func(e *client.Entry) error {
		if e.Kind == "usage" {
			seen[e.EventID]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id := range p.taken {
		if seen[id] != 1 {
			t.Errorf("event %q was acknowledged, and is in the ledger %d times", id, seen[id])
		}
	}
	t.Logf("probes: %d sent, %d acknowledged, %d in the ledger", p.sent, len(p.taken), len(seen))
}
