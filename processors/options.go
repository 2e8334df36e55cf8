package processors

import (
	"fmt"
	"time"
)

// Defaults of Options.
const (
	DefaultFlushInterval    = 400 * time.Millisecond
	DefaultFlushRows        = 50_000
	DefaultMaxPlanRows      = 100_000
	DefaultMaxPlanFrames    = 4_000
	DefaultMaxPendingBytes  = 48 << 20
	DefaultSnapshotInterval = time.Minute
	DefaultGapWait          = 2 * time.Second
)

// MaxPlanRowsLimit bounds Options.MaxPlanRows: one block of ClickHouse.
const MaxPlanRowsLimit = 1_000_000

// Options of a Runner. The zero value of a field means its default.
type Options struct {
	// FlushInterval is how often what is complete is stored; it bounds how old
	// a report is. Sooner when FlushRows entries wait, and twice as long while a
	// quarter of that comes in the time.
	FlushInterval time.Duration
	FlushRows     int
	// MaxPlanRows and MaxPlanFrames bound one plan, but for a single commit that
	// is larger. A frame holds entries of one tenant, so the latter bounds the
	// tenants of a transaction.
	MaxPlanRows   int
	MaxPlanFrames int
	// MaxPendingBytes bounds the entries in memory, over all partitions: at the
	// bound no partition begins another commit.
	MaxPendingBytes int64
	// SnapshotInterval is how often a partition's state is kept.
	SnapshotInterval time.Duration
	// GapWait is how long what the ledger has committed may be missing from
	// `entries` before it is read from the ledger itself.
	GapWait time.Duration
	// RetryMin and RetryMax bound the backoff after a transient failure;
	// defaults 50 ms and 5 s.
	RetryMin, RetryMax time.Duration
}

// Validate reports a field that is out of range, by its name.
func (o Options) Validate() error {
	if o.MaxPlanRows < 0 || o.MaxPlanRows > MaxPlanRowsLimit {
		return fmt.Errorf("processors.max_plan_rows: must be 1 to %d, is %d", MaxPlanRowsLimit, o.MaxPlanRows)
	}
	return nil
}

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.FlushRows, DefaultFlushRows)
	def(&o.MaxPlanRows, DefaultMaxPlanRows)
	def(&o.MaxPlanFrames, DefaultMaxPlanFrames)
	if o.MaxPendingBytes <= 0 {
		o.MaxPendingBytes = DefaultMaxPendingBytes
	}
	defDuration := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	defDuration(&o.FlushInterval, DefaultFlushInterval)
	defDuration(&o.SnapshotInterval, DefaultSnapshotInterval)
	defDuration(&o.GapWait, DefaultGapWait)
	defDuration(&o.RetryMin, 50*time.Millisecond)
	defDuration(&o.RetryMax, 5*time.Second)
	return o
}
