package otlp

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Edge is where calls go. *ingest.Edge is one.
type Edge interface {
	Receive(w http.ResponseWriter, r *http.Request, form ingest.Form, use func(ingest.Received) error) error
	ReceiveGRPC(ctx context.Context, decode func(any) error, use func(ingest.Received) error) error
	Submit(ctx context.Context, who authn.Principal, events []event.Event) (ingest.Outcome, error)
	TelemetryTenant(rcv ingest.Received) (tenant.ID, error)
	RefuseTelemetry(rcv ingest.Received, producer, rule string, n int)
}

// doors are what all signals go through.
type doors struct {
	edge     Edge
	gpus     Relay
	gateways *Gateways
}

const (
	typeJSON  = "application/json"
	typeProto = "application/x-protobuf"
)

// Handler serves the paths of Paths by OTLP/HTTP; gpus takes what is measured of
// GPUs, and what went through gateways is not billed again. It answers 200 with a partial
// success when parts were refused, and 503 with Retry-After when a call could not be
// made durable: sent again, what is durable counts once.
func Handler(edge Edge, gpus Relay, gateways *Gateways) http.Handler {
	d := &doors{edge, gpus, gateways}
	mux := http.NewServeMux()
	for i := range signals {
		s := &signals[i]
		mux.HandleFunc(s.path, func(w http.ResponseWriter, r *http.Request) { s.serveHTTP(d, w, r) })
	}
	return mux
}

func (s *signal) serveHTTP(d *doors, w http.ResponseWriter, r *http.Request) {
	form := ingest.Form{
		Accepts: func(media string) bool { return media == typeJSON || media == typeProto },
		Use:     typeProto + " or " + typeJSON, MaxBytes: ingest.MaxDoorBytes,
	}
	json := false
	var answer proto.Message
	err := d.edge.Receive(w, r, form, func(rcv ingest.Received) (err error) {
		json = rcv.Media == typeJSON
		answer, err = s.export(r.Context(), d, rcv, json)
		return err
	})
	if err != nil {
		s.fail(w, ingest.AsRequestError(err), json)
		return
	}
	write(w, http.StatusOK, answer, json)
}

// export sends what is in a request and makes its answer.
func (s *signal) export(ctx context.Context, d *doors, rcv ingest.Received, json bool) (proto.Message, error) {
	b, err := s.decode(rcv.Body, json, &batch{tenant: rcv.Tenant, gateways: d.gateways, peer: authn.PeerOf(ctx).Addr}, rcv.Header)
	if err != nil {
		return nil, err
	}
	if len(b.events) > 0 {
		out, err := d.edge.Submit(ctx, rcv.Principal, b.events)
		if err != nil {
			return nil, err
		}
		b.settle(out)
	}
	if err := b.relay(ctx, d.edge, d.gpus, rcv); err != nil {
		return nil, err
	}
	b.countElsewhere(d.edge, rcv)
	return s.answer(int64(b.rejected), b.message), nil
}

// fail answers with the google.rpc.Status that OTLP wants.
func (s *signal) fail(w http.ResponseWriter, err *ingest.RequestError, json bool) {
	if d := err.RetryAfter(); d > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((d+time.Second-1)/time.Second)))
	}
	if err.Status() == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="tallystick", Bearer realm="tallystick"`)
	}
	st, _ := status.FromError(err.GRPC())
	write(w, err.Status(), st.Proto(), json)
}

func write(w http.ResponseWriter, code int, m proto.Message, json bool) {
	media, marshal := typeProto, proto.Marshal
	if json {
		media, marshal = typeJSON, protojson.Marshal
	}
	body, err := marshal(m)
	if err != nil {
		code, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that has gone sends it again
}

// Register serves OTLP/gRPC. The server must have been made with
// ingest.DoorServerOptions.
func Register(server grpc.ServiceRegistrar, edge Edge, gpus Relay, gateways *Gateways) {
	d := &doors{edge, gpus, gateways}
	for i := range signals {
		s := &signals[i]
		server.RegisterService(&grpc.ServiceDesc{
			ServiceName: s.rpc,
			HandlerType: (*any)(nil),
			Methods: []grpc.MethodDesc{{
				MethodName: "Export",
				Handler: func(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
					handle := func(ctx context.Context, _ any) (any, error) { return s.serveGRPC(ctx, d, decode) }
					if interceptor == nil {
						return handle(ctx, nil)
					}
					return interceptor(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/" + s.rpc + "/Export"}, handle)
				},
			}},
		}, nil)
	}
}

func (s *signal) serveGRPC(ctx context.Context, d *doors, decode func(any) error) (answer proto.Message, err error) {
	err = d.edge.ReceiveGRPC(ctx, decode, func(rcv ingest.Received) (err error) {
		answer, err = s.export(ctx, d, rcv, false)
		return err
	})
	if err == nil {
		return answer, nil
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK { // of the transport
		return nil, err
	}
	return nil, ingest.AsRequestError(err).GRPC()
}
