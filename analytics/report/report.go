// Package report is what reports are asked with and what they answer: values,
// the calendar and no I/O.
//
// It is a hand-over package: the analytics stage answers these requests, the
// API stage translates them. It promises that a request that passes Validate
// names only dimensions, windows and granularities that exist, that the buckets
// of a window are complete, in order and cut where the calendar of its time
// zone cuts, and that money is exact. It reads no clock: now is a parameter.
package report

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Limits of a request.
const (
	// MaxBuckets is the most buckets of a time series.
	MaxBuckets = 2000
	// MaxGroupBy is the most dimensions to group by.
	MaxGroupBy = 3
	// MaxTop is the most groups beside "other".
	MaxTop = 50
	// DefaultTop is how many groups are kept when the request does not say.
	DefaultTop = 10
	// MaxFilters is the most filters of a request.
	MaxFilters = 8
	// MaxFilterValues is the most values of a filter.
	MaxFilterValues = 100
	// MaxValueBytes is the longest value, tag key or zone name.
	MaxValueBytes = 256
)

// FieldError says which field of a request is wrong and how.
type FieldError struct {
	Field   string // as in the API, such as "window.name" or "filters[0].values"
	Message string // for the user
}

// Error is the field and the message.
func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

func fail(field, format string, args ...any) error {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// Filter keeps the entries whose dimension has one of the values. The value ""
// stands for entries that carry none.
type Filter struct {
	Dimension string
	Values    []string
}

// Query is what all reports have in common.
type Query struct {
	Tenant  tenant.ID
	Window  Window
	Filters []Filter
	// Exact asks for an answer over an exact range of the ledger even while
	// entries arrive, at the price of reading single entries where sums by hour
	// would do. Without it Coverage.Exact may be false.
	Exact bool
}

// SummaryRequest asks for the totals of a window.
type SummaryRequest struct{ Query }

// GroupsRequest asks for the totals of the groups of a window, greatest cost
// first, at most Top of them and one of all others.
type GroupsRequest struct {
	Query
	GroupBy []string // 1 to MaxGroupBy dimensions
	Top     int      // 0 is DefaultTop
	// Allocation is of untagged usage. Filters see usage as it is tagged, before.
	Allocation Allocation
}

// TimeSeriesRequest asks for costs and requests over time.
type TimeSeriesRequest struct {
	Query
	Granularity Granularity
	GroupBy     []string   // 0 to MaxGroupBy dimensions
	Top         int        // 0 is DefaultTop
	Allocation  Allocation // as of GroupsRequest, by DefaultOwner only
}

// Totals are sums over entries.
type Totals struct {
	Cost        money.Sum // of all priced entries, corrections included
	Requests    int64     // usage entries
	Failed      int64     // of these, with a status other than ok
	Unpriced    int64     // of these, without a price; their cost is in no sum
	Estimated   int64     // of these, with estimated token counts
	Corrections int64     // entries that correct others; they are no requests
	Tokens      tokens.Vector
	GPUMicros   int64 // time of GPUs, in microseconds of whole devices
}

// Add adds o to t. The error is money.ErrOverflow.
func (t *Totals) Add(o *Totals) error {
	if err := t.Cost.Add(o.Cost); err != nil {
		return err
	}
	t.Requests += o.Requests
	t.Failed += o.Failed
	t.Unpriced += o.Unpriced
	t.Estimated += o.Estimated
	t.Corrections += o.Corrections
	t.GPUMicros += o.GPUMicros
	for c := range t.Tokens {
		t.Tokens[c] += o.Tokens[c]
	}
	return nil
}

// Coverage says which part of the tenant's ledger an answer is computed from:
// the entries 1..ToSeq that occurred in [Start, End).
type Coverage struct {
	Start, End time.Time
	ToSeq      int64 // 0 when nothing has been stored yet; else the range begins at 1
	HeadHash   [32]byte
	// Exact is false when entries beyond ToSeq arrived while the report ran:
	// then it may contain some of them.
	Exact      bool
	FreshUntil time.Time // received_at of the newest entry covered, zero when there is none
}

// Summary answers a SummaryRequest.
type Summary struct {
	Totals   Totals
	Coverage Coverage
}

// Group is one group of an answer.
type Group struct {
	Values []string // one per dimension of the request's GroupBy; nil for Other
	Other  bool     // all groups beyond the request's Top
	Totals Totals   // with what is allocated to the group
	Split  *Split   // what Totals consist of; nil without an allocation
}

// Groups answers a GroupsRequest. The groups' totals sum up to Totals.
type Groups struct {
	Groups     []Group
	Totals     Totals
	Allocation *Allocated // nil unless asked for
	Coverage   Coverage
}

// Series is one group over time.
type Series struct {
	Group
	Cost     []money.Sum // one per bucket
	Requests []int64     // one per bucket
	// GPUMicros is time of GPUs in microseconds of whole devices, one per bucket.
	GPUMicros []int64
	// Allocated is how much of Cost is allocated; nil without an allocation.
	Allocated []money.Sum
}

// TimeSeries answers a TimeSeriesRequest. The series' totals sum up to Totals.
type TimeSeries struct {
	Buckets    []time.Time // starts of all buckets of the window, in order
	Series     []Series
	Totals     Totals
	Allocation *Allocated // nil unless asked for
	Coverage   Coverage
}

// Validate checks everything but the window, which [Window.Resolve] checks. The
// error is a *FieldError.
func (q *Query) Validate() error {
	if !tenant.ValidID(string(q.Tenant)) {
		return fail("tenant_id", "%s", tenant.ErrInvalidID.Error())
	}
	if len(q.Filters) > MaxFilters {
		return fail("filters", "at most %d", MaxFilters)
	}
	seen := map[string]bool{}
	for i, f := range q.Filters {
		field := fmt.Sprintf("filters[%d]", i)
		if _, err := ParseDimension(field+".dimension", f.Dimension); err != nil {
			return err
		}
		if seen[f.Dimension] {
			return fail(field+".dimension", "stands twice; give all values in one filter")
		}
		seen[f.Dimension] = true
		if len(f.Values) == 0 || len(f.Values) > MaxFilterValues {
			return fail(field+".values", "1 to %d values", MaxFilterValues)
		}
		for _, v := range f.Values {
			if err := checkText(field+".values", v); err != nil {
				return err
			}
		}
	}
	return nil
}

// Validate checks the request; see Query.Validate.
func (r *GroupsRequest) Validate() error {
	if err := r.Query.Validate(); err != nil {
		return err
	}
	if len(r.GroupBy) == 0 {
		return fail("group_by", "at least one dimension")
	}
	if err := checkGroups(r.GroupBy, r.Top); err != nil {
		return err
	}
	return checkAllocation(r.Allocation.Method, r.GroupBy)
}

// Validate checks the request; see Query.Validate.
func (r *TimeSeriesRequest) Validate() error {
	if err := r.Query.Validate(); err != nil {
		return err
	}
	if !r.Granularity.valid() {
		return fail("granularity", "one of %s", granularityNames)
	}
	if err := checkGroups(r.GroupBy, r.Top); err != nil {
		return err
	}
	// Of a series the proportions of each bucket would give other sums than those
	// of the window.
	if r.Allocation.Method == Proportional {
		return fail("allocate", "only %s in a time series; %s divides the groups of a whole window", DefaultOwner, Proportional)
	}
	return checkAllocation(r.Allocation.Method, r.GroupBy)
}

func checkGroups(groupBy []string, top int) error {
	if len(groupBy) > MaxGroupBy {
		return fail("group_by", "at most %d dimensions", MaxGroupBy)
	}
	seen := map[string]bool{}
	for i, g := range groupBy {
		field := fmt.Sprintf("group_by[%d]", i)
		if _, err := ParseDimension(field, g); err != nil {
			return err
		}
		if seen[g] {
			return fail(field, "stands twice")
		}
		seen[g] = true
	}
	if top < 0 || top > MaxTop {
		return fail("top", "1 to %d", MaxTop)
	}
	return nil
}

// checkText refuses what no event could carry either.
func checkText(field, s string) error {
	if len(s) > MaxValueBytes {
		return fail(field, "at most %d bytes", MaxValueBytes)
	}
	if !utf8.ValidString(s) {
		return fail(field, "not valid UTF-8")
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fail(field, "has a control character")
		}
	}
	return nil
}
