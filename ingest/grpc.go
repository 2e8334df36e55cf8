package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// errorDomain is the domain of the ErrorInfo of every status.
const errorDomain = "tallystick"

const (
	// streamWindow is how many frames of one stream may wait for Kafka at once.
	streamWindow = 8
	// maxStreamRefusals bounds what a stream's answer lists.
	maxStreamRefusals = 10_000
)

// Fates says what became of an event. The API stage has one.
type Fates interface {
	GetEvent(context.Context, *tallystickv1.GetEventRequest) (*tallystickv1.EventFate, error)
}

// RegisterGRPC serves tallystick.v1.IngestService. The server must have been
// made with ServerOptions. The metadata "authorization", "x-tallystick-tenant"
// and "x-tallystick-unknown-fields" mean what the HTTP headers of these names
// mean. GetEvent is passed on to fates.
func (e *Edge) RegisterGRPC(s grpc.ServiceRegistrar, fates Fates) {
	desc := tallystickv1.IngestService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		if desc.Methods[i].MethodName == "SendEvents" {
			desc.Methods[i].Handler = handleSendEvents
		}
	}
	desc.Streams = slices.Clone(desc.Streams)
	for i := range desc.Streams {
		if desc.Streams[i].StreamName == "StreamEvents" {
			desc.Streams[i].Handler = handleStreamEvents
		}
	}
	s.RegisterService(&desc, &service{edge: e, fates: fates})
}

// service is the IngestService. SendEvents and StreamEvents arrive by the
// handlers below, which leave the request in its bytes.
type service struct {
	tallystickv1.UnimplementedIngestServiceServer
	edge  *Edge
	fates Fates
}

// GetEvent asks the API stage.
func (s *service) GetEvent(ctx context.Context, req *tallystickv1.GetEventRequest) (*tallystickv1.EventFate, error) {
	return s.fates.GetEvent(ctx, req)
}

// SendEvents is for callers in the same process; what comes over the network
// does not pass through here.
func (s *service) SendEvents(ctx context.Context, req *tallystickv1.SendEventsRequest) (*tallystickv1.SendEventsResponse, error) {
	b, err := proto.Marshal(req)
	if err != nil {
		return nil, statusError(bodyProblem(err))
	}
	return s.edge.sendEvents(ctx, b)
}

func handleSendEvents(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	req := new(rawRequest)
	if err := dec(req); err != nil {
		return nil, err
	}
	defer req.free()
	handle := func(ctx context.Context, _ any) (any, error) {
		return srv.(*service).edge.sendEvents(ctx, req.bytes())
	}
	if interceptor == nil {
		return handle(ctx, req)
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: tallystickv1.IngestService_SendEvents_FullMethodName}
	return interceptor(ctx, req, info, handle)
}

func handleStreamEvents(srv any, stream grpc.ServerStream) error {
	return srv.(*service).edge.streamEvents(stream)
}

// sendEvents serves one SendEventsRequest.
func (e *Edge) sendEvents(ctx context.Context, b []byte) (*tallystickv1.SendEventsResponse, error) {
	c, p := e.callerOf(ctx)
	if p == nil {
		p = e.enter(int64(len(b)))
	}
	if p != nil {
		e.refuseRequest(c, p.reason())
		return nil, statusError(p)
	}
	defer e.leave(int64(len(b)))
	f := e.begin(c)
	defer e.end(f)
	if err := f.read(newSource(b, typeProto, c.lenient)); err != nil {
		p := bodyProblem(err)
		e.refuseRequest(c, p.reason())
		return nil, statusError(p)
	}
	o := f.send(ctx)
	res := response(o.accepted, o.refusals)
	if o.unavailable != nil {
		e.logUnavailable(ctx, o)
		return nil, statusError(notDurable(o.full), res)
	}
	return res, nil
}

// enter takes a place and room, or says that there is none.
func (e *Edge) enter(size int64) *problem {
	if !e.gate.reserve(size) {
		return busy()
	}
	if !e.gate.enter() {
		e.gate.release(size)
		return busy()
	}
	return nil
}

func (e *Edge) leave(size int64) {
	e.gate.leave()
	e.gate.release(size)
}

// callerOf authenticates the caller of a gRPC method.
func (e *Edge) callerOf(ctx context.Context) (caller, *problem) {
	md, _ := metadata.FromIncomingContext(ctx)
	authorization := ""
	if v := md.Get("authorization"); len(v) > 0 {
		authorization = v[0]
	}
	c, err := e.caller(ctx, authorization, md.Get(TenantHeader), md.Get(UnknownFieldsHeader))
	return c, e.callerProblem(ctx, err)
}

// eventStream is the state of one StreamEvents call.
type eventStream struct {
	edge   *Edge
	caller caller
	ctx    context.Context // the stream's; it carries no deadline of its own
	window chan struct{}
	frames sync.WaitGroup

	mu       sync.Mutex // protects what follows
	accepted int
	refusals []Refusal
	problem  *problem // why the stream ends early
}

// streamEvents takes frames until the client has no more. Up to streamWindow
// of them wait for Kafka at once; then the client is held back by flow control.
// The first frame that cannot be taken ends the stream with an error, whose
// details say how many events are durable all the same.
func (e *Edge) streamEvents(stream grpc.ServerStream) error {
	ctx := stream.Context()
	c, p := e.callerOf(ctx)
	if p != nil {
		e.refuseRequest(c, p.reason())
		return statusError(p)
	}
	s := &eventStream{edge: e, caller: c, ctx: ctx, window: make(chan struct{}, streamWindow)}
	err := s.receive(stream)
	s.frames.Wait()
	slices.SortFunc(s.refusals, func(a, b Refusal) int { return cmp.Compare(a.Index, b.Index) })
	switch {
	case err != nil: // the client has gone or sent what is no message
		return err
	case s.problem != nil:
		return statusError(s.problem, response(s.accepted, s.refusals))
	}
	return stream.SendMsg(response(s.accepted, s.refusals))
}

// receive reads frames until the end of the stream or the first problem.
func (s *eventStream) receive(stream grpc.ServerStream) error {
	for first := 0; !s.stopped(); {
		req := new(rawRequest)
		switch err := stream.RecvMsg(req); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		// Again for each frame: a credential that was revoked ends its streams.
		_, p := s.edge.callerOf(s.ctx)
		n := 0
		if p == nil {
			n, p = s.frame(req, first)
		} else {
			req.free()
		}
		if p != nil {
			s.edge.refuseRequest(s.caller, p.reason())
			s.stop(p)
			return nil
		}
		first += n
	}
	return nil
}

// frame validates the events of one frame and leaves them to a goroutine that
// waits for Kafka. It returns how many there are.
func (s *eventStream) frame(req *rawRequest, first int) (int, *problem) {
	e, size := s.edge, int64(len(req.bytes()))
	if p := s.enter(size); p != nil {
		req.free()
		return 0, p
	}
	f := e.begin(s.caller)
	leave := func() {
		e.end(f)
		req.free()
		e.leave(size)
		<-s.window
	}
	if err := f.read(newSource(req.bytes(), typeProto, s.caller.lenient)); err != nil {
		leave()
		return 0, bodyProblem(err)
	}
	n := f.total
	s.frames.Go(func() {
		defer leave()
		s.settle(f.send(s.ctx), first)
	})
	return n, nil
}

// enter waits for a place in the stream's window and in the gate.
func (s *eventStream) enter(size int64) *problem {
	select {
	case s.window <- struct{}{}:
	case <-s.ctx.Done():
		return busy()
	}
	if err := s.edge.gate.wait(s.ctx); err == nil {
		if s.edge.gate.reserve(size) {
			return nil
		}
		s.edge.gate.leave()
	}
	<-s.window
	return busy()
}

// settle adds a frame's outcome to the stream's.
func (s *eventStream) settle(o outcome, first int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted += o.accepted
	for _, r := range o.refusals {
		r.Index += first
		s.refusals = append(s.refusals, r)
	}
	switch {
	case s.problem != nil:
	case o.unavailable != nil:
		s.edge.logUnavailable(s.ctx, o)
		s.problem = notDurable(o.full)
	case len(s.refusals) > maxStreamRefusals:
		s.problem = newProblem(http.StatusBadRequest, reasonTooManyRefusals, fmt.Sprintf("more than %d refusals in one stream", maxStreamRefusals))
	}
}

func (s *eventStream) stop(p *problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem == nil {
		s.problem = p
	}
}

func (s *eventStream) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem != nil
}

func response(accepted int, refusals []Refusal) *tallystickv1.SendEventsResponse {
	res := &tallystickv1.SendEventsResponse{Accepted: int64(accepted), Refused: int64(len(refusals))}
	for _, r := range refusals {
		res.Refusals = append(res.Refusals, &tallystickv1.EventRefusal{
			Index: int64(r.Index), EventId: r.EventID, Field: r.Field, Rule: r.Rule, Message: r.Message,
		})
	}
	return res
}

// statusCodes translates the reasons of problems; HTTP has its own in Status.
var statusCodes = map[string]codes.Code{
	reasonUnauthenticated: codes.Unauthenticated,
	reasonForbidden:       codes.PermissionDenied,
	reasonHeader:          codes.InvalidArgument,
	reasonTooMany:         codes.InvalidArgument,
	reasonNoEvents:        codes.InvalidArgument,
	reasonMalformed:       codes.InvalidArgument,
	reasonTooManyRefusals: codes.ResourceExhausted,
	reasonUnavailable:     codes.Unavailable,
	reasonBusy:            codes.Unavailable,
}

// maxDetailRefusals keeps a status within what fits into HTTP/2 trailers.
const maxDetailRefusals = 20

// statusError is the problem as a gRPC status with ErrorInfo, RetryInfo and,
// where events were read, the results (of the refusals, the first 20).
func statusError(p *problem, res ...*tallystickv1.SendEventsResponse) error {
	code, ok := statusCodes[p.reason()]
	if !ok {
		code = codes.Internal
	}
	details := []protoadapt.MessageV1{
		protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: strings.ToUpper(p.reason()), Domain: errorDomain}),
	}
	if p.retryAfter > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(p.retryAfter)}))
	}
	for _, r := range res {
		r.Refusals = r.Refusals[:min(len(r.Refusals), maxDetailRefusals)]
		details = append(details, protoadapt.MessageV1Of(r))
	}
	st := status.New(code, p.Detail)
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

// notDurable is the problem of events that Kafka did not acknowledge.
func notDurable(full bool) *problem {
	p := newProblem(http.StatusServiceUnavailable, reasonUnavailable, "not every event is durable; send all of them again")
	p.retryAfter = retryLater
	if full {
		p.retryAfter = retrySoon
	}
	return p
}
