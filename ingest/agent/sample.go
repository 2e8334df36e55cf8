package agent

import (
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tallystick/ingest/event"
)

// form is how a field of a sample is written, and what it may hold.
type form uint8

const (
	none     form = iota
	text          // at most max bytes of UTF-8 without control characters
	whole         // an unsigned integer of at most max
	yesNo         // a bool
	real          // a float64 between min and max
	moment        // microseconds since 1970, looked at apart
	workload      // a GpuWorkload
	purchase      // text that event.Purchase knows
)

// field is one field of a message: its name, form and range.
type field struct {
	name     string
	form     form
	min, max float64
}

// Ranges. They are wide: what a tool writes for "blank" lies outside of them
// (DCGM's blank values are near 2^47 and 2^63), so it can never be taken for a
// measurement, and a real value never lies outside.
const (
	maxUint32 = math.MaxUint32
	maxBytes  = 1 << 46 // 64 TiB of device memory
	maxCount  = math.MaxInt64
	maxWatts  = 100_000
	maxMHz    = 100_000
	minDegree = -100
	maxDegree = 1_000
	maxName   = 256
	maxWord   = 64
)

// sampleFields are the fields of GpuSample by number. A number that is not here
// is refused.
var sampleFields = [...]field{
	1:  {"gpu_uuid", text, 0, maxName},
	2:  {"mig_uuid", text, 0, maxName},
	3:  {"mig_profile", text, 0, maxWord},
	4:  {"gpu_instance_id", whole, 0, maxUint32},
	5:  {"compute_instance_id", whole, 0, maxUint32},
	6:  {"mig_enabled", yesNo, 0, 0},
	7:  {"host", text, 0, maxName},
	8:  {"index", whole, 0, maxUint32},
	9:  {"model", text, 0, maxName},
	10: {"vendor", text, 0, maxWord},
	11: {"source", text, 0, maxWord},
	12: {"start_us", moment, 0, 0},
	13: {"end_us", moment, 0, 0},
	14: {"cloud", text, 0, maxWord},
	15: {"region", text, 0, maxWord},
	16: {"instance_type", text, 0, maxWord},
	17: {"purchase_option", purchase, 0, maxWord},
	18: {"gpus_on_host", whole, 0, maxUint32},
	20: {"gpu_utilization_percent", real, 0, 100},
	21: {"memory_utilization_percent", real, 0, 100},
	22: {"encoder_utilization_percent", real, 0, 100},
	23: {"decoder_utilization_percent", real, 0, 100},
	24: {"sm_active_percent", real, 0, 100},
	25: {"sm_occupancy_percent", real, 0, 100},
	26: {"tensor_active_percent", real, 0, 100},
	27: {"dram_active_percent", real, 0, 100},
	30: {"memory_used_bytes", whole, 0, maxBytes},
	31: {"memory_free_bytes", whole, 0, maxBytes},
	32: {"memory_reserved_bytes", whole, 0, maxBytes},
	33: {"memory_total_bytes", whole, 0, maxBytes},
	34: {"power_watts", real, 0, maxWatts},
	35: {"power_limit_watts", real, 0, maxWatts},
	36: {"energy_millijoules", whole, 0, maxCount},
	37: {"temperature_celsius", real, minDegree, maxDegree},
	38: {"memory_temperature_celsius", real, minDegree, maxDegree},
	39: {"sm_clock_mhz", real, 0, maxMHz},
	40: {"memory_clock_mhz", real, 0, maxMHz},
	41: {"fan_percent", real, 0, 200}, // fans may turn faster than their nominal speed
	42: {"performance_state", whole, 0, 32},
	43: {"clock_event_reasons", whole, 0, math.MaxUint64},
	44: {"xid_error", whole, 0, maxUint32},
	45: {"ecc_uncorrected", whole, 0, maxCount},
	46: {"pcie_tx_bytes", whole, 0, maxCount},
	47: {"pcie_rx_bytes", whole, 0, maxCount},
	60: {"workloads", workload, 0, 0},
}

// workloadFields are those of GpuWorkload.
var workloadFields = [...]field{
	1:  {"pid", whole, 0, maxUint32},
	2:  {"process_name", text, 0, maxName},
	3:  {"kind", text, 0, maxWord},
	4:  {"memory_used_bytes", whole, 0, maxBytes},
	5:  {"sm_utilization_percent", real, 0, 100},
	6:  {"namespace", text, 0, maxName},
	7:  {"pod", text, 0, maxName},
	8:  {"container", text, 0, maxName},
	9:  {"job", text, 0, maxName},
	10: {"team", text, 0, maxName},
	11: {"service", text, 0, maxName},
	12: {"environment", text, 0, maxName},
	13: {"allocated", yesNo, 0, 0},
	14: {"allocated_share", real, 0, 1},
}

// Numbers of GpuSample that have rules of their own.
const (
	numGPU, numHost   = 1, 7
	numStart, numEnd  = 12, 13
	numWorkloads      = 60
	numAllocatedShare = 14
	ruleMalformed     = "malformed"
	ruleUnknown       = "unknown"
	ruleRequired      = "required"
	ruleRange         = "range"
	ruleText          = "text"
	ruleTooMany       = "too_many"
	ruleTime          = "time"
	rulePurchase      = "must be on_demand, spot or reserved"
)

// fault is what is wrong with a sample; the zero value is nothing.
type fault struct{ field, rule string }

func (f fault) bad() bool { return f.rule != "" }

// String is the fault as a refusal's reason.
func (f fault) String() string { return f.field + ": " + f.rule }

// bounds are the times that a sample may end at, in microseconds.
type bounds struct{ oldest, newest int64 }

func (o *Options) boundsAt(now time.Time) bounds {
	return bounds{now.Add(-o.MaxAge).UnixMicro(), now.Add(o.MaxFuture).UnixMicro()}
}

// checkSample looks at the bytes of a GpuSample. It does not allocate.
func checkSample(b []byte, when bounds) fault {
	var start, end int64
	var gpu, host bool
	workloads := 0
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fault{"sample", ruleMalformed}
		}
		b = b[n:]
		if num >= protowire.Number(len(sampleFields)) || sampleFields[num].form == none {
			return fault{"sample", ruleUnknown}
		}
		f := &sampleFields[num]
		n, v, bad := f.check(typ, b)
		if bad != "" {
			return fault{f.name, bad}
		}
		switch num {
		case numGPU:
			gpu = v > 0
		case numHost:
			host = v > 0
		case numStart:
			start = int64(v)
		case numEnd:
			end = int64(v)
		case numWorkloads:
			if workloads++; workloads > MaxWorkloads {
				return fault{f.name, ruleTooMany}
			}
		}
		b = b[n:]
	}
	switch {
	case !gpu:
		return fault{"gpu_uuid", ruleRequired}
	case !host:
		return fault{"host", ruleRequired}
	case end == 0:
		return fault{"end_us", ruleRequired}
	case end < when.oldest || end > when.newest:
		return fault{"end_us", ruleTime}
	case start < 0 || start > end || start != 0 && end-start > maxInterval.Microseconds():
		return fault{"start_us", ruleTime}
	}
	return fault{}
}

// check looks at one value of the field at the beginning of b. n is how many
// bytes it has, v its value or, of a text, its length.
func (f *field) check(typ protowire.Type, b []byte) (n int, v uint64, rule string) {
	switch f.form {
	case text, workload, purchase:
		if typ != protowire.BytesType {
			return 0, 0, ruleMalformed
		}
		content, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, 0, ruleMalformed
		}
		if f.form == workload {
			return n, 0, checkWorkload(content)
		}
		if float64(len(content)) > f.max {
			return 0, 0, ruleRange
		}
		if !plain(content) {
			return 0, 0, ruleText
		}
		if f.form == purchase && !isPurchase(content) {
			return 0, 0, rulePurchase
		}
		return n, uint64(len(content)), ""
	case real:
		bits, n := protowire.ConsumeFixed64(b)
		if typ != protowire.Fixed64Type || n < 0 {
			return 0, 0, ruleMalformed
		}
		if x := math.Float64frombits(bits); !(x >= f.min && x <= f.max) { // also what is no number
			return 0, 0, ruleRange
		}
		return n, bits, ""
	default:
		v, n := protowire.ConsumeVarint(b)
		if typ != protowire.VarintType || n < 0 {
			return 0, 0, ruleMalformed
		}
		if f.form == whole && float64(v) > f.max {
			return 0, 0, ruleRange
		}
		return n, v, ""
	}
}

// isPurchase reports a way of buying that GPU time can be priced by: what no price
// could be found for is refused where its agent hears of it.
func isPurchase(b []byte) bool {
	switch string(b) { // the usual words, without an allocation
	case "", event.OnDemand, event.Spot, event.Reserved:
		return true
	}
	_, ok := event.Purchase(string(b))
	return ok
}

// checkWorkload looks at the bytes of a GpuWorkload.
func checkWorkload(b []byte) (rule string) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ruleMalformed
		}
		b = b[n:]
		if num >= protowire.Number(len(workloadFields)) || workloadFields[num].form == none {
			return ruleUnknown
		}
		n, v, rule := workloadFields[num].check(typ, b)
		if rule != "" {
			return rule
		}
		if num == numAllocatedShare && math.Float64frombits(v) == 0 {
			return ruleRange
		}
		b = b[n:]
	}
	return ""
}

// plain reports UTF-8 without control characters.
func plain(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c == 0x7f {
			return false
		}
	}
	return utf8.Valid(b)
}
