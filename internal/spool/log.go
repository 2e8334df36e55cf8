package spool

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
)

// Bounds of the shipper.
const (
	// DefaultShipBytes is about how much one call to the producer carries.
	DefaultShipBytes = 2 << 20
	// minBackoff and maxBackoff bound the pause after a failure; it doubles, and
	// up to half of it is left out at random.
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// Producer is where a log's records go in the end. *kafka.Producer is one.
type Producer interface {
	// ProduceBatch returns when each record is durable or has failed, with the
	// errors of package kafka. After kafka.ErrUnacked it may still use the
	// records' memory.
	ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error
}

// Log takes Kafka records as Kafka does, but is satisfied when they are in the
// spool; [Log.Run] carries them on. It satisfies the edge's interface of a log,
// so whoever writes through it survives Kafka's absence.
//
// Records of one partition reach Kafka in the order in which they were
// appended. A record whose acknowledgement was lost is sent again, with those
// of its partition behind it: readers see duplicates, never a hole. A record
// that Kafka refuses for good stops the line: it is tried for ever, the log says
// so, and nothing behind it is skipped to; [LogStats.Err] is what to watch.
type Log struct {
	spool *Spool
	to    Producer
	opts  LogOptions

	shippedSome chan struct{} // capacity 1: wakes Drain

	mu      sync.Mutex // protects err and shipped
	err     error
	shipped uint64
}

// LogOptions of a log. The zero value of a field means its default.
type LogOptions struct {
	// ShipBytes is about how much one call to the producer carries; default 2 MiB.
	ShipBytes int
	// Log hears of failures to ship, once when they begin and once when they end.
	Log *slog.Logger
}

// LogStats are a spool's, and how shipping goes.
type LogStats struct {
	Stats
	// Shipped counts the records that Kafka acknowledged since the start.
	Shipped uint64
	// Err is why the newest attempt failed; nil when it succeeded.
	Err error
}

// NewLog puts a producer behind a spool. The spool stays the caller's to close,
// after [Log.Run] has returned; nobody else may read or acknowledge it.
func NewLog(s *Spool, to Producer, opts LogOptions) *Log {
	if opts.ShipBytes == 0 {
		opts.ShipBytes = DefaultShipBytes
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Log{spool: s, to: to, opts: opts, shippedSome: make(chan struct{}, 1)}
}

// ProduceBatch returns when the records are durable in the spool. A result
// without an error means that, its Offset is -1: Kafka has not numbered the
// record yet. All records of a call have one outcome: nil, [kafka.ErrFull] when
// the spool is full, [kafka.ErrTooLarge], [kafka.ErrClosed], [kafka.ErrUnacked]
// when ctx ended first, or the disk's own error. The records' memory is the
// caller's again when it returns.
func (l *Log) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error {
	if results != nil && len(results) != len(recs) {
		return fmt.Errorf("spool: %d results for %d records", len(results), len(recs))
	}
	if len(recs) == 0 {
		return nil
	}
	size := int64(0)
	for i := range recs {
		size += int64(recordOverhead + kafkaBytes(&recs[i]))
	}
	g, rel, err := l.spool.join(ctx, size, func(g *group) {
		for i := range recs {
			at := len(g.buf)
			g.buf = appendKafka(append(g.buf, 0, 0, 0, 0), &recs[i])
			binary.LittleEndian.PutUint32(g.buf[at:], uint32(len(g.buf)-at-recordOverhead))
		}
		g.count += len(recs)
	})
	if err == nil {
		_, err = g.wait(ctx, rel)
	}
	err = asKafka(ctx, err)
	for i := range results {
		results[i] = kafka.Result{Offset: -1, Err: err}
	}
	return err
}

// asKafka gives the edge the errors that it knows how to answer.
func asKafka(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrFull):
		return fmt.Errorf("%w: %w", kafka.ErrFull, err)
	case errors.Is(err, ErrTooLarge):
		return fmt.Errorf("%w: %w", kafka.ErrTooLarge, err)
	case errors.Is(err, ErrClosed):
		return fmt.Errorf("%w: %w", kafka.ErrClosed, err)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", kafka.ErrUnacked, err)
	}
	return err
}

// Stats are exact at some moment during the call.
func (l *Log) Stats() LogStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LogStats{Stats: l.spool.Stats(), Shipped: l.shipped, Err: l.err}
}

// Run ships until ctx ends or the spool is closed, and returns nil then. It
// retries for ever with a growing pause. The only error it returns is
// [ErrCorrupt]: what is on disk is not what was appended. Run it once.
func (l *Log) Run(ctx context.Context) error {
	ship := shipper{log: l, batch: &Batch{}, topics: map[string]string{}}
	for {
		err := ship.next(ctx)
		switch {
		case ctx.Err() != nil, errors.Is(err, ErrClosed):
			return nil
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrKey):
			l.outcome(0, err)
			return err
		}
		if err == nil {
			continue
		}
		select {
		case <-time.After(ship.pause()):
		case <-ctx.Done():
			return nil
		}
	}
}

// Drain waits until everything that was appended is in Kafka, or ctx ends; Run
// must be running, and one caller waits at a time. It returns how many records
// are left, and ctx's cause if any are: they stay in the spool for the next start.
func (l *Log) Drain(ctx context.Context) (left uint64, err error) {
	for {
		if left = l.spool.Stats().Records; left == 0 {
			return 0, nil
		}
		select {
		case <-l.shippedSome:
		case <-ctx.Done():
			return left, context.Cause(ctx)
		}
	}
}

// outcome remembers how an attempt ended, and logs only a change.
func (l *Log) outcome(n int, err error) {
	l.mu.Lock()
	before := l.err
	l.err = err
	l.shipped += uint64(n)
	l.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		l.opts.Log.Error("spool: cannot ship, will try again", "err", err, "records", l.spool.Stats().Records)
	case err == nil && before != nil:
		l.opts.Log.Info("spool: shipping again", "records", l.spool.Stats().Records)
	}
}

// shipper is the state of one Run.
type shipper struct {
	log     *Log
	batch   *Batch
	recs    []kafka.Record
	results []kafka.Result
	topics  map[string]string
	failed  int // attempts since the last success
}

// next reads what comes next, sends it until all of it is acknowledged or one
// attempt fails, and acknowledges it in the spool.
func (s *shipper) next(ctx context.Context) error {
	l := s.log
	if len(s.recs) == 0 {
		if err := s.read(ctx); err != nil {
			return err
		}
	}
	if cap(s.results) < len(s.recs) {
		s.results = make([]kafka.Result, len(s.recs))
	}
	s.results = s.results[:len(s.recs)]
	n := len(s.recs)
	err := l.to.ProduceBatch(ctx, s.recs, s.results)
	if err != nil {
		s.failed++
		s.keepFailed(err)
		l.outcome(n-len(s.recs), err)
		return err
	}
	// Whatever becomes of Ack, what Kafka has is not sent again by this process.
	s.failed, s.recs = 0, s.recs[:0]
	err = l.spool.Ack(s.batch.Last())
	l.outcome(n, err)
	select {
	case l.shippedSome <- struct{}{}:
	default:
	}
	return err
}

// read takes the next records out of the spool.
func (s *shipper) read(ctx context.Context) error {
	if err := s.log.spool.Read(ctx, 0, s.log.opts.ShipBytes, s.batch); err != nil {
		return err
	}
	s.recs = s.recs[:0]
	for i, b := range s.batch.Records {
		r, err := parseKafka(b, s.topics)
		if err != nil {
			s.recs = s.recs[:0]
			return fmt.Errorf("%w: record %d: %w", ErrCorrupt, s.batch.First+uint64(i), err)
		}
		s.recs = append(s.recs, r)
	}
	return nil
}

// keepFailed leaves in recs what has to be sent again: of each partition the
// first record that failed and all behind it, in their order.
func (s *shipper) keepFailed(err error) {
	type place struct {
		topic     string
		partition int32
	}
	stuck := map[place]bool{}
	left := make([]kafka.Record, 0, len(s.recs)) // new memory: see below
	for i, r := range s.recs {
		at := place{r.Topic, r.Partition}
		if s.results[i].Err != nil {
			stuck[at] = true
		}
		if stuck[at] {
			left = append(left, r)
		}
	}
	if len(left) == 0 { // the call as a whole failed without saying for whom
		left = append(left, s.recs...)
	}
	// The producer may still read the slices it was given, and the batch's
	// memory: neither is used again, and the next Read fills new memory.
	s.recs, s.results = left, nil
	s.batch = &Batch{First: s.batch.First, Records: s.batch.Records}
}

// pause is how long to wait after the newest failure.
func (s *shipper) pause() time.Duration {
	d := maxBackoff
	if s.failed < 8 {
		d = min(minBackoff<<max(s.failed-1, 0), maxBackoff)
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return d
	}
	return d - time.Duration(binary.LittleEndian.Uint64(b[:])%uint64(d/2+1))
}
