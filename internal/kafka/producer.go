package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Defaults of [ProducerOptions].
const (
	DefaultLinger             = 5 * time.Millisecond
	DefaultMaxBufferedRecords = 200_000
	DefaultMaxBufferedBytes   = 128 << 20
	DefaultDeliveryTimeout    = 15 * time.Second
)

// produceRequestTimeout is how long a broker may wait for its replicas. It is
// well below the delivery timeout, so a slow leader is retried within it.
const produceRequestTimeout = 5 * time.Second

// ProducerOptions bound a producer. The zero value of a field means its default.
type ProducerOptions struct {
	// Linger is how long a partition waits for more records before it sends;
	// default 5 ms. Batching is what makes fsync and replication cheap.
	Linger time.Duration
	// MaxBufferedRecords and MaxBufferedBytes bound what was accepted and is
	// not yet acknowledged, in sum over all calls; default 200,000 and 128 MiB.
	MaxBufferedRecords int
	MaxBufferedBytes   int
	// DeliveryTimeout is how long the client tries to have a record
	// acknowledged, whatever its caller's deadline is; default 15 s.
	DeliveryTimeout time.Duration
}

func (o ProducerOptions) withDefaults() ProducerOptions {
	if o.Linger == 0 {
		o.Linger = DefaultLinger
	}
	if o.MaxBufferedRecords == 0 {
		o.MaxBufferedRecords = DefaultMaxBufferedRecords
	}
	if o.MaxBufferedBytes == 0 {
		o.MaxBufferedBytes = DefaultMaxBufferedBytes
	}
	if o.DeliveryTimeout == 0 {
		o.DeliveryTimeout = DefaultDeliveryTimeout
	}
	return o
}

// Validate reports every wrong field at once, each by its name.
func (o ProducerOptions) Validate() error {
	o = o.withDefaults()
	var errs []error
	if o.Linger < 0 || o.Linger > time.Second {
		errs = append(errs, fmt.Errorf("kafka.producer.linger: must be between 0 and 1s, is %v", o.Linger))
	}
	if o.MaxBufferedRecords < 1 {
		errs = append(errs, fmt.Errorf("kafka.producer.max_buffered_records: must be positive, is %d", o.MaxBufferedRecords))
	}
	if o.MaxBufferedBytes < 1 {
		errs = append(errs, fmt.Errorf("kafka.producer.max_buffered_bytes: must be positive, is %d", o.MaxBufferedBytes))
	}
	if o.DeliveryTimeout < time.Second {
		errs = append(errs, fmt.Errorf("kafka.producer.delivery_timeout: must be at least 1s, is %v", o.DeliveryTimeout))
	}
	return errors.Join(errs...)
}

// Result is what became of one record.
type Result struct {
	// Offset in its partition, or -1 when it is not known.
	Offset int64
	// Err is nil exactly if all in-sync replicas have the record.
	Err error
}

// Producer sends records with acks = all from an idempotent client. Safe for
// concurrent use: calls share the linger, so many small ones become few large
// requests.
type Producer struct {
	cl   *kgo.Client
	opts ProducerOptions

	room room

	pool sync.Pool // of *flight
}

// NewProducer checks the configuration; it connects on the first call.
func NewProducer(cfg Config, opts ProducerOptions) (*Producer, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	cl, err := cfg.client(
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.SnappyCompression(), kgo.NoCompression()),
		kgo.ProducerLinger(opts.Linger),
		kgo.RecordPartitioner(callerChooses{}),
		kgo.MaxBufferedRecords(opts.MaxBufferedRecords),
		kgo.ProduceRequestTimeout(produceRequestTimeout),
		// The delivery timeout is a context of each flight, and not
		// kgo.RecordDeliveryTimeout: that one counts from the record's timestamp,
		// which is the caller's, so that a record received a minute ago (every
		// re-publication after a crash) would time out before it is sent.
		//
		// Without this a record whose request was sent and never answered could
		// not be failed: the buffer would stay full for as long as the broker is
		// away. With it such a record may be in the log although it was reported
		// as ErrUnacked, and its retry is a duplicate, which hop 3 removes (and
		// which readers of entries skip by sequence number). Order within a
		// partition still holds: the client takes a new producer epoch first,
		// so a late request of the old one is fenced.
		kgo.AllowIdempotentProduceCancellation(),
	)
	if err != nil {
		return nil, err
	}
	p := &Producer{cl: cl, opts: opts, room: room{maxRecords: opts.MaxBufferedRecords, maxBytes: opts.MaxBufferedBytes}}
	p.pool.New = func() any { return newFlight(p) }
	return p, nil
}

// ProduceBatch sends recs and waits until each is acknowledged or has failed,
// or ctx ends. Records of one partition are appended in the order given.
//
// results must be nil or as long as recs; each gets its record's outcome. The
// returned error is the first record's, nil if all are acknowledged:
//
//   - [ErrFull]: no room now; nothing of the batch was sent.
//   - [ErrTooLarge]: the batch never fits the buffer (nothing was sent), or a
//     record never fits a request.
//   - [ErrRefused]: the broker never takes this record; do not retry it.
//   - [ErrUnacked]: time ran out. The record may still be written: after this
//     error the memory of Key, Value and Headers must not be changed or reused.
//     After any other outcome it may be.
//   - [ErrUnknownTopic], [ErrTopicChanged], [ErrUnknownPartition],
//     [ErrUnauthorized], [ErrClosed].
//
// ctx bounds only the waiting. It does not take records back, because dropping
// one would drop its neighbours of other callers with it.
func (p *Producer) ProduceBatch(ctx context.Context, recs []Record, results []Result) error {
	if results != nil && len(results) != len(recs) {
		return fmt.Errorf("kafka: %d results for %d records", len(results), len(recs))
	}
	if len(recs) == 0 {
		return nil
	}
	size := 0
	for i := range recs {
		size += recs[i].Size()
	}
	if err := p.room.reserve(len(recs), size); err != nil {
		fill(results, err)
		return err
	}
	f := p.pool.Get().(*flight)
	f.load(recs, size)
	var sending context.Context
	sending, f.cancel = context.WithTimeout(context.Background(), p.opts.DeliveryTimeout)
	for i := range f.recs {
		p.cl.TryProduce(sending, &f.recs[i], f.promise)
	}
	select {
	case <-f.done:
		err := f.outcome(results)
		p.recycle(f)
		return err
	case <-ctx.Done():
		// The flight is left to its promises and then to the garbage collector.
		err := fmt.Errorf("%w: %w", ErrUnacked, context.Cause(ctx))
		fill(results, err)
		return err
	}
}

// Produce is [Producer.ProduceBatch] for one record; it returns its offset.
func (p *Producer) Produce(ctx context.Context, rec Record) (int64, error) {
	var results [1]Result
	err := p.ProduceBatch(ctx, []Record{rec}, results[:])
	return results[0].Offset, err
}

// Buffered is how many records and bytes are accepted and not yet answered.
func (p *Producer) Buffered() (records, bytes int) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	return p.room.records, p.room.bytes
}

// Ping returns nil as soon as one broker answers.
func (p *Producer) Ping(ctx context.Context) error {
	if err := p.cl.Ping(ctx); err != nil {
		return fmt.Errorf("kafka: no broker answers: %w", translate(err))
	}
	return nil
}

// Close waits for the records in flight until ctx ends, then fails what is left
// with [ErrClosed] and ends the connections. It returns an error if any was left.
func (p *Producer) Close(ctx context.Context) error {
	err := p.cl.Flush(ctx)
	p.cl.Close()
	if err != nil {
		return fmt.Errorf("kafka: producer closed with records unacknowledged: %w", err)
	}
	return nil
}

// recycle keeps a flight of ordinary size for the next call.
func (p *Producer) recycle(f *flight) {
	if cap(f.recs) <= maxPooledRecords {
		f.unload()
		p.pool.Put(f)
	}
}

func fill(results []Result, err error) {
	for i := range results {
		results[i] = Result{Offset: -1, Err: err}
	}
}

// maxPooledRecords keeps one huge call from pinning its memory for ever.
const maxPooledRecords = 20_000

// flight is the state of one ProduceBatch call. The client owns recs from the
// first TryProduce until the last promise; so a flight whose caller gave up is
// never reused.
type flight struct {
	p       *Producer
	recs    []kgo.Record
	headers []kgo.RecordHeader
	promise func(*kgo.Record, error) // bound once, so a call allocates no closure
	cancel  context.CancelFunc       // of the delivery timeout
	pending atomic.Int64
	size    int
	done    chan struct{} // cap 1: the last promise never blocks

	mu     sync.Mutex // protects failed: promises and early failures may overlap
	failed []failure
}

type failure struct {
	rec *kgo.Record
	err error
}

func newFlight(p *Producer) *flight {
	f := &flight{p: p, done: make(chan struct{}, 1)}
	f.promise = f.answered
	return f
}

func (f *flight) load(recs []Record, size int) {
	f.size = size
	f.pending.Store(int64(len(recs)))
	for i := range recs {
		r := &recs[i]
		first := len(f.headers)
		for _, h := range r.Headers {
			f.headers = append(f.headers, kgo.RecordHeader(h))
		}
		f.recs = append(f.recs, kgo.Record{
			Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value,
			Timestamp: time.UnixMilli(r.TimestampMs),
			Headers:   f.headers[first:len(f.headers):len(f.headers)],
		})
	}
}

// unload drops the references to the callers' memory.
func (f *flight) unload() {
	clear(f.recs)
	clear(f.headers)
	clear(f.failed)
	f.recs, f.headers, f.failed = f.recs[:0], f.headers[:0], f.failed[:0]
}

// answered is the promise of every record of the flight. Whoever answers last
// gives the room back and wakes the caller.
func (f *flight) answered(r *kgo.Record, err error) {
	if err != nil {
		f.mu.Lock()
		f.failed = append(f.failed, failure{r, err})
		f.mu.Unlock()
	}
	if f.pending.Add(-1) > 0 {
		return
	}
	f.cancel()
	f.p.room.release(len(f.recs), f.size)
	f.done <- struct{}{}
}

// outcome copies the results out, after the last promise.
func (f *flight) outcome(results []Result) error {
	for i := range results {
		results[i] = Result{Offset: f.recs[i].Offset}
	}
	if len(f.failed) == 0 {
		return nil
	}
	index := make(map[*kgo.Record]int, len(f.recs))
	for i := range f.recs {
		index[&f.recs[i]] = i
	}
	first, firstErr := len(f.recs), error(nil)
	for _, x := range f.failed {
		i, err := index[x.rec], produceError(x.rec, x.err)
		if results != nil {
			results[i] = Result{Offset: -1, Err: err}
		}
		if i < first {
			first, firstErr = i, err
		}
	}
	return firstErr
}

// produceError names the partition, and is the one place where a produce
// failure is translated.
func produceError(r *kgo.Record, err error) error {
	if r.Context == noSuchPartition {
		return fmt.Errorf("%w: %d of topic %s", ErrUnknownPartition, r.Partition, r.Topic)
	}
	t := translate(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		// Not %w: the caller's own deadline did not end.
		t = fmt.Errorf("%w: within the delivery timeout", ErrUnacked)
	case !isSentinel(t):
		// Refused connections, missing replicas, a leader that moved: all say
		// only that there is no acknowledgement.
		t = fmt.Errorf("%w: %w", ErrUnacked, t)
	}
	return fmt.Errorf("topic %s partition %d: %w", r.Topic, r.Partition, t)
}

// room counts what is accepted and not yet answered. It is reserved for a whole
// batch before any of it is handed to the client, so that a batch is taken or
// refused as one.
type room struct {
	maxRecords, maxBytes int

	mu             sync.Mutex // protects the two counts
	records, bytes int
}

// reserve takes room for the whole batch or none.
func (r *room) reserve(n, size int) error {
	if n > r.maxRecords || size > r.maxBytes {
		return fmt.Errorf("%w: %d records of %d bytes in one call; the buffer holds %d of %d",
			ErrTooLarge, n, size, r.maxRecords, r.maxBytes)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.records+n > r.maxRecords || r.bytes+size > r.maxBytes {
		return ErrFull
	}
	r.records += n
	r.bytes += size
	return nil
}

func (r *room) release(n, size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records -= n
	r.bytes -= size
}

// callerChooses is a partitioner that obeys Record.Partition. It differs from
// kgo.ManualPartitioner only in marking a record whose partition does not exist,
// since the client has no sentinel error for that.
type callerChooses struct{}

// noSuchPartition is the mark; only its identity matters.
var noSuchPartition = context.WithValue(context.Background(), callerChooses{}, true)

// ForTopic implements kgo.Partitioner.
func (c callerChooses) ForTopic(string) kgo.TopicPartitioner { return c }

// RequiresConsistency makes the client number all partitions, also those that
// are without a leader just now.
func (callerChooses) RequiresConsistency(*kgo.Record) bool { return true }

// Partition returns the caller's choice.
func (callerChooses) Partition(r *kgo.Record, n int) int {
	if r.Partition < 0 || int(r.Partition) >= n {
		r.Context = noSuchPartition
	}
	return int(r.Partition)
}
