package api

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Reports computes reports of the tenant that the request names, which the API
// has checked against the credential. A *report.FieldError says which field of
// the request no report can be made of; other errors: ErrUnavailable and those
// of the context.
type Reports interface {
	Summary(ctx context.Context, req *report.SummaryRequest) (*report.Summary, error)
	TimeSeries(ctx context.Context, req *report.TimeSeriesRequest) (*report.TimeSeries, error)
	Groups(ctx context.Context, req *report.GroupsRequest) (*report.Groups, error)
}

// reportService serves tallystick.v1.ReportService.
type reportService struct {
	pb.UnimplementedReportServiceServer
	s *Server
}

// QuerySummary is the totals of a window.
func (r *reportService) QuerySummary(ctx context.Context, req *pb.SummaryRequest) (*pb.SummaryResponse, error) {
	q, head, err := r.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	in := &report.SummaryRequest{Query: q}
	if err := in.Validate(); err != nil {
		return nil, fieldError(err)
	}
	out, err := r.s.deps.Reports.Summary(ctx, in)
	if err != nil {
		return nil, fieldError(err)
	}
	return &pb.SummaryResponse{Totals: totalsMessage(&out.Totals), Coverage: coverageMessage(&out.Coverage, head)}, nil
}

// QueryTimeSeries is a window cut into buckets, by group.
func (r *reportService) QueryTimeSeries(ctx context.Context, req *pb.TimeSeriesRequest) (*pb.TimeSeriesResponse, error) {
	q, head, err := r.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	in := &report.TimeSeriesRequest{Query: q, Granularity: report.Granularity(req.Granularity), GroupBy: req.GroupBy, Top: int(req.Top)}
	in.Allocation.Method = report.Method(req.Allocate)
	if err := in.Validate(); err != nil {
		return nil, fieldError(err)
	}
	if err := r.findOwners(ctx, q.Tenant, &in.Allocation); err != nil {
		return nil, err
	}
	out, err := r.s.deps.Reports.TimeSeries(ctx, in)
	if err != nil {
		return nil, fieldError(err)
	}
	res := &pb.TimeSeriesResponse{
		Totals: totalsMessage(&out.Totals), Coverage: coverageMessage(&out.Coverage, head), Allocation: allocationMessage(out.Allocation),
	}
	for _, t := range out.Buckets {
		res.Buckets = append(res.Buckets, timestamppb.New(t))
	}
	for i := range out.Series {
		s := &out.Series[i]
		m := &pb.Series{Group: s.Values, Other: s.Other, Requests: s.Requests, GpuUs: s.GPUMicros, Totals: totalsMessage(&s.Totals)}
		for _, cost := range s.Cost {
			m.CostUsd = append(m.CostUsd, cost.String())
		}
		for _, cost := range s.Allocated {
			m.AllocatedCostUsd = append(m.AllocatedCostUsd, cost.String())
		}
		m.Direct, m.Allocated = splitMessages(s.Split)
		res.Series = append(res.Series, m)
	}
	return res, nil
}

// QueryGroups is a window by group.
func (r *reportService) QueryGroups(ctx context.Context, req *pb.GroupsRequest) (*pb.GroupsResponse, error) {
	q, head, err := r.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	in := &report.GroupsRequest{Query: q, GroupBy: req.GroupBy, Top: int(req.Top)}
	in.Allocation.Method = report.Method(req.Allocate)
	if err := in.Validate(); err != nil {
		return nil, fieldError(err)
	}
	if err := r.findOwners(ctx, q.Tenant, &in.Allocation); err != nil {
		return nil, err
	}
	out, err := r.s.deps.Reports.Groups(ctx, in)
	if err != nil {
		return nil, fieldError(err)
	}
	res := &pb.GroupsResponse{
		Totals: totalsMessage(&out.Totals), Coverage: coverageMessage(&out.Coverage, head), Allocation: allocationMessage(out.Allocation),
	}
	for i := range out.Groups {
		g := &out.Groups[i]
		m := &pb.Group{Group: g.Values, Other: g.Other, Totals: totalsMessage(&g.Totals)}
		m.Direct, m.Allocated = splitMessages(g.Split)
		res.Groups = append(res.Groups, m)
	}
	return res, nil
}

// findOwners gives an allocation to default owners those of the tenant.
func (r *reportService) findOwners(ctx context.Context, id tenant.ID, a *report.Allocation) error {
	if a.Method != report.DefaultOwner {
		return nil
	}
	if r.s.deps.Mapping == nil {
		return errUnimplemented
	}
	periods, err := r.s.deps.Mapping.OwnerPeriods(ctx, id)
	if err != nil {
		return mappingError(ctx, err)
	}
	for _, p := range periods {
		a.Periods = append(a.Periods, report.OwnerPeriod(p))
	}
	return nil
}

func splitMessages(s *report.Split) (direct, allocated *pb.Totals) {
	if s == nil {
		return nil, nil
	}
	return totalsMessage(&s.Direct), totalsMessage(&s.Allocated)
}

func allocationMessage(a *report.Allocated) *pb.Allocation {
	if a == nil {
		return nil
	}
	m := &pb.Allocation{Method: string(a.Method), Allocated: totalsMessage(&a.Totals)}
	for _, p := range a.Periods {
		m.Periods = append(m.Periods, &pb.OwnerPeriod{Start: timestamppb.New(p.Start), Version: p.Version, Owners: p.Owners})
	}
	return m
}

// queryMessage is what the requests of all reports have in common.
type queryMessage interface {
	GetTenantId() string
	GetWindow() *pb.Window
	GetFilters() []*pb.Filter
}

// begin checks the tenant, reads the head that the answer's lag is counted
// from, and translates the query. The head is read before the report, so that
// the lag is never too great.
func (r *reportService) begin(ctx context.Context, req queryMessage) (report.Query, Head, error) {
	if r.s.deps.Reports == nil {
		return report.Query{}, Head{}, errUnimplemented
	}
	id, err := tenantOf(ctx, req.GetTenantId())
	if err != nil {
		return report.Query{}, Head{}, err
	}
	var head Head
	if r.s.deps.Ledger != nil {
		if head, err = r.s.deps.Ledger.Head(ctx, id); err != nil {
			return report.Query{}, Head{}, err
		}
	}
	return reportQuery(id, req), head, nil
}

func reportQuery(id tenant.ID, req queryMessage) report.Query {
	w := req.GetWindow()
	q := report.Query{Tenant: id, Window: report.Window{
		Start: moment(w.GetStart()), End: moment(w.GetEnd()), Name: w.GetName(), Zone: w.GetTimeZone(),
	}}
	for _, f := range req.GetFilters() {
		q.Filters = append(q.Filters, report.Filter{Dimension: f.GetDimension(), Values: f.GetValues()})
	}
	return q
}

// moment is the zero time for a timestamp that is not given.
func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func fieldError(err error) error {
	var field *report.FieldError
	if errors.As(err, &field) {
		return invalid(field.Field, "invalid", "%s", field.Message)
	}
	return err
}

func totalsMessage(t *report.Totals) *pb.Totals {
	m := &pb.Totals{
		CostUsd: t.Cost.String(), Requests: t.Requests, Failed: t.Failed, Unpriced: t.Unpriced,
		Corrections: t.Corrections, Estimated: t.Estimated, Tokens: make(map[string]int64), GpuUs: t.GPUMicros,
	}
	for c, n := range t.Tokens {
		m.Tokens[tokens.Class(c).String()] = n
	}
	return m
}

func coverageMessage(c *report.Coverage, head Head) *pb.Coverage {
	m := &pb.Coverage{
		Start: timestamp(c.Start), End: timestamp(c.End), ToSeq: c.ToSeq, Exact: c.Exact,
		FreshUntil: timestamp(c.FreshUntil), LagEntries: max(0, head.Seq-c.ToSeq),
	}
	if c.ToSeq > 0 {
		m.FromSeq, m.HeadHash = 1, hex.EncodeToString(c.HeadHash[:])
	}
	return m
}
