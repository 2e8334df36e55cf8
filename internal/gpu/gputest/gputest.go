// Package gputest gives tests what a DCGM exporter would say of a snapshot: as its
// own text, and as the metrics that an OpenTelemetry Collector makes of that when it
// scrapes. Only tests import it.
package gputest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"

	"github.com/tallystick/tallystick/internal/gpu"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Row is one line of the exporter.
type Row struct {
	Metric string
	Labels map[string]string
	Value  float64
}

// What DCGM writes where a device has no such figure: integers and floats of the
// kinds blank, not found and not supported.
var blanks = [...]float64{0x7ffffff0, 0x7ffffffffffffff0, 140737488355328, 140737488355330, 0x7ffffff2}

// figures are the exporter's metrics by what a sample has of them.
var figures = []struct {
	metric string
	value  func(*pb.GpuSample) *float64
}{
	{"DCGM_FI_DEV_GPU_UTIL", func(s *pb.GpuSample) *float64 { return s.GpuUtilizationPercent }},
	{"DCGM_FI_DEV_MEM_COPY_UTIL", func(s *pb.GpuSample) *float64 { return s.MemoryUtilizationPercent }},
	{"DCGM_FI_DEV_ENC_UTIL", func(s *pb.GpuSample) *float64 { return s.EncoderUtilizationPercent }},
	{"DCGM_FI_DEV_DEC_UTIL", func(s *pb.GpuSample) *float64 { return s.DecoderUtilizationPercent }},
	{"DCGM_FI_DEV_FB_USED", func(s *pb.GpuSample) *float64 { return scaled(s.MemoryUsedBytes, 1<<20) }},
	{"DCGM_FI_DEV_FB_FREE", func(s *pb.GpuSample) *float64 { return scaled(s.MemoryFreeBytes, 1<<20) }},
	{"DCGM_FI_DEV_FB_RESERVED", func(s *pb.GpuSample) *float64 { return scaled(s.MemoryReservedBytes, 1<<20) }},
	{"DCGM_FI_DEV_FB_TOTAL", func(s *pb.GpuSample) *float64 { return scaled(s.MemoryTotalBytes, 1<<20) }},
	{"DCGM_FI_DEV_POWER_USAGE", func(s *pb.GpuSample) *float64 { return s.PowerWatts }},
	{"DCGM_FI_DEV_POWER_MGMT_LIMIT", func(s *pb.GpuSample) *float64 { return s.PowerLimitWatts }},
	{"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", func(s *pb.GpuSample) *float64 { return scaled(s.EnergyMillijoules, 1) }},
	{"DCGM_FI_DEV_GPU_TEMP", func(s *pb.GpuSample) *float64 { return s.TemperatureCelsius }},
	{"DCGM_FI_DEV_MEMORY_TEMP", func(s *pb.GpuSample) *float64 { return s.MemoryTemperatureCelsius }},
	{"DCGM_FI_DEV_SM_CLOCK", func(s *pb.GpuSample) *float64 { return s.SmClockMhz }},
	{"DCGM_FI_DEV_MEM_CLOCK", func(s *pb.GpuSample) *float64 { return s.MemoryClockMhz }},
	{"DCGM_FI_DEV_FAN_SPEED", func(s *pb.GpuSample) *float64 { return s.FanPercent }},
	{"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", func(s *pb.GpuSample) *float64 { return scaled(s.EccUncorrected, 1) }},
	{"DCGM_FI_DEV_MIG_MODE", func(s *pb.GpuSample) *float64 {
		if s.MigEnabled == nil {
			return nil
		}
		if *s.MigEnabled {
			return new(1.0)
		}
		return new(0.0)
	}},
	{"DCGM_FI_DEV_PCIE_REPLAY_COUNTER", func(*pb.GpuSample) *float64 { return new(7.0) }},
}

func scaled(v *uint64, unit float64) *float64 {
	if v == nil {
		return nil
	}
	return new(float64(*v) / unit)
}

// Rows are what the exporter says of a snapshot on a host. Devices whose uuid the
// recording hides get one that is made of name. pods have each device and each
// instance together; what a device does not measure is blank.
func Rows(s *gpu.Snapshot, name, host string, pods ...string) (rows []Row) {
	for i, m := range s.Samples {
		labels := map[string]string{
			"gpu": strconv.FormatUint(uint64(m.GetIndex()), 10), "UUID": fmt.Sprintf("GPU-%s-%d", name, m.GetIndex()),
			"device": fmt.Sprintf("nvidia%d", m.GetIndex()), "modelName": m.GetModel(), "Hostname": host,
		}
		if m.GetMigUuid() != "" {
			labels["GPU_I_ID"], labels["GPU_I_PROFILE"] = strconv.Itoa(i), m.GetMigProfile()
		}
		for n, f := range figures {
			v := f.value(m)
			if v == nil {
				v = &blanks[(i+n)%len(blanks)]
			}
			if len(pods) == 0 {
				rows = append(rows, Row{f.metric, labels, *v})
			}
			for _, pod := range pods {
				of := maps.Clone(labels)
				of["namespace"], of["pod"], of["container"] = "ml", pod, "main"
				rows = append(rows, Row{f.metric, of, *v})
			}
		}
	}
	return rows
}

// Text is the exporter's text.
func Text(rows []Row) []byte {
	var b strings.Builder
	for _, r := range rows {
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
			labels = append(labels, fmt.Sprintf("%s=%q", k, r.Labels[k]))
		}
		fmt.Fprintf(&b, "%s{%s} %s\n", r.Metric, strings.Join(labels, ","), strconv.FormatFloat(r.Value, 'g', -1, 64))
	}
	return []byte(b.String())
}

// Metrics is what a Collector exports that scraped the exporter at a time: gauges,
// and of counters cumulative sums, with its own attributes on the resource.
func Metrics(rows []Row, at time.Time, resource map[string]string) *collector.ExportMetricsServiceRequest {
	byName := map[string]*metricspb.Metric{}
	sm := &metricspb.ScopeMetrics{Scope: &commonpb.InstrumentationScope{Name: "github.com/open-telemetry/opentelemetry-collector-contrib/receiver/prometheusreceiver"}}
	for _, r := range rows {
		m := byName[r.Metric]
		if m == nil {
			m = &metricspb.Metric{Name: r.Metric, Data: &metricspb.Metric_Gauge{Gauge: &metricspb.Gauge{}}}
			if strings.Contains(r.Metric, "TOTAL_ENERGY") || strings.Contains(r.Metric, "COUNTER") {
				m.Data = &metricspb.Metric_Sum{Sum: &metricspb.Sum{
					IsMonotonic: true, AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
				}}
			}
			byName[r.Metric] = m
			sm.Metrics = append(sm.Metrics, m)
		}
		p := &metricspb.NumberDataPoint{
			TimeUnixNano: uint64(at.UnixNano()), Attributes: Attributes(r.Labels), Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: r.Value},
		}
		if sum := m.GetSum(); sum != nil {
			p.StartTimeUnixNano = uint64(at.Add(-time.Hour).UnixNano())
			sum.DataPoints = append(sum.DataPoints, p)
		} else {
			m.GetGauge().DataPoints = append(m.GetGauge().DataPoints, p)
		}
	}
	return &collector.ExportMetricsServiceRequest{ResourceMetrics: []*metricspb.ResourceMetrics{{
		Resource: &resourcepb.Resource{Attributes: Attributes(resource)}, ScopeMetrics: []*metricspb.ScopeMetrics{sm},
	}}}
}

// Attributes are pairs as OTLP has them, in order of their keys.
func Attributes(pairs map[string]string) (list []*commonpb.KeyValue) {
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		list = append(list, &commonpb.KeyValue{Key: k, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: pairs[k]}}})
	}
	return list
}
