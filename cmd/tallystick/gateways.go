package main

import (
	"cmp"
	"fmt"

	"github.com/tallystick/tallystick/ingest/otlp"
	"github.com/tallystick/tallystick/internal/config"
)

// openGateways learns which calls have an event without OTLP: those through our own
// proxy, where it listens or, in another process of this machine, is configured to,
// and those through the gateways that the operator names.
func (a *app) openGateways() (err error) {
	a.gateways, err = otlp.NewGateways(a.cfg.OTLP.BilledElsewhere, cmp.Or(a.metering.addr, a.cfg.Proxy.Listen))
	if err != nil {
		return fmt.Errorf("%w: otlp.billed_elsewhere: %w", config.ErrInvalid, err)
	}
	a.gateways.Metered = a.metering.calls
	return nil
}
