package api

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	"github.com/tallystick/tallystick/internal/tokens"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const csvType = "text/csv"

// csvMarshaler writes reports as RFC 4180 with a header line. What a report
// covers stands in the X-Tallystick-Coverage header, as it does for JSON too.
// Requests are read as JSON.
type csvMarshaler struct{ *jsonMarshaler }

// ContentType implements runtime.Marshaler.
func (csvMarshaler) ContentType(any) string { return csvType + "; charset=utf-8; header=present" }

// Marshal implements runtime.Marshaler.
func (c csvMarshaler) Marshal(v any) ([]byte, error) {
	var rows [][]string
	switch m := v.(type) {
	case *pb.SummaryResponse:
		rows = [][]string{totalsHeader(nil), totalsRow(nil, m.Totals)}
	case *pb.GroupsResponse:
		rows = groupRows(m)
	case *pb.TimeSeriesResponse:
		rows = seriesRows(m)
	default:
		return nil, fmt.Errorf("api: %T has no CSV form", v)
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.UseCRLF = true
	err := w.WriteAll(rows)
	return b.Bytes(), err
}

// NewEncoder implements runtime.Marshaler.
func (c csvMarshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		b, err := c.Marshal(v)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	})
}

func totalsHeader(before []string) []string {
	row := append(slices.Clone(before), "cost_usd", "requests", "failed", "unpriced", "corrections", "estimated")
	for c := range tokens.NumClasses {
		row = append(row, "tokens_"+c.String())
	}
	return append(row, "gpu_us", "gpu_hours")
}

func totalsRow(before []string, t *pb.Totals) []string {
	row := append(slices.Clone(before), t.GetCostUsd())
	for _, n := range []int64{t.GetRequests(), t.GetFailed(), t.GetUnpriced(), t.GetCorrections(), t.GetEstimated()} {
		row = append(row, strconv.FormatInt(n, 10))
	}
	for c := range tokens.NumClasses {
		row = append(row, strconv.FormatInt(t.GetTokens()[c.String()], 10))
	}
	return append(row, strconv.FormatInt(t.GetGpuUs(), 10), gpuHours(t.GetGpuUs()))
}

// gpuHours is time of GPUs in hours of whole devices, to the nearest 4 ms; gpu_us
// is exact.
func gpuHours(micros int64) string {
	return strconv.FormatFloat(float64(micros)/3_600_000_000, 'f', 6, 64)
}

func groupRows(m *pb.GroupsResponse) [][]string {
	width := 0
	for _, g := range m.Groups {
		width = max(width, len(g.Group))
	}
	rows := [][]string{allocatedHeader(totalsHeader(groupHeader(width)), m.Allocation)}
	for _, g := range m.Groups {
		row := totalsRow(groupCells(g.Group, g.Other, width), g.Totals)
		if m.Allocation != nil {
			row = totalsRow(totalsRow(row, g.Direct), g.Allocated)
		}
		rows = append(rows, row)
	}
	return rows
}

// allocatedHeader adds the columns of what totals consist of, where a report has an
// allocation.
func allocatedHeader(row []string, a *pb.Allocation) []string {
	if a == nil {
		return row
	}
	for _, part := range []string{"direct_", "allocated_"} {
		for _, name := range totalsHeader(nil) {
			row = append(row, part+name)
		}
	}
	return row
}

func seriesRows(m *pb.TimeSeriesResponse) [][]string {
	width := 0
	for _, s := range m.Series {
		width = max(width, len(s.Group))
	}
	header := append(append([]string{"bucket"}, groupHeader(width)...), "cost_usd", "requests")
	if m.Allocation != nil {
		header = append(header, "allocated_cost_usd")
	}
	header = append(header, "gpu_us", "gpu_hours")
	rows := [][]string{header}
	for _, s := range m.Series {
		cells := groupCells(s.Group, s.Other, width)
		for i, start := range m.Buckets {
			row := append([]string{start.AsTime().Format(time.RFC3339)}, cells...)
			row = append(row, s.CostUsd[i], strconv.FormatInt(s.Requests[i], 10))
			if m.Allocation != nil {
				row = append(row, s.AllocatedCostUsd[i])
			}
			row = append(row, strconv.FormatInt(s.GpuUs[i], 10), gpuHours(s.GpuUs[i]))
			rows = append(rows, row)
		}
	}
	return rows
}

func groupHeader(width int) []string {
	var row []string
	for i := range width {
		row = append(row, "group_"+strconv.Itoa(i+1))
	}
	return append(row, "other")
}

func groupCells(group []string, other bool, width int) []string {
	row := make([]string, 0, width+1)
	for i := range width {
		cell := ""
		if i < len(group) {
			cell = plainCell(group[i])
		}
		row = append(row, cell)
	}
	return append(row, strconv.FormatBool(other))
}

// plainCell keeps a spreadsheet from running a producer's text as a formula: it
// gets an apostrophe in front, which spreadsheets do not show.
func plainCell(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}
