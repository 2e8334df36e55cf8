package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/load"
)

func testDemo(t *testing.T, dir, url string) *demo {
	t.Helper()
	return newDemo(dir, url, "sesame", slog.New(slog.DiscardHandler))
}

// A history that was stopped in the middle is continued, not begun again.
func TestDemoResumesItsHistory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	var batches atomic.Int64
	var first *demo
	first = testDemo(t, dir, yes(t, func() {
		if batches.Add(1) == 50 {
			first.once.Do(func() { close(first.stopping) })
		}
	}).URL)
	if err := first.history(t.Context()); err != nil {
		t.Fatal(err)
	}
	place := filepath.Join(dir, "history.json")
	half, err := load.ReadState(place)
	if err != nil {
		t.Fatal(err)
	}
	if !half.Complete || half.Next == 0 || half.Next >= demoEvents {
		t.Fatalf("stopped at %d, complete=%t", half.Next, half.Complete)
	}
	second := testDemo(t, dir, yes(t, func() { batches.Add(1) }).URL)
	if err := second.history(t.Context()); err != nil {
		t.Fatal(err)
	}
	whole, err := load.ReadState(place)
	if err != nil {
		t.Fatal(err)
	}
	if !whole.Base.Equal(half.Base) || whole.Expectation.Accepted != demoEvents {
		t.Errorf("%d events accepted of %d; base %s, then %s", whole.Expectation.Accepted, demoEvents, half.Base, whole.Base)
	}
	// Full batches, and few more: a history begun again would need a third more.
	if n, least := batches.Load(), whole.Expectation.Accepted/load.DefaultBatch; n < least || n > least+100 {
		t.Errorf("%d batches for %d events", n, whole.Expectation.Accepted)
	}
	sent := batches.Load()
	third := testDemo(t, dir, yes(t, func() { batches.Add(1) }).URL)
	if err := third.history(t.Context()); err != nil || batches.Load() != sent {
		t.Errorf("a complete history was sent again: %d batches, %v", batches.Load()-sent, err)
	}
}

// After the history calls go on until stop, which waits for what is under way.
func TestDemoGoesOnLive(t *testing.T) {
	dir := t.TempDir()
	text := []byte(`{"base":"2026-01-02T03:04:05Z"}`)
	if err := os.WriteFile(filepath.Join(dir, "start.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	live := make(chan struct{}, 1)
	var d *demo
	d = testDemo(t, dir, yes(t, func() {
		if strings.HasPrefix(d.pair(), " demo=live demo_sent=") {
			select {
			case live <- struct{}{}:
			default:
			}
		}
	}).URL)
	d.start()
	select {
	case <-live:
	case <-d.done:
	case <-time.After(time.Minute):
		t.Error("no live events")
	}
	d.stop()
	d.stop() // twice is once
	if d.err != nil || !strings.Contains(strings.Join(d.lines(palette{}), "\n"), "as they happen") {
		t.Errorf("%v: %q", d.err, d.lines(palette{}))
	}
	base, err := d.base()
	if want := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC); err != nil || !base.Equal(want) {
		t.Errorf("base %s, %v", base, err)
	}
}

// A load that cannot go on is shown, and stops nothing else.
func TestDemoShowsItsFailure(t *testing.T) {
	d := newDemo(t.TempDir(), yes(t, func() {}).URL, "wrong", slog.New(slog.DiscardHandler))
	d.start()
	<-d.done
	d.stop()
	if text := d.pair(); !strings.Contains(text, "demo=failed") || !strings.Contains(text, "not authorised") {
		t.Errorf("%q", text)
	}
	if text := strings.Join(d.lines(palette{}), "\n"); !strings.Contains(text, "not authorised") {
		t.Errorf("%q", text)
	}
	for name, text := range map[string]string{"no JSON": "{", "no time": "{}"} {
		if err := os.WriteFile(filepath.Join(d.dir, "start.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.base(); err == nil || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
