package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/egress"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/provider"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Providers keeps what tenants let the proxy do, and audits each change in the
// same transaction; *provider.Store does.
type Providers interface {
	AddKey(ctx context.Context, by authn.Principal, n provider.NewKey) (provider.Key, error)
	Keys(ctx context.Context, id tenant.ID, after string, limit int) ([]provider.Key, error)
	RotateKey(ctx context.Context, by authn.Principal, id tenant.ID, secretID, value string) (provider.Key, error)
	RevokeKey(ctx context.Context, by authn.Principal, id tenant.ID, secretID string) error
	Kill(ctx context.Context, by authn.Principal, id tenant.ID, scope, subject, reason string) (provider.Switch, error)
	Lift(ctx context.Context, by authn.Principal, id tenant.ID, switchID string) error
	Switches(ctx context.Context, id tenant.ID, after string, limit int) ([]provider.Switch, error)
	SetLimit(ctx context.Context, by authn.Principal, l provider.Limit) (provider.Limit, error)
	Limits(ctx context.Context, id tenant.ID, after string, limit int) ([]provider.Limit, error)
	SetCap(ctx context.Context, by authn.Principal, id tenant.ID, scope, subject string, usd *money.Sum) error
	Caps(ctx context.Context, id tenant.ID) ([]provider.Cap, error)
	Capture(ctx context.Context, id tenant.ID) (provider.Capture, error)
	SetCapture(ctx context.Context, by authn.Principal, id tenant.ID, promptDigests bool) (provider.Capture, error)
}

// providerService serves tallystick.v1.ProviderService.
type providerService struct {
	pb.UnimplementedProviderServiceServer
	s *Server
}

func (s *providerService) enter(ctx context.Context, tenantID string) (Providers, tenant.ID, error) {
	if s.s.deps.Providers == nil {
		return nil, "", errUnimplemented
	}
	id, err := tenantOf(ctx, tenantID)
	return s.s.deps.Providers, id, err
}

// listed reads what every paged list begins with, and gives one page of it.
func listed[T any, M any](ctx context.Context, s *providerService, what, tenantID, token string, size int32,
	read func(p Providers, id tenant.ID, after string, limit int) ([]T, error), key func(*T) string, message func(*T) M,
) (page []M, next string, err error) {
	p, id, err := s.enter(ctx, tenantID)
	if err != nil {
		return nil, "", err
	}
	n, err := pageSize(size)
	if err != nil {
		return nil, "", err
	}
	scope := what + "/" + string(id)
	after, err := s.s.pages.open(scope, token)
	if err != nil {
		return nil, "", err
	}
	list, err := read(p, id, after, n+1)
	if err != nil {
		return nil, "", providerError(ctx, err)
	}
	for i := range list[:min(n, len(list))] {
		page = append(page, message(&list[i]))
	}
	if len(list) > n {
		next = s.s.pages.token(scope, key(&list[n-1]))
	}
	return page, next, nil
}

// AddProviderKey keeps a provider key.
func (s *providerService) AddProviderKey(ctx context.Context, req *pb.AddProviderKeyRequest) (*pb.ProviderKey, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	k, err := p.AddKey(ctx, principal(ctx), provider.NewKey{Tenant: id, Provider: req.Provider, Name: req.Name, BaseURL: req.BaseUrl, Value: req.Value})
	return providerKeyMessage(&k), providerError(ctx, err)
}

// ListProviderKeys pages through a tenant's provider keys, masked.
func (s *providerService) ListProviderKeys(ctx context.Context, req *pb.ListProviderKeysRequest) (*pb.ListProviderKeysResponse, error) {
	keys, next, err := listed(ctx, s, "provider-keys", req.TenantId, req.PageToken, req.PageSize,
		func(p Providers, id tenant.ID, after string, limit int) ([]provider.Key, error) {
			return p.Keys(ctx, id, after, limit)
		},
		func(k *provider.Key) string { return k.ID }, providerKeyMessage)
	return &pb.ListProviderKeysResponse{Keys: keys, NextPageToken: next}, err
}

// RotateProviderKey gives a provider key a new value.
func (s *providerService) RotateProviderKey(ctx context.Context, req *pb.RotateProviderKeyRequest) (*pb.ProviderKey, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	k, err := p.RotateKey(ctx, principal(ctx), id, req.SecretId, req.Value)
	return providerKeyMessage(&k), providerError(ctx, err)
}

// RevokeProviderKey ends a provider key.
func (s *providerService) RevokeProviderKey(ctx context.Context, req *pb.RevokeProviderKeyRequest) (*pb.RevokeProviderKeyResponse, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	return &pb.RevokeProviderKeyResponse{}, providerError(ctx, p.RevokeKey(ctx, principal(ctx), id, req.SecretId))
}

// ThrowKillSwitch stops calls.
func (s *providerService) ThrowKillSwitch(ctx context.Context, req *pb.ThrowKillSwitchRequest) (*pb.KillSwitch, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	w, err := p.Kill(ctx, principal(ctx), id, req.Scope, req.Subject, req.Reason)
	return switchMessage(&w), providerError(ctx, err)
}

// ListKillSwitches pages through a tenant's switches.
func (s *providerService) ListKillSwitches(ctx context.Context, req *pb.ListKillSwitchesRequest) (*pb.ListKillSwitchesResponse, error) {
	list, next, err := listed(ctx, s, "kill-switches", req.TenantId, req.PageToken, req.PageSize,
		func(p Providers, id tenant.ID, after string, limit int) ([]provider.Switch, error) {
			return p.Switches(ctx, id, after, limit)
		},
		func(w *provider.Switch) string { return w.ID }, switchMessage)
	return &pb.ListKillSwitchesResponse{Switches: list, NextPageToken: next}, err
}

// LiftKillSwitch lets calls go again.
func (s *providerService) LiftKillSwitch(ctx context.Context, req *pb.LiftKillSwitchRequest) (*pb.LiftKillSwitchResponse, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	return &pb.LiftKillSwitchResponse{}, providerError(ctx, p.Lift(ctx, principal(ctx), id, req.SwitchId))
}

// SetKeyLimit sets what one key may do in a minute.
func (s *providerService) SetKeyLimit(ctx context.Context, req *pb.SetKeyLimitRequest) (*pb.KeyLimit, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	l, err := p.SetLimit(ctx, principal(ctx), provider.Limit{
		Tenant: id, KeyID: req.KeyId, RequestsPerMinute: req.RequestsPerMinute, TokensPerMinute: req.TokensPerMinute,
	})
	return limitMessage(&l), providerError(ctx, err)
}

// ListKeyLimits pages through a tenant's rate limits.
func (s *providerService) ListKeyLimits(ctx context.Context, req *pb.ListKeyLimitsRequest) (*pb.ListKeyLimitsResponse, error) {
	list, next, err := listed(ctx, s, "key-limits", req.TenantId, req.PageToken, req.PageSize,
		func(p Providers, id tenant.ID, after string, limit int) ([]provider.Limit, error) {
			return p.Limits(ctx, id, after, limit)
		},
		func(l *provider.Limit) string { return l.KeyID }, limitMessage)
	return &pb.ListKeyLimitsResponse{Limits: list, NextPageToken: next}, err
}

// SetSpendCap sets or ends a cap.
func (s *providerService) SetSpendCap(ctx context.Context, req *pb.SetSpendCapRequest) (*pb.SetSpendCapResponse, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	var usd *money.Sum
	if req.UsdPerMonth != nil {
		v, err := money.ParseSum(*req.UsdPerMonth)
		if err != nil {
			return nil, invalid("usd_per_month", "syntax", "must be a decimal with at most 12 places")
		}
		usd = &v
	}
	return &pb.SetSpendCapResponse{}, providerError(ctx, p.SetCap(ctx, principal(ctx), id, req.Scope, req.Subject, usd))
}

// ListSpendCaps lists a tenant's caps and what was spent under them.
func (s *providerService) ListSpendCaps(ctx context.Context, req *pb.ListSpendCapsRequest) (*pb.ListSpendCapsResponse, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	list, err := p.Caps(ctx, id)
	if err != nil {
		return nil, providerError(ctx, err)
	}
	res := &pb.ListSpendCapsResponse{}
	for i := range list {
		c := &list[i]
		res.Caps = append(res.Caps, &pb.SpendCap{
			TenantId: string(c.Tenant), Scope: c.Scope, Subject: c.Subject, UsdPerMonth: c.USD.String(), SpentUsd: c.Spent.String(),
			SetAt: timestamppb.New(c.SetAt), SetBy: c.SetBy,
		})
	}
	return res, nil
}

// GetCapture says what of its calls a tenant lets the proxy keep.
func (s *providerService) GetCapture(ctx context.Context, req *pb.GetCaptureRequest) (*pb.Capture, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	c, err := p.Capture(ctx, id)
	return captureMessage(&c), providerError(ctx, err)
}

// SetCapture sets it.
func (s *providerService) SetCapture(ctx context.Context, req *pb.SetCaptureRequest) (*pb.Capture, error) {
	p, id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	c, err := p.SetCapture(ctx, principal(ctx), id, req.PromptDigests)
	return captureMessage(&c), providerError(ctx, err)
}

// providerError turns what the store says into the API's errors. None of its
// texts holds a key.
func providerError(ctx context.Context, err error) error {
	var bad *provider.FieldError
	switch {
	case errors.As(err, &bad):
		return invalid(bad.Field, bad.Rule, "%s", bad.Text)
	case errors.Is(err, egress.ErrURL):
		return invalid("base_url", "address", "%v", err)
	case errors.Is(err, provider.ErrExists):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case errors.Is(err, provider.ErrNotFound):
		return ErrNotFound
	}
	return secretError(ctx, err)
}

func providerKeyMessage(k *provider.Key) *pb.ProviderKey {
	return &pb.ProviderKey{
		SecretId: k.ID, TenantId: string(k.Tenant), Provider: k.Provider, Name: k.Name, BaseUrl: k.BaseURL, Masked: k.Masked, Version: int32(k.Version),
		CreatedAt: timestamppb.New(k.CreatedAt), CreatedBy: k.CreatedBy, RotatedAt: timestamp(k.RotatedAt), RotateBy: timestamp(k.RotateBy),
		PreviousUntil: timestamp(k.PreviousUntil), RevokedAt: timestamp(k.RevokedAt),
	}
}

func switchMessage(w *provider.Switch) *pb.KillSwitch {
	return &pb.KillSwitch{
		SwitchId: w.ID, TenantId: string(w.Tenant), Scope: w.Scope, Subject: w.Subject, Reason: w.Reason,
		CreatedAt: timestamppb.New(w.CreatedAt), CreatedBy: w.CreatedBy, LiftedAt: timestamp(w.LiftedAt), LiftedBy: w.LiftedBy,
	}
}

func limitMessage(l *provider.Limit) *pb.KeyLimit {
	return &pb.KeyLimit{
		TenantId: string(l.Tenant), KeyId: l.KeyID, RequestsPerMinute: l.RequestsPerMinute, TokensPerMinute: l.TokensPerMinute,
		SetAt: timestamppb.New(l.SetAt), SetBy: l.SetBy,
	}
}

func captureMessage(c *provider.Capture) *pb.Capture {
	return &pb.Capture{TenantId: string(c.Tenant), PromptDigests: c.PromptDigests, SetAt: timestamp(c.SetAt), SetBy: c.SetBy}
}
