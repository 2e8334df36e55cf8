package agent

import (
	"context"
	"errors"

	"golang.org/x/sync/semaphore"

	"github.com/tallystick/tallystick/internal/kafka"
)

// maxBatchFrames bounds the frames of all streams that go to Kafka in one call.
const maxBatchFrames = 512

// item is a frame on its way to Kafka.
type item struct {
	rec    kafka.Record
	size   int64 // reserved in the batcher
	value  *[]byte
	settle func(it *item, err error)
	seq    int64
	turn   int // of a session: the frame may come twice, and then only the later one counts
}

// batcher carries frames of all streams to Kafka, many at a time: while some
// calls wait for their acknowledgement, what comes in gathers for the next.
type batcher struct {
	log   Log
	opts  Options
	in    chan *item
	bytes *semaphore.Weighted
}

func newBatcher(log Log, opts Options) *batcher {
	return &batcher{log: log, opts: opts, in: make(chan *item, maxBatchFrames), bytes: semaphore.NewWeighted(opts.MaxInFlightBytes)}
}

// submit hands a frame over, and waits for room. Every item that is taken is
// settled once.
func (b *batcher) submit(ctx context.Context, it *item) error {
	it.size = int64(len(it.rec.Value))
	if err := b.bytes.Acquire(ctx, it.size); err != nil {
		return err
	}
	select {
	case b.in <- it:
		return nil
	case <-ctx.Done():
		b.bytes.Release(it.size)
		return ctx.Err()
	}
}

// run carries until ctx ends and nothing waits any more. Streams have ended by
// then, so nobody submits.
func (b *batcher) run(ctx context.Context) {
	items := make([]*item, 0, maxBatchFrames)
	recs := make([]kafka.Record, 0, maxBatchFrames)
	results := make([]kafka.Result, maxBatchFrames)
	for {
		items = items[:0]
		select {
		case it := <-b.in:
			items = append(items, it)
		case <-ctx.Done():
			select {
			case it := <-b.in:
				items = append(items, it)
			default:
				return
			}
		}
		items = b.gather(items)
		recs = recs[:0]
		for _, it := range items {
			recs = append(recs, it.rec)
		}
		b.produce(items, recs, results[:len(items)])
		clear(items)
		clear(recs)
	}
}

// gather adds what waits, and waits for nothing.
func (b *batcher) gather(items []*item) []*item {
	for len(items) < maxBatchFrames {
		select {
		case it := <-b.in:
			items = append(items, it)
		default:
			return items
		}
	}
	return items
}

func (b *batcher) produce(items []*item, recs []kafka.Record, results []kafka.Result) {
	clear(results)
	ctx, cancel := context.WithTimeout(context.Background(), b.opts.Deadline)
	defer cancel()
	_ = b.log.ProduceBatch(ctx, recs, results) // the first of the results' errors
	for i, it := range items {
		b.bytes.Release(it.size)
		it.settle(it, results[i].Err)
	}
}

// final reports an error that sending the same again cannot mend.
func final(err error) bool {
	return errors.Is(err, kafka.ErrTooLarge) || errors.Is(err, kafka.ErrRefused)
}
