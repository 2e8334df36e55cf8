package analytics

import (
	"github.com/ClickHouse/ch-go/proto"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/processors/finding"
)

const secondsPerHour = 3600

// rollupBlock holds the rows of one block of table rollup_hour.
type rollupBlock struct {
	tenant, dimension             *lowColumn
	hour                          proto.ColInt32
	value                         proto.ColStr
	requests, failed, corrections proto.ColUInt64
	unpriced, estimated           proto.ColInt64
	cost                          proto.ColDecimal128
	tokens                        [tokens.NumClasses]proto.ColInt64
	gpuMicros                     proto.ColInt64

	block clickhouse.Block
}

func newRollupBlock() *rollupBlock {
	b := &rollupBlock{tenant: newLowColumn(), dimension: newLowColumn()}
	b.block = clickhouse.Block{
		{Name: "tenant_id", Data: b.tenant}, {Name: "dimension", Data: b.dimension}, {Name: "hour", Data: &b.hour},
		{Name: "value", Data: &b.value}, {Name: "sum_requests", Data: &b.requests}, {Name: "sum_failed", Data: &b.failed},
		{Name: "sum_unpriced", Data: &b.unpriced}, {Name: "sum_estimated", Data: &b.estimated},
		{Name: "sum_corrections", Data: &b.corrections}, {Name: "sum_cost", Data: typed(&b.cost, decimalType)},
	}
	for c := range tokens.NumClasses {
		b.block = append(b.block, proto.InputColumn{Name: "sum_" + c.String(), Data: &b.tokens[c]})
	}
	b.block = append(b.block, proto.InputColumn{Name: "sum_gpu_us", Data: &b.gpuMicros})
	return b
}

func (b *rollupBlock) reset() { b.block.Reset() }

func (b *rollupBlock) rows() int { return b.tenant.Rows() }

func (b *rollupBlock) append(r *finding.Rollup) {
	b.tenant.Append(r.Tenant)
	b.dimension.Append(r.Dimension)
	b.hour = append(b.hour, int32(r.Hour/secondsPerHour))
	b.value.Append(r.Value)
	b.requests = append(b.requests, uint64(r.Requests))
	b.failed = append(b.failed, uint64(r.Failed))
	b.unpriced = append(b.unpriced, r.Unpriced)
	b.estimated = append(b.estimated, r.Estimated)
	b.corrections = append(b.corrections, uint64(r.Corrections))
	b.cost = append(b.cost, decimalOf(r.Cost))
	for c := range b.tokens {
		b.tokens[c] = append(b.tokens[c], r.Tokens[c])
	}
	b.gpuMicros = append(b.gpuMicros, r.GPUMicros)
}
