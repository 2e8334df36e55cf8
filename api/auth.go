package api

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// contextKey keys what a request carries.
type contextKey int

const (
	callerKey    contextKey = iota // the Principal that was authenticated
	permittedKey                   // the same, once Server.call has let it in
)

// callerOf is who calls, whatever they may do.
func callerOf(ctx context.Context) authn.Principal {
	p, _ := ctx.Value(callerKey).(authn.Principal)
	return p
}

// principal is the caller of a service. A context that did not come by
// Server.call has none: it is nobody's, and may nothing.
func principal(ctx context.Context) authn.Principal {
	p, _ := ctx.Value(permittedKey).(authn.Principal)
	return p
}

func requestIDOf(ctx context.Context) string { return authn.PeerOf(ctx).RequestID }

// tenantOf is the tenant of a request: the one it names, else the only one of
// the credential. It is the check that every method with a tenant makes first.
func tenantOf(ctx context.Context, name string) (tenant.ID, error) {
	p := principal(ctx)
	if name == "" {
		if id, ok := p.Single(); ok {
			return id, nil
		}
		return "", invalid("tenant_id", "required", "is required: the credential is not of exactly one tenant")
	}
	id, err := tenant.ParseID(name)
	if err != nil {
		return "", invalid("tenant_id", "syntax", "must match [a-z0-9][a-z0-9-]{0,62}")
	}
	if !p.May(id) {
		return "", errForbidden
	}
	return id, nil
}

// requestIDHeader carries the request's id both ways.
const requestIDHeader = "X-Request-Id"

// newRequestID takes the client's id when it is a plain word, else a random one.
// One that looks like a credential of ours is none: ids are kept and shown.
func newRequestID(given string) string {
	if len(given) == 0 || len(given) > 64 || strings.Contains(given, authn.TokenPrefix) {
		return rand.Text()
	}
	for _, c := range []byte(given) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-", c) >= 0) {
			return rand.Text()
		}
	}
	return given
}

// authenticateHTTP puts the caller into the request's context.
func (s *Server) authenticateHTTP(r *http.Request, requestID string) (*http.Request, error) {
	ctx := authn.WithPeer(r.Context(), authn.HTTPPeer(r, requestID))
	p, err := s.deps.Auth.Authenticate(ctx, authn.BearerToken(r.Header.Get("Authorization")))
	if err != nil {
		return nil, err
	}
	return r.WithContext(context.WithValue(ctx, callerKey, p)), nil
}

// withGRPCPeer puts into the context where a gRPC call comes from.
func withGRPCPeer(ctx context.Context, requestID string) context.Context {
	p := authn.Peer{Client: first(ctx, "user-agent"), RequestID: requestID}
	if from, ok := peer.FromContext(ctx); ok {
		p.Addr = authn.Host(from.Addr.String())
	}
	return authn.WithPeer(ctx, p)
}

// peered is a stream whose context says where it comes from.
type peered struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (p peered) Context() context.Context { return p.ctx }

// ServerOptions are the options that a gRPC server needs to serve a Server:
// credentials, authentication, time limits and the translation of errors.
func (s *Server) ServerOptions() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.MaxHeaderListSize(maxHeaderBytes),
	}
	if s.opts.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(s.opts.TLS)))
	}
	return opts
}

// open are the methods that need no credential here: health and reflection tell
// nothing of any tenant, and the ingest edge authenticates by itself.
func open(method string) bool {
	return strings.HasPrefix(method, "/grpc.health.v1.Health/") ||
		strings.HasPrefix(method, "/grpc.reflection.") ||
		method == pb.IngestService_SendEvents_FullMethodName ||
		method == pb.IngestService_StreamEvents_FullMethodName
}

// unary authenticates, bounds the time, and translates errors.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (res any, err error) {
	id := newRequestID(first(ctx, requestIDHeader))
	ctx = withGRPCPeer(ctx, id)
	if open(info.FullMethod) {
		return handler(ctx, req)
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, id)) // fails only after the answer began
	defer func() {
		if r := recover(); r != nil {
			s.log.ErrorContext(ctx, "panic", "method", info.FullMethod, "request_id", id, "panic", r)
			err = errPanic
		}
		if err != nil {
			res, err = nil, s.fail(ctx, info.FullMethod, id, err).status(id).Err()
		}
	}()
	p, err := s.deps.Auth.Authenticate(ctx, authn.BearerToken(first(ctx, "authorization")))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, callerKey, p), s.timeout(info.FullMethod))
	defer cancel()
	return s.call(ctx, info.FullMethod, req, handler)
}

// stream serves the open methods, and packages: no other method is a stream.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	id := newRequestID(first(ss.Context(), requestIDHeader))
	ctx := withGRPCPeer(ss.Context(), id)
	if open(info.FullMethod) {
		return handler(srv, peered{ss, ctx})
	}
	_ = ss.SetHeader(metadata.Pairs(requestIDHeader, id)) // fails only after the answer began
	defer func() {
		if r := recover(); r != nil {
			s.log.ErrorContext(ctx, "panic", "method", info.FullMethod, "request_id", id, "panic", r)
			err = errPanic
		}
		if err != nil {
			err = s.fail(ctx, info.FullMethod, id, err).status(id).Err()
		}
	}()
	if info.FullMethod != pb.EvidenceService_GetEvidence_FullMethodName {
		return errUnimplemented
	}
	p, err := s.deps.Auth.Authenticate(ctx, authn.BearerToken(first(ctx, "authorization")))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, callerKey, p), s.timeout(info.FullMethod))
	defer cancel()
	return handler(srv, peered{ss, ctx})
}

func first(ctx context.Context, key string) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// fail translates an error and logs the cause of what is our fault.
func (s *Server) fail(ctx context.Context, method, requestID string, err error) *failure {
	f := translate(err)
	if f.internal {
		s.log.ErrorContext(ctx, "request failed", "method", method, "request_id", requestID, "subject", callerOf(ctx).Subject, "err", err)
	}
	return &f
}
