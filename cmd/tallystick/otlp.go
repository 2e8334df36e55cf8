package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/callback"
	"github.com/tallystick/tallystick/ingest/otlp"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/transport"

	"github.com/tallystick/tallystick/ingest"
)

// otlpAddrs are where OTLP is served; "" is not.
type otlpAddrs struct{ grpc, http string }

// mountDoors serves the front doors beside our own API, on its address.
func (a *app) mountDoors(server *api.Server) {
	for _, path := range otlp.Paths() {
		server.Mount("POST "+path, authn.TellPeer(otlp.Handler(a.edge, a.gpuRelay, &a.gateways)))
	}
	server.Mount("POST "+callback.CloudEventsPath, authn.TellPeer(callback.CloudEvents(a.edge)))
	server.Mount("POST "+callback.LiteLLMPath, authn.TellPeer(callback.LiteLLM(a.edge)))
}

// Limits of OTLP's own listeners.
const (
	otlpHeaderTimeout  = 10 * time.Second
	otlpIdleTimeout    = 2 * time.Minute
	otlpMaxHeaderBytes = 64 << 10
)

// startOTLP serves OTLP on its own ports, where exporters look for it.
func (a *app) startOTLP(ctx context.Context, tlsConfig *tls.Config) (err error) {
	opts := append(ingest.DoorServerOptions(), grpc.UnaryInterceptor(tellPeer), grpc.MaxHeaderListSize(otlpMaxHeaderBytes))
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	grpcServer := grpc.NewServer(opts...)
	otlp.Register(grpcServer, a.edge, a.gpuRelay, &a.gateways)
	a.otlp.grpc, err = a.listenOTLP(ctx, "otlp.grpc", a.cfg.OTLP.GRPCListen, config.DefaultOTLPGRPCListen, tlsConfig != nil, func(ctx context.Context, l net.Listener) error {
		return serveGRPC(ctx, grpcServer, l)
	})
	if err != nil {
		return err
	}
	httpServer := &http.Server{
		Handler: transport.HSTS(authn.TellPeer(otlp.Handler(a.edge, a.gpuRelay, &a.gateways))), ReadHeaderTimeout: otlpHeaderTimeout, IdleTimeout: otlpIdleTimeout,
		MaxHeaderBytes: otlpMaxHeaderBytes, TLSConfig: tlsConfig,
	}
	a.otlp.http, err = a.listenOTLP(ctx, "otlp.http", a.cfg.OTLP.HTTPListen, config.DefaultOTLPHTTPListen, tlsConfig != nil, func(ctx context.Context, l net.Listener) error {
		return serveHTTP(ctx, httpServer, l)
	})
	return err
}

// listenOTLP opens one of OTLP's ports. The ports are everybody's: where another
// collector has a default one already, we go without it and say so.
func (a *app) listenOTLP(ctx context.Context, name, addr, usual string, encrypted bool, serve func(context.Context, net.Listener) error) (string, error) {
	if addr == "" {
		return "", nil
	}
	at, err := a.listen(ctx, name, addr, encrypted, serve)
	if err != nil && addr == usual && errors.Is(err, syscall.EADDRINUSE) {
		a.log.Warn("another program has a port of OTLP; it is not served there", "setting", name+"_listen", "addr", addr)
		return "", nil
	}
	return at, err
}

// tellPeer has the calls of a gRPC server carry where they come from.
func tellPeer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if p, ok := peer.FromContext(ctx); ok {
		ctx = authn.WithPeer(ctx, authn.Peer{Addr: authn.Host(p.Addr.String())})
	}
	return handle(ctx, req)
}

// otlpEnvironment is what an exporter's environment needs to send here, with the
// token read from where the shell finds it.
func (a *app) otlpEnvironment(tenant string) string {
	if a.otlp.http == "" {
		return ""
	}
	return fmt.Sprintf(`export OTEL_EXPORTER_OTLP_ENDPOINT=%s OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%%20$(cat %s),x-tallystick-tenant=%s"`,
		baseURL(a.cfg, a.otlp.http), a.tokenPath(), tenant)
}
