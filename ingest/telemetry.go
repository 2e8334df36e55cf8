package ingest

import (
	"errors"
	"net/http"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tenant"
)

// TelemetryTenant is the tenant whose measurements, which are no events, a caller
// sends: the one that it named or the only one that it may send for. The error is a
// *event.FieldError, by the rules that events have, or ErrUnavailable.
func (e *Edge) TelemetryTenant(rcv Received) (tenant.ID, error) {
	if rcv.Tenant == "" {
		return "", &event.FieldError{Field: "tenant_id", Rule: event.RuleRequired}
	}
	t, err := e.tenants.get(rcv.Tenant)
	switch {
	case err == nil && e.sealEpoch(t, e.opts.Now().UnixNano()) != 0:
		return t.id, nil
	case err == nil || errors.Is(err, errUnknownTenant):
		return "", &event.FieldError{Field: "tenant_id", Rule: event.RuleTenant, Detail: "no tenant that the caller may write for"}
	default:
		return "", errors.Join(ErrUnavailable, err)
	}
}

// RuleBilledElsewhere is the rule in the counters of what was not billed because the
// call gets into the log by another way, such as the metering proxy.
const RuleBilledElsewhere = "billed_elsewhere"

// RefuseTelemetry counts measurements, or reports of calls, that became no events, like
// events that were refused. rule must be the name of one, never what a caller sent.
func (e *Edge) RefuseTelemetry(rcv Received, producer, rule string, n int) {
	e.refused.Add(int64(n))
	e.counts.refuse(e.countsFor(caller{principal: rcv.Principal, tenant: rcv.Tenant}), producer, rule, int64(n))
}

// Delayed is the error of a request that is over a limit of the caller's, and of
// which nothing was taken.
func Delayed(after time.Duration) error {
	p := newProblem(http.StatusTooManyRequests, reasonBusy, "over the tenant's rate")
	p.retryAfter = after
	return &RequestError{p}
}
