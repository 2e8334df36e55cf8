package agent

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Field numbers of the messages that are walked by hand: a test compares them
// with telemetry.proto.
const (
	frameHello, frameSamples, frameHeartbeat, frameInventory = 1, 2, 3, 4

	samplesEpoch, samplesSeq, samplesSample = 1, 2, 10

	batchTenant, batchAgent, batchEpoch, batchSeq = 1, 2, 3, 4
	batchReceived, batchGateway, batchCount       = 5, 6, 7
	batchSample                                   = 10

	timestampSeconds, timestampNanos = 1, 2
)

// errMalformed: the bytes are no message of the protocol. The stream ends.
var errMalformed = errors.New("agent: malformed frame")

// bodyOf says which body an AgentFrame has, and its bytes.
func bodyOf(b []byte) (num protowire.Number, body []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || typ != protowire.BytesType || num > frameInventory {
		return 0, nil, errMalformed
	}
	body, m := protowire.ConsumeBytes(b[n:])
	if m < 0 || n+m != len(b) { // one body, and nothing that we do not know
		return 0, nil, errMalformed
	}
	return num, body, nil
}

// frame is a SampleFrame that was walked. Its samples lie in the bytes that it
// was read from.
type frame struct {
	epoch, seq int64
	good       [][]byte // samples with their tag and length
	goodBytes  int
	refused    int // samples
	first      fault
	firstIndex int
	reasons    map[string]int64 // refused samples by fault; nil when there are none
}

// read walks a SampleFrame. What one sample has wrong stops no other.
func (f *frame) read(b []byte, when bounds) error {
	*f = frame{good: f.good[:0]}
	total := 0
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		switch {
		case num == samplesSample && typ == protowire.BytesType:
			content, m := protowire.ConsumeBytes(b[n:])
			if m < 0 {
				return errMalformed
			}
			if total++; total <= MaxSamples {
				f.add(b[:n+m], content, total-1, when)
			}
			b = b[n+m:]
		case (num == samplesEpoch || num == samplesSeq) && typ == protowire.VarintType:
			v, m := protowire.ConsumeVarint(b[n:])
			if m < 0 {
				return errMalformed
			}
			if num == samplesEpoch {
				f.epoch = int64(v)
			} else {
				f.seq = int64(v)
			}
			b = b[n+m:]
		default:
			return errMalformed
		}
	}
	if total > MaxSamples {
		bad := fault{"samples", ruleTooMany}
		*f = frame{epoch: f.epoch, seq: f.seq, good: f.good[:0], refused: total, first: bad, reasons: map[string]int64{bad.String(): int64(total)}}
	}
	return nil
}

func (f *frame) add(whole, content []byte, index int, when bounds) {
	bad := checkSample(content, when)
	if !bad.bad() {
		f.good = append(f.good, whole)
		f.goodBytes += len(whole)
		return
	}
	if f.refused == 0 {
		f.first, f.firstIndex, f.reasons = bad, index, map[string]int64{}
	}
	f.refused++
	f.reasons[bad.String()]++
}

// refusal tells of the samples that are refused for ever; nil when there are none.
func (f *frame) refusal() *pb.Refusal {
	if f.refused == 0 {
		return nil
	}
	return &pb.Refusal{
		ProducerEpoch: f.epoch, Seq: f.seq, Code: codeInvalid, RefusedSamples: int32(f.refused),
		Reason: fmt.Sprintf("samples[%d].%s", f.firstIndex, f.first),
	}
}

// samples is how many samples the frame had.
func (f *frame) samples() int { return len(f.good) + f.refused }

// appendBatch appends the GpuSampleBatch of a frame's good samples: who sent it
// is who proved it.
func (f *frame) appendBatch(b []byte, who admitted, gateway string, now time.Time) []byte {
	return f.appendBatchOf(b, who.Tenant, who.Agent, gateway, now)
}

func (f *frame) appendBatchOf(b []byte, id tenant.ID, agent, gateway string, now time.Time) []byte {
	b = appendText(b, batchTenant, string(id))
	b = appendText(b, batchAgent, agent)
	b = appendVarint(b, batchEpoch, uint64(f.epoch))
	b = appendVarint(b, batchSeq, uint64(f.seq))
	b = protowire.AppendTag(b, batchReceived, protowire.BytesType)
	seconds, nanos := uint64(now.Unix()), uint64(now.Nanosecond())
	size := protowire.SizeTag(timestampSeconds) + protowire.SizeVarint(seconds)
	if nanos != 0 {
		size += protowire.SizeTag(timestampNanos) + protowire.SizeVarint(nanos)
	}
	b = protowire.AppendVarint(b, uint64(size))
	b = appendVarint(b, timestampSeconds, seconds)
	if nanos != 0 {
		b = appendVarint(b, timestampNanos, nanos)
	}
	b = appendText(b, batchGateway, gateway)
	b = appendVarint(b, batchCount, uint64(len(f.good)))
	for _, s := range f.good { // with the tag of SampleFrame, which is that of the batch
		b = append(b, s...)
	}
	return b
}

func appendText(b []byte, num protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, num, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}
