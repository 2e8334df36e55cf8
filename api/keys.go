package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Keys are the tenants' keys, as far as they can be seen and moved from
// outside; *keyring.Ring is one, and its errors are understood.
type Keys interface {
	Epochs(id tenant.ID) ([]keyring.KeyEpoch, error)
	Rotate(s keyring.Series, ids ...tenant.ID) ([]keyring.KeyEpoch, error)
	Destroy(id tenant.ID) error
	Destroyed(id tenant.ID) bool
	Rewrap() (int, error)
}

// keyService serves tallystick.v1.KeyService.
type keyService struct {
	pb.UnimplementedKeyServiceServer
	s *Server
}

func (s *keyService) enter(ctx context.Context, tenantID string) (Keys, tenant.ID, error) {
	if s.s.deps.Keys == nil {
		return nil, "", errUnimplemented
	}
	id, err := tenantOf(ctx, tenantID)
	return s.s.deps.Keys, id, err
}

// ListKeys lists the epochs of a tenant's keys.
func (s *keyService) ListKeys(ctx context.Context, req *pb.ListKeysRequest) (*pb.ListKeysResponse, error) {
	keys, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	epochs, err := keys.Epochs(id)
	if err != nil {
		return nil, keyError(err)
	}
	return &pb.ListKeysResponse{TenantId: string(id), Epochs: epochMessages(epochs)}, nil
}

// RotateKeys begins new epochs.
func (s *keyService) RotateKeys(ctx context.Context, req *pb.RotateKeysRequest) (*pb.RotateKeysResponse, error) {
	keys, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if len(req.Series) > len(keyring.AllSeries()) {
		return nil, invalid("series", "length", "must name each series once at most")
	}
	series := keyring.AllSeries()
	if len(req.Series) > 0 {
		series = series[:0]
		for _, name := range req.Series {
			one, err := keyring.ParseSeries(name)
			if err != nil {
				return nil, invalid("series", "unknown", "must be of mac, checkpoint, audit and sealing")
			}
			series = append(series, one)
		}
	}
	out := &pb.RotateKeysResponse{TenantId: string(id)}
	for _, one := range series {
		made, err := keys.Rotate(one, id)
		if err != nil {
			return nil, keyError(err)
		}
		out.Epochs = append(out.Epochs, epochMessages(made)...)
	}
	return out, nil
}

// DestroySealingKeys destroys what is sealed for a tenant.
func (s *keyService) DestroySealingKeys(ctx context.Context, req *pb.DestroySealingKeysRequest) (*pb.DestroySealingKeysResponse, error) {
	keys, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.ConfirmTenantId != string(id) {
		return nil, invalid("confirm_tenant_id", "required", "must name the tenant again: it cannot be undone")
	}
	if err := keys.Destroy(id); err != nil {
		return nil, keyError(err)
	}
	return &pb.DestroySealingKeysResponse{TenantId: string(id)}, nil
}

// RewrapKeys wraps every root key anew.
func (s *keyService) RewrapKeys(context.Context, *pb.RewrapKeysRequest) (*pb.RewrapKeysResponse, error) {
	if s.s.deps.Keys == nil {
		return nil, errUnimplemented
	}
	n, err := s.s.deps.Keys.Rewrap()
	if err != nil {
		return nil, keyError(err)
	}
	return &pb.RewrapKeysResponse{Keys: int64(n)}, nil
}

// keyError tells the API which errors of a ring are the caller's, and which pass.
func keyError(err error) error {
	for from, to := range map[error]error{
		keyring.ErrNoKey: ErrNotFound, keyring.ErrDestroyed: ErrDestroyed, keyring.ErrUnavailable: ErrUnavailable,
	} {
		if errors.Is(err, from) {
			return fmt.Errorf("%w: %w", to, err)
		}
	}
	return err
}

func epochMessages(epochs []keyring.KeyEpoch) []*pb.KeyEpoch {
	out := make([]*pb.KeyEpoch, len(epochs))
	for i, e := range epochs {
		out[i] = &pb.KeyEpoch{Series: e.Series.String(), Epoch: e.Number, State: e.State.String()}
		if !e.Since.IsZero() {
			out[i].Since = timestamppb.New(e.Since)
		}
	}
	return out
}
