package api

import (
	"context"
	"encoding/hex"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// AuditLog reads the audit log; *audit.Log does.
type AuditLog interface {
	// Head is the number and chain hash of the tenant's last event.
	Head(ctx context.Context, id tenant.ID) (seq int64, chain audit.Hash, err error)
	// Rows reads up to limit rows from `from` on, or downwards.
	Rows(ctx context.Context, id tenant.ID, from int64, limit int, descending bool) ([]audit.Row, error)
}

// auditService serves tallystick.v1.AuditService.
type auditService struct {
	pb.UnimplementedAuditServiceServer
	s *Server
}

// ListAuditEvents pages through an audit log.
func (a *auditService) ListAuditEvents(ctx context.Context, req *pb.ListAuditEventsRequest) (*pb.ListAuditEventsResponse, error) {
	log := a.s.deps.AuditLog
	if log == nil {
		return nil, errUnimplemented
	}
	id, err := auditTenant(ctx, req)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.PageSize)
	if err != nil {
		return nil, err
	}
	question := "audit/" + string(id) + "/" + strconv.FormatInt(req.FromSeq, 10) + strconv.FormatBool(req.Descending)
	from := req.FromSeq
	if cursor, err := a.s.pages.open(question, req.PageToken); err != nil {
		return nil, err
	} else if cursor != "" {
		if from, err = strconv.ParseInt(cursor, 10, 64); err != nil {
			return nil, err
		}
	}
	if from < 0 {
		return nil, invalid("from_seq", "range", "must not be negative")
	}
	head, chain, err := log.Head(ctx, id)
	if err != nil {
		return nil, classifyStore(ctx, "read the audit log", err)
	}
	rows, err := log.Rows(ctx, id, from, size+1, req.Descending)
	if err != nil {
		return nil, classifyStore(ctx, "read the audit log", err)
	}
	res := &pb.ListAuditEventsResponse{HeadSeq: head, HeadChain: hex.EncodeToString(chain[:])}
	for i := range rows[:min(size, len(rows))] {
		res.Events = append(res.Events, auditMessage(&rows[i]))
	}
	if len(rows) > size {
		res.NextPageToken = a.s.pages.token(question, strconv.FormatInt(rows[size].Seq, 10))
	}
	return res, nil
}

// auditTenant is whose log is asked for.
func auditTenant(ctx context.Context, req *pb.ListAuditEventsRequest) (tenant.ID, error) {
	if !req.Installation {
		return tenantOf(ctx, req.TenantId)
	}
	if !principal(ctx).AllTenants {
		return "", errNotOperator
	}
	if req.TenantId != "" {
		return "", invalid("tenant_id", "conflict", "must be empty beside installation")
	}
	return audit.Installation, nil
}

// auditMessage tells a row. One that does not decode is told by its bytes and
// hashes alone: it is evidence too.
func auditMessage(r *audit.Row) *pb.AuditEvent {
	leaf := audit.Leaf(r.Canonical)
	m := &pb.AuditEvent{
		TenantId: string(r.Tenant), Seq: r.Seq, Canonical: r.Canonical, LeafHash: hex.EncodeToString(leaf[:]),
		ChainHash: hex.EncodeToString(r.Chain[:]), Mac: hex.EncodeToString(r.MAC[:]), KeyEpoch: int64(r.KeyEpoch),
	}
	ev, _, err := audit.Decode(r.Canonical)
	if err != nil {
		return m
	}
	m.At, m.Actor, m.Action, m.Resource, m.Outcome = timestamppb.New(ev.At), ev.Actor, ev.Action, ev.Resource, ev.Outcome
	m.Reason, m.Addr, m.Client, m.RequestId, m.Count = ev.Reason, ev.Addr, ev.Client, ev.RequestID, ev.Count
	m.Until = timestamp(ev.Until)
	return m
}
