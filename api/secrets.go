package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Secrets keeps what tenants have given us to keep, and audits it in the same
// transaction; *secrets.Store does.
type Secrets interface {
	Add(ctx context.Context, by authn.Principal, n secrets.New) (secrets.Secret, error)
	List(ctx context.Context, id tenant.ID, after string, limit int) ([]secrets.Secret, error)
	Rotate(ctx context.Context, by authn.Principal, id tenant.ID, secretID, value string) (secrets.Secret, error)
	Revoke(ctx context.Context, by authn.Principal, id tenant.ID, secretID string) error
	// Reveal commits the audit row before it returns the value.
	Reveal(ctx context.Context, by authn.Principal, id tenant.ID, secretID, reason string) (value string, version int, err error)
}

// AddSecret keeps a secret.
func (a *accessService) AddSecret(ctx context.Context, req *pb.AddSecretRequest) (*pb.Secret, error) {
	id, err := a.secretsOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	m, err := a.s.deps.Secrets.Add(ctx, principal(ctx), secrets.New{Tenant: id, Kind: req.Kind, Name: req.Name, Value: req.Value})
	return a.secretMessage(&m), secretError(ctx, err)
}

// ListSecrets pages through a tenant's secrets, masked.
func (a *accessService) ListSecrets(ctx context.Context, req *pb.ListSecretsRequest) (*pb.ListSecretsResponse, error) {
	if a.s.deps.Secrets == nil {
		return nil, errUnimplemented
	}
	id, after, size, err := a.page(ctx, "secrets", req.TenantId, req.PageToken, req.PageSize)
	if err != nil {
		return nil, err
	}
	list, err := a.s.deps.Secrets.List(ctx, id, after, size+1)
	if err != nil {
		return nil, secretError(ctx, err)
	}
	res := &pb.ListSecretsResponse{}
	for i := range list[:min(size, len(list))] {
		res.Secrets = append(res.Secrets, a.secretMessage(&list[i]))
	}
	if len(list) > size {
		res.NextPageToken = a.s.pages.token("secrets/"+string(id), list[size-1].ID)
	}
	return res, nil
}

// RotateSecret gives a secret a new value.
func (a *accessService) RotateSecret(ctx context.Context, req *pb.RotateSecretRequest) (*pb.Secret, error) {
	id, err := a.secretsOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	m, err := a.s.deps.Secrets.Rotate(ctx, principal(ctx), id, req.SecretId, req.Value)
	return a.secretMessage(&m), secretError(ctx, err)
}

// RevokeSecret ends a secret.
func (a *accessService) RevokeSecret(ctx context.Context, req *pb.RevokeSecretRequest) (*pb.RevokeSecretResponse, error) {
	id, err := a.secretsOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	return &pb.RevokeSecretResponse{}, secretError(ctx, a.s.deps.Secrets.Revoke(ctx, principal(ctx), id, req.SecretId))
}

// RevealSecret shows the full value.
func (a *accessService) RevealSecret(ctx context.Context, req *pb.RevealSecretRequest) (*pb.RevealSecretResponse, error) {
	id, err := a.secretsOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	value, version, err := a.s.deps.Secrets.Reveal(ctx, principal(ctx), id, req.SecretId, req.Reason)
	return &pb.RevealSecretResponse{Value: value, Version: int32(version)}, secretError(ctx, err)
}

func (a *accessService) secretsOf(ctx context.Context, tenantID string) (tenant.ID, error) {
	if a.s.deps.Secrets == nil {
		return "", errUnimplemented
	}
	return tenantOf(ctx, tenantID)
}

// secretError turns what the store says into the API's errors. None of its
// texts holds a value.
func secretError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, secrets.ErrInvalid):
		return invalid("secret", "refused", "%v", err)
	case errors.Is(err, secrets.ErrExists):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case errors.Is(err, secrets.ErrNotFound):
		return ErrNotFound
	case errors.Is(err, keyring.ErrDestroyed):
		return ErrDestroyed
	}
	return classifyStore(ctx, "secrets", err)
}

func (a *accessService) secretMessage(m *secrets.Secret) *pb.Secret {
	return &pb.Secret{
		SecretId: m.ID, TenantId: string(m.Tenant), Kind: m.Kind, Name: m.Name, Masked: m.Masked, Version: int32(m.Version),
		CreatedAt: timestamppb.New(m.CreatedAt), CreatedBy: m.CreatedBy, RotatedAt: timestamp(m.RotatedAt), RotateBy: timestamp(m.RotateBy),
		PreviousUntil: timestamp(m.PreviousUntil), RevokedAt: timestamp(m.RevokedAt),
		Destroyed: a.s.deps.Keys != nil && a.s.deps.Keys.Destroyed(m.Tenant),
	}
}
