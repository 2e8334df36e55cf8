package main

import (
	"fmt"
	"math/big"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tallystick/internal/load"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tokens"
)

// smokeWant is what must come of a load: the oracle's sums, and each event.
type smokeWant struct {
	oracle.Expectation
	tenants []string
	sent    int64 // events with the injected ones, each counted once
	events  []wantedEvent
	byID    map[string]int32
}

// wantedEvent is what must stand in the ledger for one event id.
type wantedEvent struct {
	pico     int64
	hour     int64 // since 1970
	tenant   int32
	priced   bool
	accepted bool
	conflict bool // another body came under the id
	tokens   tokens.Vector
}

// expectSmoke runs the load without sending it.
func expectSmoke(o load.Options) (*smokeWant, error) {
	w := &smokeWant{tenants: load.TenantIDs(o.TenantPrefix, o.Tenants), byID: make(map[string]int32, o.Events)}
	sums, err := load.Events(o, w.add)
	if err != nil {
		return nil, fmt.Errorf("smoke: %w", err)
	}
	w.Expectation = *sums
	return w, nil
}

func (w *smokeWant) add(encoded []byte, out *oracle.Outcome) error {
	w.sent++
	if out.Kind == oracle.Refused {
		return nil
	}
	id, err := eventIDOf(encoded)
	if err != nil {
		return err
	}
	i, ok := w.byID[id]
	if !ok {
		i = int32(len(w.events))
		w.byID[id] = i
		w.events = append(w.events, wantedEvent{})
	}
	e := &w.events[i]
	switch out.Kind {
	case oracle.Accepted:
		e.accepted, e.tenant, e.priced, e.pico, e.hour, e.tokens = true, out.Tenant, out.Priced, out.CostPico, out.Hour, out.Tokens
	case oracle.Conflict:
		e.conflict, e.tenant = true, out.Tenant
	}
	return nil
}

// eventIDOf reads field 1 of an encoded event.
func eventIDOf(encoded []byte) (string, error) {
	num, typ, n := protowire.ConsumeTag(encoded)
	if n < 0 || num != 1 || typ != protowire.BytesType {
		return "", fmt.Errorf("smoke: the load's event does not begin with its id")
	}
	id, n := protowire.ConsumeString(encoded[n:])
	if n < 0 {
		return "", fmt.Errorf("smoke: the load's event has no id")
	}
	return id, nil
}

// picoScale is how many decimal places money has.
const picoScale = 12

// parseUSD reads a decimal number of USD as 1e-12 USD, exactly.
func parseUSD(text string) (*big.Int, error) {
	whole, rest, _ := strings.Cut(text, ".")
	digits := strings.TrimPrefix(whole, "-") + rest
	if len(rest) > picoScale || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return nil, fmt.Errorf("smoke: %q is no amount", text)
	}
	pico, _ := new(big.Int).SetString(digits+strings.Repeat("0", picoScale-len(rest)), 10)
	if strings.HasPrefix(whole, "-") {
		pico.Neg(pico)
	}
	return pico, nil
}

// usdText is an amount in 1e-12 USD as a decimal number of USD.
func usdText(pico *big.Int) string {
	sign := ""
	if pico.Sign() < 0 {
		sign = "-"
	}
	digits := new(big.Int).Abs(pico).String()
	if pad := picoScale + 1 - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	cut := len(digits) - picoScale
	return sign + digits[:cut] + "." + digits[cut:]
}
