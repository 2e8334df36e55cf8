package event

import (
	"slices"
	"strings"

	"github.com/tallystick/tallystick/internal/tokens"
)

// What the time of a GPU was. Every microsecond of a device is in exactly one of
// them: the sum over all four is the time that was accounted to its owners
// (allocation basis), GPUUsed alone is the usage basis, and GPUIdle with
// GPUUnallocated is what was paid for and not used.
const (
	GPUUsed        = "used"        // allocated, and kernels ran
	GPUIdle        = "idle"        // allocated, and none ran
	GPUUnknown     = "unknown"     // accounted, but nothing measured whether any ran
	GPUUnallocated = "unallocated" // nobody's
)

// How a device was bought.
const (
	OnDemand = "on_demand"
	Spot     = "spot"
	Reserved = "reserved"
)

// purchases are all of them.
var purchases = []string{OnDemand, Spot, Reserved}

// Purchase is the event's word for how a device was bought: in any case, and with
// the hyphen of clouds and Kubernetes ("on-demand"). Nothing is said by "". ok is
// false for any other word.
func Purchase(name string) (option string, ok bool) {
	option = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	return option, option == "" || slices.Contains(purchases, option)
}

// MaxGPUMicros is the longest time that one event may account for: 31 years of
// one whole device.
const MaxGPUMicros = 1_000_000_000_000_000

// IsGPU reports whether the event accounts for the time of a GPU and not for a
// call of a model. GPUMicros is then microseconds of whole devices: half a device
// for a second is 500,000. Provider and Model are cloud and instance type.
func (e *Event) IsGPU() bool { return e.GPUState != "" }

// validateGPU holds the fields of GPU time against each other: an event counts
// tokens or GPU time and never both, because it has one price.
func (e *Event) validateGPU() error {
	switch {
	case e.GPUState == "" && e.GPUMicros == 0 && e.PurchaseOption == "":
		return nil
	case e.GPUState == "":
		return fail("gpu_state", RuleRequired, "gpu_us or purchase_option without it")
	case e.Tokens != (tokens.Vector{}) || e.ContextTokens != 0:
		return fail("tokens", RuleRange, "none beside gpu_us")
	}
	return nil
}
