package api

import (
	"context"

	"google.golang.org/grpc"

	"github.com/tallystick/tallystick/internal/authn"
)

// AccessRule is what the table says of a method.
func AccessRule(method string) (scope authn.Scope, operator, audited, ok bool) {
	r, ok := access[method]
	return r.scope, r.operator, r.audited || r.action != "", ok
}

// CheckAccess is checkAccess.
func CheckAccess(methods []string) error { return checkAccess(methods) }

// Call is Server.call.
func Call(s *Server, ctx context.Context, method string, req any, handler grpc.UnaryHandler) (any, error) {
	return s.call(ctx, method, req, handler)
}
