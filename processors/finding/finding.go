// Package finding is what processors hand over: rollups now, and the anomalies,
// recommendations and gaps that later processors find.
//
// Values of this package are pure data. Each is a function of a range of the
// ledger and of the processor's version, so computing it again gives the same.
package finding

import (
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Rollup is what some entries of one tenant add to one hour of one dimension
// value. Rollups are additive: the sum of all rollups of an hour is the hour.
type Rollup struct {
	Tenant    string
	Hour      int64 // unix seconds of the hour's start, by occurred_at in UTC
	Dimension string
	Value     string // "" is what carries no value: untagged is explicit

	Requests    int64 // usage entries
	Failed      int64 // of these, with a status other than ok
	Corrections int64 // entries that net others, in the hour of those
	// What follows is net of corrections, so that a rollup may take away more
	// than it adds.
	Unpriced  int64
	Estimated int64
	Cost      money.Sum // of priced entries
	Tokens    tokens.Vector
	GPUMicros int64 // time of GPUs, in microseconds of whole devices
}
