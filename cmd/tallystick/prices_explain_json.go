package main

import (
	"strconv"

	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// jsonExplanation is an explanation for programs; an amount that there is not is null.
type jsonExplanation struct {
	Tenant     string `json:"tenant_id"`
	Seq        int64  `json:"seq,string"`
	Kind       string `json:"kind"`
	EventID    string `json:"event_id"`
	Provider   string `json:"provider"`
	Model      string `json:"model"`
	OccurredAt string `json:"occurred_at"`
	ReceivedAt string `json:"received_at"`
	// Cost is the entry's: of a correction what it adds. NetCost is what the usage comes to.
	Cost     *string        `json:"cost_usd"`
	NetCost  *string        `json:"net_cost_usd"`
	Unpriced string         `json:"unpriced_reason"`
	Book     *jsonBook      `json:"price_book"`
	Row      string         `json:"price_row"`
	Source   string         `json:"source"`
	Tokens   []jsonClass    `json:"tokens"`
	GPU      *jsonGPUTime   `json:"gpu"`
	Corrects *jsonCorrected `json:"correction"`
	Claim    *jsonClaim     `json:"provider_cost"`
}

// jsonClass is what the tokens of one class cost.
type jsonClass struct {
	Class   string  `json:"class"`
	Tokens  int64   `json:"tokens,string"`
	Rate    *string `json:"usd_per_million_tokens"`
	Derived bool    `json:"derived"`
	Cost    string  `json:"cost_usd"`
}

// jsonGPUTime is what the time of a GPU costs.
type jsonGPUTime struct {
	Micros      int64  `json:"gpu_us,string"`
	State       string `json:"gpu_state"`
	Purchase    string `json:"purchase"`
	DerivedFrom string `json:"derived_from"`
	*jsonHour
}

// jsonCorrected is what a correction changes. Direct says that before is what the corrected
// entry says itself, with no correction between.
type jsonCorrected struct {
	Seq     int64             `json:"seq,string"`
	EventID string            `json:"event_id"`
	Reason  string            `json:"reason"`
	Before  *string           `json:"before_usd"`
	Direct  bool              `json:"before_is_original"`
	Tokens  map[string]string `json:"token_deltas"`
	Micros  int64             `json:"gpu_us_delta,string"`
}

// jsonClaim is what the provider says that the usage costs, and how much more that is than
// the ledger says.
type jsonClaim struct {
	Cost string  `json:"cost_usd"`
	Seq  int64   `json:"seq,string"`
	Over *string `json:"over_ledger_usd"`
}

func (x *explanation) forJSON() *jsonExplanation {
	e := x.entry
	j := &jsonExplanation{
		Tenant: e.Event.Tenant, Seq: e.Seq, Kind: e.Kind.String(), EventID: e.Event.ID, Provider: e.Event.Provider, Model: e.Event.Model,
		OccurredAt: nanoTime(e.Event.OccurredAt), ReceivedAt: nanoTime(e.Event.ReceivedAt),
		NetCost: amountForJSON(&x.net), Unpriced: e.UnpricedReason, Row: string(x.result.Row), Source: x.source, Tokens: []jsonClass{},
	}
	if e.Priced {
		cost := e.Cost.String()
		j.Cost = &cost
	}
	if x.book != nil {
		book := bookForJSON(x.book)
		j.Book = &book
	}
	for _, p := range x.parts {
		j.Tokens = append(j.Tokens, jsonClass{p.class.String(), p.tokens, rateForJSON(p.rate), p.derived, p.cost.String()})
	}
	if x.gpu != nil {
		j.GPU = &jsonGPUTime{e.Event.GPUMicros, e.Event.GPUState, x.gpu.Purchase.String(), e.Event.DerivedFrom, hourForJSON(x.gpu)}
	}
	j.Corrects, j.Claim = x.correctedForJSON(), x.claimForJSON()
	return j
}

func (x *explanation) correctedForJSON() *jsonCorrected {
	if x.before == nil {
		return nil
	}
	ev, d := &x.entry.Event, &x.entry.Corrected
	j := &jsonCorrected{d.Seq, ev.Corrects, ev.CorrectionReason, amountForJSON(x.before), x.direct, map[string]string{}, d.GPUMicros}
	for c, n := range d.Tokens {
		if n != 0 {
			j.Tokens[tokens.Class(c).String()] = strconv.FormatInt(n, 10)
		}
	}
	return j
}

func (x *explanation) claimForJSON() *jsonClaim {
	if x.provider == nil {
		return nil
	}
	j := &jsonClaim{Cost: x.provider.cost.String(), Seq: x.provider.seq}
	if x.net.Priced {
		over := x.provider.over.String()
		j.Over = &over
	}
	return j
}

// amountForJSON is what usage comes to, nil without a price.
func amountForJSON(n *chain.Net) *string {
	if !n.Priced {
		return nil
	}
	text := n.Cost.String()
	return &text
}
