package client

import (
	"context"
	"time"
)

// Window is a range of event time: two times, or a name such as "all" or "7d".
type Window struct {
	Start *time.Time `json:"start,omitempty"`
	End   *time.Time `json:"end,omitempty"`
	Name  string     `json:"name,omitempty"`
}

// Query is what a report is asked for.
type Query struct {
	TenantID    string   `json:"tenant_id"`
	Window      Window   `json:"window"`
	Granularity string   `json:"granularity,omitempty"`
	GroupBy     []string `json:"group_by,omitempty"`
	Top         int32    `json:"top,omitempty"`
}

// Totals are the sums of a report.
type Totals struct {
	CostUSD     string         `json:"cost_usd"`
	Requests    Int            `json:"requests"`
	Failed      Int            `json:"failed"`
	Unpriced    Int            `json:"unpriced"`
	Corrections Int            `json:"corrections"`
	Estimated   Int            `json:"estimated"`
	Tokens      map[string]Int `json:"tokens"`
	GPUMicros   Int            `json:"gpu_us"`
}

// Coverage is which part of the ledger an answer is computed from.
type Coverage struct {
	FromSeq    Int    `json:"from_seq"`
	ToSeq      Int    `json:"to_seq"`
	HeadHash   string `json:"head_hash"`
	Exact      bool   `json:"exact"`
	LagEntries Int    `json:"lag_entries"`
}

// Summary is the totals of a window.
type Summary struct {
	Totals   Totals   `json:"totals"`
	Coverage Coverage `json:"coverage"`
}

// TimeSeries is a window cut into buckets.
type TimeSeries struct {
	Buckets  []time.Time `json:"buckets"`
	Series   []Series    `json:"series"`
	Totals   Totals      `json:"totals"`
	Coverage Coverage    `json:"coverage"`
}

// Series is one group of a TimeSeries, with a value per bucket.
type Series struct {
	Group    []string `json:"group"`
	Other    bool     `json:"other"`
	CostUSD  []string `json:"cost_usd"`
	Requests []Int    `json:"requests"`
	// GPUMicros is empty where a server of before does not tell.
	GPUMicros []Int  `json:"gpu_us"`
	Totals    Totals `json:"totals"`
}

// Groups is a window by group.
type Groups struct {
	Groups   []Group  `json:"groups"`
	Totals   Totals   `json:"totals"`
	Coverage Coverage `json:"coverage"`
}

// Group is one group of Groups.
type Group struct {
	Group  []string `json:"group"`
	Other  bool     `json:"other"`
	Totals Totals   `json:"totals"`
}

// Summary asks for the totals of a window.
func (c *Client) Summary(ctx context.Context, q Query) (*Summary, error) {
	var s Summary
	return &s, c.post(ctx, "/v1/reports/summary:query", q, &s)
}

// TimeSeries asks for a window cut into buckets of q.Granularity.
func (c *Client) TimeSeries(ctx context.Context, q Query) (*TimeSeries, error) {
	var t TimeSeries
	return &t, c.post(ctx, "/v1/reports/timeseries:query", q, &t)
}

// Groups asks for a window by q.GroupBy.
func (c *Client) Groups(ctx context.Context, q Query) (*Groups, error) {
	var g Groups
	return &g, c.post(ctx, "/v1/reports/groups:query", q, &g)
}
