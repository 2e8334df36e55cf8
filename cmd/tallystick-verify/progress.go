package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// progress is a bar on a terminal and nothing elsewhere. It appears after a
// second: what is done by then needs none.
type progress struct {
	mu    sync.Mutex // protects what follows
	w     io.Writer  // nil: no terminal
	now   func() time.Time
	begun time.Time
	shown time.Time
}

const (
	barDelay = time.Second
	barEvery = 200 * time.Millisecond
	barWidth = 30
)

func newProgress(w io.Writer) *progress {
	p := &progress{now: time.Now, begun: time.Now()}
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.w = w
		}
	}
	return p
}

// update shows how far it is. It may be called by many goroutines.
func (p *progress) update(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	passed := now.Sub(p.begun)
	if p.w == nil || total <= 0 || passed < barDelay || now.Sub(p.shown) < barEvery {
		return
	}
	p.shown = now
	filled := int(barWidth * done / total)
	rate := float64(done) / passed.Seconds()
	left := time.Duration(float64(total-done) / max(rate, 1) * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(p.w, "\r[%s%s] %3d %%  %d of %d entries  %.0f/s  %s left \033[K",
		strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), 100*done/total, done, total, rate, left)
}

// finish takes the bar away.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil && !p.shown.IsZero() {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
