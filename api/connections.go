package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Connections keeps tenants' connections to what customers own, and audits
// changes in the same transaction; *connections.Store does.
type Connections interface {
	Create(ctx context.Context, by authn.Principal, n connections.New) (connections.Bedrock, error)
	List(ctx context.Context, id tenant.ID, after string, limit int) ([]connections.Bedrock, error)
	SetPaused(ctx context.Context, by authn.Principal, id tenant.ID, connectionID string, paused bool) error
	Remove(ctx context.Context, by authn.Principal, id tenant.ID, connectionID string) error
	RequestMetadata(ctx context.Context, id tenant.ID) (bool, error)
	SetRequestMetadata(ctx context.Context, by authn.Principal, id tenant.ID, keep bool) error
}

// connectionService serves tallystick.v1.ConnectionService.
type connectionService struct {
	pb.UnimplementedConnectionServiceServer
	s *Server
}

// CreateConnection makes a connection.
func (c *connectionService) CreateConnection(ctx context.Context, req *pb.CreateConnectionRequest) (*pb.Connection, error) {
	id, err := c.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	made, err := c.s.deps.Connections.Create(ctx, principal(ctx), connections.New{Tenant: id, Name: req.Name, Place: connections.Place{
		Source: connections.Source(req.Source), Bucket: req.Bucket, Prefix: req.Prefix, Queue: req.QueueUrl, LogGroup: req.LogGroup,
		Region: req.Region, RoleARN: req.RoleArn,
	}})
	return connectionMessage(&made), connectionError(ctx, err)
}

// ListConnections pages through a tenant's connections.
func (c *connectionService) ListConnections(ctx context.Context, req *pb.ListConnectionsRequest) (*pb.ListConnectionsResponse, error) {
	id, err := c.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.PageSize)
	if err != nil {
		return nil, err
	}
	after, err := c.s.pages.open("connections/"+string(id), req.PageToken)
	if err != nil {
		return nil, err
	}
	list, err := c.s.deps.Connections.List(ctx, id, after, size+1)
	if err != nil {
		return nil, connectionError(ctx, err)
	}
	res := &pb.ListConnectionsResponse{}
	for i := range list[:min(size, len(list))] {
		res.Connections = append(res.Connections, connectionMessage(&list[i]))
	}
	if len(list) > size {
		res.NextPageToken = c.s.pages.token("connections/"+string(id), list[size-1].ID)
	}
	return res, nil
}

// PauseConnection stops reading or goes on.
func (c *connectionService) PauseConnection(ctx context.Context, req *pb.PauseConnectionRequest) (*pb.PauseConnectionResponse, error) {
	id, err := c.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	err = c.s.deps.Connections.SetPaused(ctx, principal(ctx), id, req.ConnectionId, !req.Resume)
	return &pb.PauseConnectionResponse{}, connectionError(ctx, err)
}

// RemoveConnection ends a connection.
func (c *connectionService) RemoveConnection(ctx context.Context, req *pb.RemoveConnectionRequest) (*pb.RemoveConnectionResponse, error) {
	id, err := c.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	return &pb.RemoveConnectionResponse{}, connectionError(ctx, c.s.deps.Connections.Remove(ctx, principal(ctx), id, req.ConnectionId))
}

// GetBedrockSettings says what the tenant lets its log records say.
func (c *connectionService) GetBedrockSettings(ctx context.Context, req *pb.GetBedrockSettingsRequest) (*pb.BedrockSettings, error) {
	id, err := c.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	keep, err := c.s.deps.Connections.RequestMetadata(ctx, id)
	return &pb.BedrockSettings{RequestMetadata: keep}, connectionError(ctx, err)
}

// SetBedrockSettings changes it.
func (c *connectionService) SetBedrockSettings(ctx context.Context, req *pb.SetBedrockSettingsRequest) (*pb.BedrockSettings, error) {
	id, err := c.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	err = c.s.deps.Connections.SetRequestMetadata(ctx, principal(ctx), id, req.RequestMetadata)
	return &pb.BedrockSettings{RequestMetadata: req.RequestMetadata}, connectionError(ctx, err)
}

func (c *connectionService) of(ctx context.Context, tenantID string) (tenant.ID, error) {
	if c.s.deps.Connections == nil {
		return "", errUnimplemented
	}
	return tenantOf(ctx, tenantID)
}

// connectionError turns what the store says into the API's errors.
func connectionError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, connections.ErrInvalid):
		return invalid("connection", "refused", "%v", err)
	case errors.Is(err, connections.ErrExists):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case errors.Is(err, connections.ErrNotFound):
		return ErrNotFound
	}
	return classifyStore(ctx, "connections", err)
}

func connectionMessage(b *connections.Bedrock) *pb.Connection {
	p, t := &b.Place, &b.State
	return &pb.Connection{
		ConnectionId: b.ID, TenantId: string(b.Tenant), Name: b.Name, Source: string(p.Source), Bucket: p.Bucket, Prefix: p.Prefix,
		QueueUrl: p.Queue, LogGroup: p.LogGroup, Region: p.Region, RoleArn: p.RoleARN, ExternalId: p.ExternalID,
		CreatedAt: timestamppb.New(b.CreatedAt), CreatedBy: b.CreatedBy, Paused: b.Paused,
		PolledAt: timestamp(t.PolledAt), SucceededAt: timestamp(t.SucceededAt), Failures: int32(t.Failures), Failure: t.Failure,
		Objects: t.Objects, Records: t.Records, Accepted: t.Accepted, Refused: t.Refused, Malformed: t.Malformed, Damaged: t.Damaged,
		Metered: t.Metered,
	}
}
