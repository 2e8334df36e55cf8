package load

import (
	"context"
	"time"
)

// pacer holds an open-loop schedule: when an event is due depends on the
// source and the start, never on answers.
type pacer struct {
	ctx   context.Context
	stop  <-chan struct{}
	speed float64
	rate  float64

	start   time.Time
	firstAt int64
	begun   bool
	opened  time.Time // when the first event of the open batch was due
}

// newPacer returns nil for a load that goes as fast as it can.
func newPacer(o *Options) *pacer {
	if o.Speed <= 0 && o.Rate <= 0 {
		return nil
	}
	return &pacer{ctx: context.Background(), stop: o.Stop, speed: o.Speed, rate: o.Rate}
}

// admit waits until the call is due and says that it belongs into the batch.
// When that would keep the batch open for too long, or the load is to end, it
// says no: the batch is to be sent first.
func (p *pacer) admit(b *batch, c *call, sent int64) bool {
	due := p.due(c, sent)
	if len(b.items) == 0 {
		p.opened = due
	} else if due.Sub(p.opened) > flushInterval {
		return false
	}
	if wait := time.Until(due); wait > 0 && !p.sleep(wait) {
		return false
	}
	b.due = due.UnixNano()
	return true
}

func (p *pacer) due(c *call, sent int64) time.Time {
	if !p.begun {
		p.begun, p.start, p.firstAt = true, time.Now(), c.at
	}
	if p.rate > 0 {
		return p.start.Add(time.Duration(float64(sent) / p.rate * float64(time.Second)))
	}
	return p.start.Add(time.Duration(float64(c.at-p.firstAt) / p.speed))
}

func (p *pacer) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.stop:
		return false
	case <-p.ctx.Done():
		return false
	}
}
