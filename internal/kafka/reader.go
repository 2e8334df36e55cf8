package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Defaults of [ReaderOptions].
const (
	DefaultMaxRecords    = 10_000
	DefaultMaxFetchBytes = 4 << 20
)

// fetchMaxWait is how long a broker holds an empty fetch. A record that arrives
// is sent at once; the wait only bounds how often an idle reader asks again.
const fetchMaxWait = 2 * time.Second

// Position is where a partition is read from.
type Position struct {
	// Offset of the first record wanted: the next one after the last processed.
	Offset int64
	// Topic is the id of the topic that the offset was stored for; zero when
	// nothing was stored yet. Another id in the cluster is [ErrTopicChanged].
	Topic TopicID
}

// ReaderOptions bound a reader. The zero value of a field means its default.
type ReaderOptions struct {
	// MaxRecords of one Next; default 10,000.
	MaxRecords int
	// MaxFetchBytes of one fetch, compressed; default 4 MiB. One more fetch is
	// held ready while the caller works: that is the whole of the read-ahead,
	// and a caller that does not come back stops the fetching.
	MaxFetchBytes int
}

func (o ReaderOptions) withDefaults() ReaderOptions {
	if o.MaxRecords <= 0 {
		o.MaxRecords = DefaultMaxRecords
	}
	if o.MaxFetchBytes <= 0 {
		o.MaxFetchBytes = DefaultMaxFetchBytes
	}
	return o
}

// Reader reads one partition in offset order. It is for one goroutine.
//
// Each reader has its own client: a slow partition delays no other, a halted
// one halts alone, and backpressure is simply not calling Next.
type Reader struct {
	cl        *kgo.Client
	topic     string
	partition int32
	maxRecs   int
	info      TopicInfo
	start     int64 // log start and end when the reader was opened
	end       int64
	next      int64 // the offset that must come next
	err       error // the first error that halts; for ever
	missing   int   // answers in a row by which there is no such topic

	fetched []*kgo.Record
	out     []Record
	headers []Header
}

// OpenReader checks that the topic is the one the position belongs to and that
// the position is inside the log, and starts fetching there. A position equal
// to the log's end is inside: it waits for the next record.
//
// Errors: [ErrUnknownTopic], [ErrUnknownPartition], [ErrTopicChanged],
// [ErrOffsetOutOfRange]; anything else (see [Halts]) is transient.
func OpenReader(ctx context.Context, cfg Config, topic string, partition int32, at Position, opts ReaderOptions) (*Reader, error) {
	opts = opts.withDefaults()
	cl, err := cfg.client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(at.Offset)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.FetchMaxBytes(int32(opts.MaxFetchBytes)),
		kgo.FetchMaxPartitionBytes(int32(opts.MaxFetchBytes)),
		// Without this a reader whose topic is deleted before the client's first
		// metadata waits for ever: an unknown topic is a retryable error.
		kgo.KeepRetryableFetchErrors(),
		// Control records are kept so that offsets can be checked for holes.
		kgo.KeepControlRecords(),
		kgo.WithPools(&fetchPool{}),
	)
	if err != nil {
		return nil, err
	}
	r := &Reader{cl: cl, topic: topic, partition: partition, maxRecs: opts.MaxRecords, next: at.Offset}
	if err := r.check(ctx, at); err != nil {
		cl.Close()
		return nil, fmt.Errorf("topic %s partition %d offset %d: %w", topic, partition, at.Offset, err)
	}
	return r, nil
}

// check compares the position with the cluster.
func (r *Reader) check(ctx context.Context, at Position) error {
	adm := kadm.NewClient(r.cl)
	infos, err := describe(ctx, adm, r.topic)
	if err != nil {
		return err
	}
	info, ok := infos[r.topic]
	switch {
	case !ok:
		return ErrUnknownTopic
	case r.partition < 0 || r.partition >= info.Partitions:
		return fmt.Errorf("%w: the topic has %d", ErrUnknownPartition, info.Partitions)
	case !at.Topic.IsZero() && at.Topic != info.ID:
		return fmt.Errorf("%w: stored id %x, now %x", ErrTopicChanged, at.Topic, info.ID)
	}
	r.info = info
	if r.start, err = r.listed(adm.ListStartOffsets(ctx, r.topic)); err != nil {
		return err
	}
	if r.end, err = r.listed(adm.ListEndOffsets(ctx, r.topic)); err != nil {
		return err
	}
	if at.Offset < r.start || at.Offset > r.end {
		return fmt.Errorf("%w: the log holds [%d, %d)", ErrOffsetOutOfRange, r.start, r.end)
	}
	return nil
}

// listed picks this partition; another one being without a leader is no matter.
func (r *Reader) listed(all kadm.ListedOffsets, err error) (int64, error) {
	if err != nil && len(all) == 0 {
		return 0, fmt.Errorf("list offsets: %w", translate(err))
	}
	o, ok := all.Lookup(r.topic, r.partition)
	if !ok {
		return 0, fmt.Errorf("list offsets: the partition did not answer")
	}
	if o.Err != nil {
		return 0, fmt.Errorf("list offsets: %w", translate(o.Err))
	}
	return o.Offset, nil
}

// missingAnswers are at least a second apart from first to last.
const missingAnswers = 5

// Topic is the topic as it was when the reader was opened; store its ID with
// the offset.
func (r *Reader) Topic() TopicInfo { return r.info }

// Offset is the position of the next record that Next will return: what to
// store after everything returned so far is processed. Control records of
// Kafka itself may take offsets between two records.
func (r *Reader) Offset() int64 { return r.next }

// EndAtOpen is the log's end when the reader was opened.
func (r *Reader) EndAtOpen() int64 { return r.end }

// Next waits until there is at least one record, and returns up to MaxRecords
// of them in offset order. The slice and all memory behind Key, Value and
// Headers belong to the reader and are overwritten by the next call of Next or
// Close: copy what must live longer.
//
// While brokers are away it waits, until ctx ends (its error is returned as it
// is, and Next may be called again). An error for which [Halts] is true is
// final: it is returned again by every later call.
func (r *Reader) Next(ctx context.Context) ([]Record, error) { return r.read(ctx, math.MaxInt64) }

// read is Next that also returns, possibly with nothing, once it has seen every
// offset below until: the log may end in control records.
func (r *Reader) read(ctx context.Context, until int64) ([]Record, error) {
	r.release()
	if r.err != nil {
		return nil, r.err
	}
	for {
		fetches := r.cl.PollRecords(ctx, r.maxRecs)
		var firstErr error
		fetches.EachError(func(_ string, _ int32, err error) {
			if firstErr == nil {
				firstErr = err
			}
		})
		if err := r.collect(fetches); err != nil {
			r.err = err
			return nil, err
		}
		if len(r.out) > 0 || r.next >= until {
			// An error that came along is delivered again by the next poll, or
			// was transient.
			if firstErr != nil {
				r.err = r.halting(ctx, firstErr)
			}
			return r.out, nil
		}
		if firstErr == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if errors.Is(firstErr, kgo.ErrClientClosed) {
			return nil, ErrClosed
		}
		if r.err = r.halting(ctx, firstErr); r.err != nil {
			return nil, r.err
		}
		if !sleep(ctx, metadataMinAge) {
			return nil, ctx.Err()
		}
	}
}

// collect copies the records' headers (not their bytes) into out, checking that
// offsets follow each other.
func (r *Reader) collect(fetches kgo.Fetches) error {
	for iter := fetches.RecordIter(); !iter.Done(); {
		rec := iter.Next()
		r.fetched = append(r.fetched, rec)
		if rec.Offset != r.next {
			err := fmt.Errorf("topic %s partition %d: %w: offset %d follows %d", r.topic, r.partition, ErrDataLoss, rec.Offset, r.next-1)
			r.release()
			return err
		}
		r.next++
		if rec.Attrs.IsControl() {
			continue
		}
		first := len(r.headers)
		for _, h := range rec.Headers {
			r.headers = append(r.headers, Header(h))
		}
		r.out = append(r.out, Record{
			Topic: r.topic, Partition: r.partition, Offset: rec.Offset, TimestampMs: rec.Timestamp.UnixMilli(),
			Key: rec.Key, Value: rec.Value, Headers: r.headers[first:len(r.headers):len(r.headers)],
		})
	}
	return nil
}

// halting says whether a fetch error is final; nil means that it is transient
// and the client goes on by itself.
//
// "Unknown topic id" comes for a moment from brokers that have not heard of a
// topic yet, and for ever from a topic that is gone: the cluster's metadata
// decides, and tells a deleted topic from a recreated one. It must say that
// there is no such topic missingAnswers times, because the broker that answers
// may be one of those.
func (r *Reader) halting(ctx context.Context, err error) error {
	wrap := func(err error) error {
		return fmt.Errorf("topic %s partition %d offset %d: %w", r.topic, r.partition, r.next, err)
	}
	switch {
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID), errors.Is(err, kerr.UnknownTopicOrPartition):
		infos, derr := describe(ctx, kadm.NewClient(r.cl), r.topic)
		if derr != nil {
			return nil // ask again with the next error
		}
		info, ok := infos[r.topic]
		switch {
		case !ok:
			if r.missing++; r.missing < missingAnswers {
				return nil
			}
			return wrap(ErrUnknownTopic)
		case info.ID != r.info.ID:
			return wrap(fmt.Errorf("%w: opened as %x, now %x", ErrTopicChanged, r.info.ID, info.ID))
		}
		r.missing = 0
		return nil
	}
	if t := translate(err); Halts(t) {
		return wrap(t)
	}
	return nil
}

// release gives the previous batch's memory back to the pool.
func (r *Reader) release() {
	for i, rec := range r.fetched {
		rec.Recycle()
		r.fetched[i] = nil
	}
	clear(r.out)
	clear(r.headers)
	r.fetched, r.out, r.headers = r.fetched[:0], r.out[:0], r.headers[:0]
}

// Close ends the fetching. Records returned earlier are gone. It may be called
// twice, and while Next waits in another goroutine (which then gets [ErrClosed]).
func (r *Reader) Close() { r.cl.Close() }

// ReadRange reads the offsets [at.Offset, to) of one partition and passes them
// to fn in order, in slices that are valid until fn returns. It fails with
// [ErrOffsetOutOfRange] at once, rather than wait, when the log does not hold
// the whole range; an error of fn ends it.
func ReadRange(ctx context.Context, cfg Config, topic string, partition int32, at Position, to int64, fn func([]Record) error) error {
	if at.Offset >= to {
		return nil
	}
	r, err := OpenReader(ctx, cfg, topic, partition, at, ReaderOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	if to > r.end {
		return fmt.Errorf("topic %s partition %d range [%d, %d): %w: the log holds [%d, %d)",
			topic, partition, at.Offset, to, ErrOffsetOutOfRange, r.start, r.end)
	}
	for r.Offset() < to {
		recs, err := r.read(ctx, to)
		if err != nil {
			return err
		}
		for len(recs) > 0 && recs[len(recs)-1].Offset >= to {
			recs = recs[:len(recs)-1]
		}
		if len(recs) == 0 {
			continue
		}
		if err := fn(recs); err != nil {
			return err
		}
	}
	return nil
}
