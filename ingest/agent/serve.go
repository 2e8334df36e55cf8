package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that Codec falls back on
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const (
	// handshakeTimeout bounds TLS and the HTTP/2 preface of a connection.
	handshakeTimeout = 10 * time.Second
	// streamsPerConnection leaves room for a sidecar that speaks for a few agents.
	streamsPerConnection = 100
	keepaliveTime        = 30 * time.Second
	keepaliveTimeout     = 20 * time.Second
	keepaliveLeast       = 5 * time.Second
	maxHeaderListBytes   = 8 << 10
	// Buffers of a connection: thousands of them wait most of the time. What is
	// written goes through buffers that they share (gRPC's default); what is read
	// lies in the buffer of TLS already.
	readBufferBytes, writeBufferBytes = 4 << 10, 16 << 10
	// What a stream and a connection may send unread. They are fixed, so that no
	// connection is measured by pings: an agent's few frames a second need no more,
	// and one larger frame gets its room when it is read.
	streamWindowBytes, connWindowBytes = 256 << 10, 1 << 20
	stopTimeout                        = 15 * time.Second
)

// ErrClientCA says that the authorities of client certificates cannot be used.
var ErrClientCA = errors.New("agent: the client certificate authorities cannot be used")

// Client certificate modes.
const (
	ClientCertsOff      = "off"
	ClientCertsOptional = "optional"
	ClientCertsRequired = "required"
)

// WithClientCerts is a TLS configuration that asks for client certificates: not
// at all, or verifying one that is given, or refusing connections without one.
// They come on top of the hello and never in its place. caFile holds the PEM
// certificates of those who may have issued them.
func WithClientCerts(base *tls.Config, mode, caFile string) (*tls.Config, error) {
	c := base.Clone()
	switch mode {
	case ClientCertsOff:
		return c, nil
	case ClientCertsOptional:
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case ClientCertsRequired:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return nil, fmt.Errorf("%w: mode %q", ErrClientCA, mode)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrClientCA, err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s holds no PEM certificate", ErrClientCA, caFile)
	}
	return c, nil
}

// Serve serves agents on a listener until ctx ends; what they have in flight is
// settled then, and they are told to come again. Run must be going.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	srv := g.server()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		g.stop()
		cut := time.AfterFunc(stopTimeout, srv.Stop)
		defer cut.Stop()
		srv.GracefulStop()
	}()
	bounded := newBounded(l, g.opts.PerAddress, g.opts.MaxConnections, func() { g.stats.refusedIPs.Add(1) })
	if err := srv.Serve(bounded); err != nil {
		return err
	}
	<-stopped
	return nil
}

// server makes the gRPC server, with the limits that a listener in the open
// needs.
func (g *Gateway) server() *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
		grpc.MaxRecvMsgSize(MaxFrameBytes + maxHelloBytes), // a frame, and what proves it
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(streamsPerConnection),
		grpc.MaxHeaderListSize(maxHeaderListBytes),
		grpc.ReadBufferSize(readBufferBytes), grpc.WriteBufferSize(writeBufferBytes),
		grpc.StaticStreamWindowSize(streamWindowBytes), grpc.StaticConnWindowSize(connWindowBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveLeast, PermitWithoutStream: true}),
	}
	if g.opts.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(g.opts.TLS)))
	}
	srv := grpc.NewServer(opts...)
	desc := pb.AgentGateway_ServiceDesc
	desc.Streams = slices.Clone(desc.Streams)
	for i := range desc.Streams {
		desc.Streams[i].Handler = func(srv any, stream grpc.ServerStream) error { return srv.(*service).g.connect(stream) }
	}
	srv.RegisterService(&desc, &service{g: g})
	return srv
}

// service is the AgentGateway. Streams arrive by a handler that leaves frames in
// their bytes.
type service struct {
	pb.UnimplementedAgentGatewayServer
	g *Gateway
}

// SendTelemetry takes one frame.
func (s *service) SendTelemetry(ctx context.Context, req *pb.SendTelemetryRequest) (*pb.SendTelemetryResponse, error) {
	return s.g.sendTelemetry(ctx, req)
}

// rawFrame is an AgentFrame that was not decoded: the gateway walks its bytes
// itself, and passes samples on as they are.
type rawFrame struct{ buf mem.Buffer }

func (r *rawFrame) bytes() []byte { return r.buf.ReadOnlyData() }

func (r *rawFrame) free() { r.buf.Free() }

// codec is the protobuf codec, but for rawFrame.
type codec struct{ encoding.CodecV2 }

// Unmarshal keeps the bytes of a rawFrame and decodes everything else.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*rawFrame); ok {
		r.buf = data.MaterializeToBuffer(mem.DefaultBufferPool())
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
