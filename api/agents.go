package api

import (
	"context"
	"errors"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Agents registers GPU agents, and audits each change in the same transaction;
// *agentauth.Issuer does.
type Agents interface {
	Create(ctx context.Context, by authn.Principal, id tenant.ID, name string) (agentauth.Agent, agentauth.Credential, error)
	List(ctx context.Context, id tenant.ID, after string, limit int) ([]agentauth.Agent, error)
	// Collectors are those who send samples and are no agents.
	Collectors(ctx context.Context, id tenant.ID) ([]agentauth.Collector, error)
	// Issue shows a credential under the newest pepper.
	Issue(ctx context.Context, by authn.Principal, k agentauth.Key) (agentauth.Credential, error)
	Revoke(ctx context.Context, by authn.Principal, k agentauth.Key) error
}

// agentService serves tallystick.v1.AgentService.
type agentService struct {
	pb.UnimplementedAgentServiceServer
	s *Server
}

func (a *agentService) enter(ctx context.Context, tenantID string) (Agents, tenant.ID, error) {
	if a.s.deps.Agents == nil {
		return nil, "", errUnimplemented
	}
	id, err := tenantOf(ctx, tenantID)
	return a.s.deps.Agents, id, err
}

// CreateAgent registers an agent; its credential is in the answer.
func (a *agentService) CreateAgent(ctx context.Context, req *pb.CreateAgentRequest) (*pb.CreateAgentResponse, error) {
	store, id, err := a.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	made, credential, err := store.Create(ctx, principal(ctx), id, req.Name)
	switch {
	case errors.Is(err, agentauth.ErrAgent):
		return nil, invalid("name", "refused", "%v", err)
	case err != nil:
		return nil, classifyStore(ctx, "register an agent", err)
	}
	return &pb.CreateAgentResponse{Agent: agentMessage(&made), Credential: credential.Text()}, nil
}

// ListAgents pages through a tenant's agents.
func (a *agentService) ListAgents(ctx context.Context, req *pb.ListAgentsRequest) (*pb.ListAgentsResponse, error) {
	store, id, err := a.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.PageSize)
	if err != nil {
		return nil, err
	}
	after, err := a.s.pages.open("agents/"+string(id), req.PageToken)
	if err != nil {
		return nil, err
	}
	list, err := store.List(ctx, id, after, size+1)
	if err != nil {
		return nil, classifyStore(ctx, "list agents", err)
	}
	res := &pb.ListAgentsResponse{}
	if after == "" {
		collectors, err := store.Collectors(ctx, id)
		if err != nil {
			return nil, classifyStore(ctx, "list collectors", err)
		}
		for i := range collectors {
			res.Collectors = append(res.Collectors, &pb.Collector{Name: collectors[i].Name, Samples: sampleCountsMessage(&collectors[i].Samples)})
		}
	}
	for i := range list[:min(size, len(list))] {
		res.Agents = append(res.Agents, agentMessage(&list[i]))
	}
	if len(list) > size {
		res.NextPageToken = a.s.pages.token("agents/"+string(id), list[size-1].Agent)
	}
	return res, nil
}

// IssueAgent shows an agent's credential under the newest pepper.
func (a *agentService) IssueAgent(ctx context.Context, req *pb.IssueAgentRequest) (*pb.IssueAgentResponse, error) {
	store, id, err := a.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	credential, err := store.Issue(ctx, principal(ctx), agentauth.Key{Tenant: id, Agent: req.AgentId})
	switch {
	case errors.Is(err, agentauth.ErrNoAgent):
		return nil, ErrNotFound
	case err != nil:
		return nil, classifyStore(ctx, "issue a credential", err)
	}
	return &pb.IssueAgentResponse{Credential: credential.Text()}, nil
}

// RevokeAgent ends an agent for ever.
func (a *agentService) RevokeAgent(ctx context.Context, req *pb.RevokeAgentRequest) (*pb.RevokeAgentResponse, error) {
	store, id, err := a.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	err = store.Revoke(ctx, principal(ctx), agentauth.Key{Tenant: id, Agent: req.AgentId})
	if errors.Is(err, agentauth.ErrNoAgent) {
		return nil, ErrNotFound
	}
	return &pb.RevokeAgentResponse{}, classifyStore(ctx, "revoke an agent", err)
}

func agentMessage(a *agentauth.Agent) *pb.Agent {
	return &pb.Agent{
		AgentId: a.Agent, TenantId: string(a.Tenant), Name: a.Name, CreatedAt: timestamppb.New(a.CreatedAt), CreatedBy: a.CreatedBy,
		IssuedAt: timestamppb.New(a.IssuedAt), RevokedAt: timestamp(a.RevokedAt), RevokedBy: a.RevokedBy, ReportedAt: timestamp(a.ReportedAt),
		Samples: sampleCountsMessage(&a.Samples),
	}
}

func sampleCountsMessage(c *agentauth.SampleCounts) *pb.SampleCounts {
	return &pb.SampleCounts{
		Accounted: c.Accounted, Duplicate: c.Duplicate, TooOld: c.Late, TooFarAhead: c.Future, Malformed: c.Malformed,
		WithoutTime: c.WithoutTime, ClippedUs: c.ClippedMicros, Refused: c.Refused, Lost: c.Lost,
	}
}
