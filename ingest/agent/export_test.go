package agent

import (
	"time"

	"github.com/tallystick/tallystick/internal/agentauth"
)

// Walker does with encoded frames of samples what a session does before it hands
// them on.
type Walker struct {
	opts  Options
	frame frame
	value []byte
}

// NewWalker makes a Walker with the default options.
func NewWalker() *Walker { return &Walker{opts: Options{}.withDefaults()} }

// Walk checks every sample of an AgentFrame, and makes the record. It returns how
// many samples were good.
func (w *Walker) Walk(b []byte) int {
	now := time.Now()
	_, body, err := bodyOf(b)
	if err != nil || w.frame.read(body, w.opts.boundsAt(now)) != nil {
		return -1
	}
	w.value = w.frame.appendBatch(w.value[:0], admitted{epoch: 1}, "gw", now)
	return len(w.frame.good)
}

// Value is the record of the last Walk.
func (w *Walker) Value() []byte { return w.value }

// Reasons are why samples of the last Walk were refused.
func (w *Walker) Reasons() map[string]int64 { return w.frame.reasons }

// FieldInfo is a row of the tables, for a comparison with the proto.
type FieldInfo struct{ Name, Kind string }

// SampleFields is the table of GpuSample.
func SampleFields() map[int32]FieldInfo { return infos(sampleFields[:], int32Kinds) }

// WorkloadFields is the table of GpuWorkload.
func WorkloadFields() map[int32]FieldInfo { return infos(workloadFields[:], int32Kinds) }

// int32Kinds are the whole numbers that telemetry.proto writes as uint32.
var int32Kinds = map[string]bool{
	"gpu_instance_id": true, "compute_instance_id": true, "index": true, "gpus_on_host": true, "performance_state": true, "xid_error": true, "pid": true,
}

func infos(table []field, short map[string]bool) map[int32]FieldInfo {
	out := map[int32]FieldInfo{}
	for n, f := range table {
		kind := map[form]string{text: "string", purchase: "string", whole: "uint64", yesNo: "bool", real: "double", moment: "int64", workload: "message"}[f.form]
		if f.form == whole && short[f.name] {
			kind = "uint32"
		}
		if f.form != none {
			out[int32(n)] = FieldInfo{f.name, kind}
		}
	}
	return out
}

// TryHello has the gateway read a first frame, and reports whether it proves an
// agent.
func TryHello(g *Gateway, b []byte) bool {
	h, err := parseHello(b)
	if err != nil {
		return false
	}
	_, err = g.proveHello(g.newChallenge().Nonce, agentauth.Binding{}, h)
	return err == nil
}
