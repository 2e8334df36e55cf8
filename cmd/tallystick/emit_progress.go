package main

import (
	"io"
	"os"
	"sync/atomic"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"
)

// emitProgress is a progress bar on a terminal and nothing elsewhere.
type emitProgress struct {
	bar   *pb.ProgressBar
	acked atomic.Int64
}

const emitBar = pb.ProgressBarTemplate(`{{string . "what"}} {{counters . }} {{bar . }} {{percent . }} {{speed . "%s/s" }} {{rtime . "ETA %s"}}`)

func newEmitProgress(w io.Writer, what string, total int64) *emitProgress {
	p := &emitProgress{}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.bar = emitBar.New(0).SetTotal(total).SetWriter(f).Set("what", what).Start()
	return p
}

// update takes the running totals; several goroutines call it, and an older
// total may come after a newer one.
func (p *emitProgress) update(_, acked int64) {
	for {
		old := p.acked.Load()
		if acked <= old {
			return
		}
		if p.acked.CompareAndSwap(old, acked) {
			break
		}
	}
	if p.bar != nil {
		p.bar.SetCurrent(p.acked.Load())
	}
}

func (p *emitProgress) finish() {
	if p.bar != nil {
		p.bar.Finish()
	}
}
