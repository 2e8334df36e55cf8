package api

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// maxCreate is how many tenants one request may create.
const maxCreate = 1000

// adminService serves tallystick.v1.AdminService.
type adminService struct {
	pb.UnimplementedAdminServiceServer
	s *Server
}

// CreateTenants makes the tenants that do not exist yet.
func (a *adminService) CreateTenants(ctx context.Context, req *pb.CreateTenantsRequest) (*pb.CreateTenantsResponse, error) {
	if a.s.deps.Tenants == nil {
		return nil, errUnimplemented
	}
	if !principal(ctx).AllTenants {
		return nil, errNotOperator
	}
	if len(req.TenantIds) == 0 || len(req.TenantIds) > maxCreate {
		return nil, invalid("tenant_ids", "range", "must name 1 to %d tenants", maxCreate)
	}
	ids := make([]tenant.ID, 0, len(req.TenantIds))
	var bad InvalidError
	for i, name := range req.TenantIds {
		id, err := tenant.ParseID(name)
		if err != nil {
			bad.Violations = append(bad.Violations, Violation{fmt.Sprintf("tenant_ids[%d]", i), "syntax", "must match [a-z0-9][a-z0-9-]{0,62}"})
			continue
		}
		ids = append(ids, id)
	}
	if len(bad.Violations) > 0 {
		return nil, &bad
	}
	created, err := a.s.deps.Tenants.Create(ctx, ids)
	if err != nil {
		return nil, err
	}
	res := &pb.CreateTenantsResponse{}
	for _, id := range created {
		res.Created = append(res.Created, string(id))
	}
	return res, nil
}

// ListTenants pages through the tenants that the caller may act for.
func (a *adminService) ListTenants(ctx context.Context, req *pb.ListTenantsRequest) (*pb.ListTenantsResponse, error) {
	if a.s.deps.Tenants == nil {
		return nil, errUnimplemented
	}
	size, err := pageSize(req.PageSize)
	if err != nil {
		return nil, err
	}
	const question = "tenants"
	after, err := a.s.pages.open(question, req.PageToken)
	if err != nil {
		return nil, err
	}
	found, more, err := a.visible(ctx, tenant.ID(after), size)
	if err != nil {
		return nil, err
	}
	res := &pb.ListTenantsResponse{}
	for _, t := range found {
		res.Tenants = append(res.Tenants, &pb.Tenant{TenantId: string(t.ID), CreatedAt: timestamp(t.CreatedAt), Partition: t.Partition})
	}
	if more {
		res.NextPageToken = a.s.pages.token(question, string(found[len(found)-1].ID))
	}
	return res, nil
}

// visible returns the next tenants that the caller may act for, and whether
// there are more.
func (a *adminService) visible(ctx context.Context, after tenant.ID, size int) (found []TenantInfo, more bool, err error) {
	p := principal(ctx)
	for {
		list, err := a.s.deps.Tenants.List(ctx, after, maxPageSize)
		if err != nil {
			return nil, false, err
		}
		for _, t := range list {
			if !p.May(t.ID) {
				continue
			}
			if len(found) == size {
				return found, true, nil
			}
			found = append(found, t)
		}
		if len(list) < maxPageSize {
			return found, false, nil
		}
		after = list[len(list)-1].ID
	}
}

// GetPipeline tells how the hops are. It counts over all tenants.
func (a *adminService) GetPipeline(ctx context.Context, _ *pb.GetPipelineRequest) (*pb.Pipeline, error) {
	if a.s.deps.Pipeline == nil {
		return nil, errUnimplemented
	}
	if !principal(ctx).AllTenants {
		return nil, errNotOperator
	}
	return a.s.deps.Pipeline.Pipeline(ctx)
}
