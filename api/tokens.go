package api

import (
	"context"
	"errors"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Tokens makes, lists and revokes API tokens, and audits it in the same
// transaction; *authn.Tokens does.
type Tokens interface {
	Create(ctx context.Context, by authn.Principal, n authn.NewAPIToken) (tok authn.Token, secret string, err error)
	List(ctx context.Context, id tenant.ID, after string, limit int) ([]authn.Token, error)
	Revoke(ctx context.Context, by authn.Principal, id tenant.ID, tokenID string) error
}

// accessService serves tallystick.v1.AccessService.
type accessService struct {
	pb.UnimplementedAccessServiceServer
	s *Server
}

// CreateToken makes a token; its text is in the answer and nowhere else.
func (a *accessService) CreateToken(ctx context.Context, req *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	if a.s.deps.Tokens == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	scopes, err := authn.ParseScopes(req.Scopes)
	if err != nil {
		return nil, invalid("scopes", "unknown", "%v", err)
	}
	n := authn.NewAPIToken{Tenant: id, Name: req.Name, Scopes: scopes}
	if req.ExpiresAt != nil {
		if err := req.ExpiresAt.CheckValid(); err != nil {
			return nil, invalid("expires_at", "syntax", "is no time")
		}
		n.ExpiresAt = req.ExpiresAt.AsTime()
	}
	tok, secret, err := a.s.deps.Tokens.Create(ctx, principal(ctx), n)
	switch {
	case errors.Is(err, authn.ErrToken), errors.Is(err, authn.ErrScope):
		return nil, invalid("token", "refused", "%v", err)
	case err != nil:
		return nil, classifyStore(ctx, "make a token", err)
	}
	return &pb.CreateTokenResponse{Token: tokenMessage(&tok), Secret: secret}, nil
}

// ListTokens pages through a tenant's tokens.
func (a *accessService) ListTokens(ctx context.Context, req *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	if a.s.deps.Tokens == nil {
		return nil, errUnimplemented
	}
	id, after, size, err := a.page(ctx, "tokens", req.TenantId, req.PageToken, req.PageSize)
	if err != nil {
		return nil, err
	}
	list, err := a.s.deps.Tokens.List(ctx, id, after, size+1)
	if err != nil {
		return nil, classifyStore(ctx, "list tokens", err)
	}
	res := &pb.ListTokensResponse{}
	for i := range list[:min(size, len(list))] {
		res.Tokens = append(res.Tokens, tokenMessage(&list[i]))
	}
	if len(list) > size {
		res.NextPageToken = a.s.pages.token("tokens/"+string(id), list[size-1].ID)
	}
	return res, nil
}

// page reads what every list of a tenant begins with.
func (a *accessService) page(ctx context.Context, what, tenantID, token string, n int32) (id tenant.ID, after string, size int, err error) {
	if id, err = tenantOf(ctx, tenantID); err != nil {
		return "", "", 0, err
	}
	if size, err = pageSize(n); err != nil {
		return "", "", 0, err
	}
	after, err = a.s.pages.open(what+"/"+string(id), token)
	return id, after, size, err
}

// RevokeToken ends a token for ever.
func (a *accessService) RevokeToken(ctx context.Context, req *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	if a.s.deps.Tokens == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	err = a.s.deps.Tokens.Revoke(ctx, principal(ctx), id, req.TokenId)
	if errors.Is(err, authn.ErrNoToken) {
		return nil, ErrNotFound
	}
	return &pb.RevokeTokenResponse{}, classifyStore(ctx, "revoke a token", err)
}

func tokenMessage(t *authn.Token) *pb.Token {
	m := &pb.Token{
		TokenId: t.ID, TenantId: string(t.Tenant), Name: t.Name, Scopes: t.Scopes.Names(),
		CreatedAt: timestamppb.New(t.CreatedAt), CreatedBy: t.CreatedBy, ExpiresAt: timestamppb.New(t.ExpiresAt), RevokedBy: t.RevokedBy,
	}
	m.RevokedAt = timestamp(t.RevokedAt)
	return m
}
