package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Mapping keeps tenants' mapping rules, and audits changes in the same transaction;
// *mapping.Store does.
type Mapping interface {
	Get(ctx context.Context, id tenant.ID, version int64) (mapping.Version, error)
	Put(ctx context.Context, by authn.Principal, id tenant.ID, after int64, text []byte) (mapping.Version, error)
	DefaultOwners(ctx context.Context, id tenant.ID, version int64) (mapping.DefaultOwners, error)
	PutDefaultOwners(ctx context.Context, by authn.Principal, id tenant.ID, after int64, owners map[string]string, from time.Time) (mapping.DefaultOwners, error)
	OwnerPeriods(ctx context.Context, id tenant.ID) ([]mapping.OwnerPeriod, error)
}

// mappingService serves tallystick.v1.MappingService.
type mappingService struct {
	pb.UnimplementedMappingServiceServer
	s *Server
}

// GetMappingRules returns a version.
func (m *mappingService) GetMappingRules(ctx context.Context, req *pb.GetMappingRulesRequest) (*pb.MappingRules, error) {
	id, err := m.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.Version < 0 {
		return nil, invalid("version", "range", "a version is positive, or 0 for the newest")
	}
	v, err := m.s.deps.Mapping.Get(ctx, id, req.Version)
	if err != nil {
		return nil, mappingError(ctx, err)
	}
	return mappingMessage(id, &v)
}

// PutMappingRules makes the next version.
func (m *mappingService) PutMappingRules(ctx context.Context, req *pb.PutMappingRulesRequest) (*pb.MappingRules, error) {
	id, err := m.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	list := make([]mapping.Rule, 0, len(req.Rules))
	for _, r := range req.Rules {
		list = append(list, mapping.Rule{When: r.When, Set: r.Set, Override: r.Override})
	}
	text, err := mapping.Canonical(list)
	if err != nil {
		return nil, mappingError(ctx, err)
	}
	v, err := m.s.deps.Mapping.Put(ctx, principal(ctx), id, req.AfterVersion, text)
	if err != nil {
		return nil, mappingError(ctx, err)
	}
	return mappingMessage(id, &v)
}

// GetDefaultOwners returns a version.
func (m *mappingService) GetDefaultOwners(ctx context.Context, req *pb.GetDefaultOwnersRequest) (*pb.DefaultOwners, error) {
	id, err := m.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.Version < 0 {
		return nil, invalid("version", "range", "a version is positive, or 0 for the newest")
	}
	v, err := m.s.deps.Mapping.DefaultOwners(ctx, id, req.Version)
	if err != nil {
		return nil, mappingError(ctx, err)
	}
	return ownersMessage(id, &v), nil
}

// PutDefaultOwners makes the next version.
func (m *mappingService) PutDefaultOwners(ctx context.Context, req *pb.PutDefaultOwnersRequest) (*pb.DefaultOwners, error) {
	id, err := m.of(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.EffectiveFrom != nil && (req.EffectiveFrom.CheckValid() != nil || req.EffectiveFrom.AsTime().IsZero()) {
		return nil, invalid("effective_from", "range", "a time between 1970 and 2262")
	}
	v, err := m.s.deps.Mapping.PutDefaultOwners(ctx, principal(ctx), id, req.AfterVersion, req.Owners, moment(req.EffectiveFrom))
	if err != nil {
		return nil, mappingError(ctx, err)
	}
	return ownersMessage(id, &v), nil
}

func ownersMessage(id tenant.ID, v *mapping.DefaultOwners) *pb.DefaultOwners {
	return &pb.DefaultOwners{
		TenantId: string(id), Version: v.Version, Owners: v.Owners, EffectiveFrom: timestamp(v.From), CreatedAt: timestamp(v.CreatedAt), CreatedBy: v.CreatedBy,
	}
}

func (m *mappingService) of(ctx context.Context, tenantID string) (tenant.ID, error) {
	if m.s.deps.Mapping == nil {
		return "", errUnimplemented
	}
	return tenantOf(ctx, tenantID)
}

// mappingError turns what the store says into the API's errors.
func mappingError(ctx context.Context, err error) error {
	var owner *mapping.OwnerError
	switch {
	case errors.As(err, &owner):
		return invalid(owner.Field, owner.Rule, "%s", owner.Text)
	case errors.Is(err, mapping.ErrInvalid):
		return invalid("rules", "refused", "%v", err)
	case errors.Is(err, mapping.ErrVersion):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case postgres.IsNoRows(err):
		return ErrNotFound
	}
	return classifyStore(ctx, "mapping rules", err)
}

func mappingMessage(id tenant.ID, v *mapping.Version) (*pb.MappingRules, error) {
	out := &pb.MappingRules{TenantId: string(id), Version: v.Number, CreatedBy: v.CreatedBy, LoggedAt: timestamp(v.Said)}
	if v.Number == 0 {
		return out, nil
	}
	hash := mapping.Hash([]byte(v.Content))
	out.Hash, out.CreatedAt = hex.EncodeToString(hash[:]), timestamppb.New(v.CreatedAt)
	var doc struct{ Rules []mapping.Rule }
	if err := json.Unmarshal([]byte(v.Content), &doc); err != nil {
		return nil, fmt.Errorf("mapping rules of version %d: %w", v.Number, err)
	}
	for _, r := range doc.Rules {
		out.Rules = append(out.Rules, &pb.MappingRule{When: r.When, Set: r.Set, Override: r.Override})
	}
	return out, nil
}
