package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/api"
)

// laggingReports reach one more entry with each question, and at most the last.
type laggingReports struct{ reach, last int64 }

func (r *laggingReports) TimeSeries(context.Context, *report.TimeSeriesRequest) (*report.TimeSeries, error) {
	r.reach = min(r.reach+1, r.last)
	return &report.TimeSeries{Coverage: report.Coverage{ToSeq: r.reach}}, nil
}

// Reports lag behind a ledger that is written to: that is waited for, and is
// neither a difference nor, within bounds, a failure.
func TestCompareWaitsForReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &beside{reports: &laggingReports{last: 100}}
		got, err := b.report(t.Context(), "acme", 0, 1, 7)
		if err != nil || got.Coverage.ToSeq != 7 {
			t.Errorf("%+v, %v", got, err)
		}
		b.reports = &laggingReports{last: 6}
		began := time.Now()
		if _, err := b.report(t.Context(), "acme", 0, 1, 7); !errors.Is(err, api.ErrUnavailable) {
			t.Errorf("reports that stand still: %v", err)
		}
		if waited := time.Since(began); waited < reportsLag || waited > 2*reportsLag {
			t.Errorf("given up after %s", waited)
		}
	})
}
