package ingest_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/kafka"
)

// fates answers GetEvent with the id that was asked for.
type fates struct{}

func (fates) GetEvent(_ context.Context, r *tallystickv1.GetEventRequest) (*tallystickv1.EventFate, error) {
	return &tallystickv1.EventFate{EventId: r.EventId, State: "unknown"}, nil
}

// newClient serves the edge by gRPC in memory.
func newClient(t testing.TB, e *ingest.Edge, opts ...grpc.ServerOption) tallystickv1.IngestServiceClient {
	t.Helper()
	server := grpc.NewServer(append(ingest.ServerOptions(), opts...)...)
	e.RegisterGRPC(server, fates{})
	lis := bufconn.Listen(1 << 20)
	go server.Serve(lis)
	conn, err := grpc.NewClient("passthrough:///edge", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
	})
	return tallystickv1.NewIngestServiceClient(conn)
}

func as(token string, more ...string) context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), append([]string{"authorization", "Bearer " + token}, more...)...)
}

func usage(id, tenantID string) *tallystickv1.UsageEvent {
	return &tallystickv1.UsageEvent{
		EventId: id, TenantId: tenantID, OccurredAt: timestamppb.New(noon), Provider: "openai", Model: "gpt-5",
		Tokens: &tallystickv1.TokenCounts{Input: 100, Output: 10},
	}
}

func TestGRPCSendEvents(t *testing.T) {
	log := &fakeLog{}
	client := newClient(t, newEdge(t, log))
	bad := usage("e1", "acme")
	bad.Model = ""
	res, err := client.SendEvents(as("admin", "x-tallystick-tenant", "umbrella"), &tallystickv1.SendEventsRequest{
		Events: []*tallystickv1.UsageEvent{usage("e0", "acme"), bad, usage("e2", "")},
	}, grpc.UseCompressor(gzip.Name))
	if err != nil {
		t.Fatal(err)
	}
	if res.Accepted != 2 || res.Refused != 1 || len(res.Refusals) != 1 {
		t.Fatalf("%v", res)
	}
	if r := res.Refusals[0]; r.Index != 1 || r.EventId != "e1" || r.Field != "model" || r.Rule != "required" {
		t.Errorf("refusal %v", r)
	}
	want := []string{
		`produced tenant=acme event_id="e0" model="gpt-5" tokens=[100 0 0 0 10 0 0 0 0 0]`,
		`produced tenant=umbrella event_id="e2" model="gpt-5" tokens=[100 0 0 0 10 0 0 0 0 0]`,
	}
	if got := describe(t, log.take()); !slices.Equal(got, want) {
		t.Errorf("log holds %q", got)
	}
}

// The other method of the service and the server's interceptors see ordinary
// messages, although SendEvents leaves its request in bytes.
func TestGRPCLivesWithOtherMethodsAndInterceptors(t *testing.T) {
	var seen []string
	client := newClient(t, newEdge(t, &fakeLog{}), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			seen = append(seen, info.FullMethod)
			return next(ctx, req)
		}))
	fate, err := client.GetEvent(as("admin"), &tallystickv1.GetEventRequest{EventId: "e7"})
	if err != nil || fate.EventId != "e7" {
		t.Fatalf("GetEvent: %v, %v", fate, err)
	}
	if _, err := client.SendEvents(as("admin"), &tallystickv1.SendEventsRequest{Events: []*tallystickv1.UsageEvent{usage("e0", "acme")}}); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || !strings.HasSuffix(seen[1], "/SendEvents") {
		t.Errorf("interceptor saw %q", seen)
	}
}

func TestGRPCErrors(t *testing.T) {
	many := &tallystickv1.SendEventsRequest{}
	for i := range ingest.MaxEvents + 1 {
		many.Events = append(many.Events, usage(fmt.Sprint(i), "acme"))
	}
	one := &tallystickv1.SendEventsRequest{Events: many.Events[:1]}
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		req    *tallystickv1.SendEventsRequest
		kafka  string
		code   codes.Code
		reason string
		retry  bool
	}{
		{"no token", context.Background(), one, "", codes.Unauthenticated, "UNAUTHENTICATED", false},
		{"wrong token", as("SECRET"), one, "", codes.Unauthenticated, "UNAUTHENTICATED", false},
		{"foreign tenant", as("acme", "x-tallystick-tenant", "umbrella"), one, "", codes.PermissionDenied, "FORBIDDEN", false},
		{"bad header", as("admin", "x-tallystick-unknown-fields", "SECRET"), one, "", codes.InvalidArgument, "BAD_HEADER", false},
		{"too many", as("admin"), many, "", codes.InvalidArgument, "TOO_MANY_EVENTS", false},
		{"none", as("admin"), &tallystickv1.SendEventsRequest{}, "", codes.InvalidArgument, "NO_EVENTS", false},
		{"kafka full", as("admin"), one, "full", codes.Unavailable, "UNAVAILABLE", true},
		{"kafka slow", as("admin"), one, "slow", codes.Unavailable, "UNAVAILABLE", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := newClient(t, newEdge(t, &fakeLog{answer: kafkaAnswers[tc.kafka]}))
			_, err := client.SendEvents(tc.ctx, tc.req)
			reason, retry := "", false
			for _, d := range status.Convert(err).Details() {
				switch d := d.(type) {
				case *errdetails.ErrorInfo:
					reason = d.Reason
				case *errdetails.RetryInfo:
					retry = d.RetryDelay.AsDuration() > 0
				}
			}
			if status.Code(err) != tc.code || reason != tc.reason || retry != tc.retry {
				t.Errorf("code %v reason %q retry %v", status.Code(err), reason, retry)
			}
			if strings.Contains(fmt.Sprint(err), "SECRET") {
				t.Errorf("the error repeats what was sent: %v", err)
			}
		})
	}
}

func TestGRPCStream(t *testing.T) {
	log := &fakeLog{}
	e := newEdge(t, log)
	stream, err := newClient(t, e).StreamEvents(as("acme"))
	if err != nil {
		t.Fatal(err)
	}
	const frames, perFrame = 40, 25
	for i := range frames {
		req := &tallystickv1.SendEventsRequest{}
		for j := range perFrame {
			ev := usage(fmt.Sprintf("e%d", i*perFrame+j), "")
			if j == 3 {
				ev.Tokens.Output = -1
			}
			req.Events = append(req.Events, ev)
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	res, err := stream.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	if res.Accepted != frames*(perFrame-1) || res.Refused != frames || len(res.Refusals) != frames {
		t.Fatalf("accepted %d refused %d listed %d", res.Accepted, res.Refused, len(res.Refusals))
	}
	for i, r := range res.Refusals {
		if want := int64(i*perFrame + 3); r.Index != want || r.EventId != fmt.Sprintf("e%d", want) || r.Field != "tokens.output" {
			t.Fatalf("refusal %d is %v", i, r)
		}
	}
	if got := len(log.take()); got != frames*(perFrame-1) {
		t.Errorf("%d records in the log", got)
	}
	if s := e.Stats(); s.InFlight != 0 {
		t.Errorf("%d places still taken", s.InFlight)
	}
}

// When Kafka goes away in the middle the stream ends with UNAVAILABLE, and the
// details say how many events are durable.
func TestGRPCStreamEndsWhenNotDurable(t *testing.T) {
	var calls atomic.Int32
	log := &fakeLog{answer: func(_ context.Context, _ []kafka.Record, res []kafka.Result) error {
		if calls.Add(1) > 3 {
			return failAll(res, kafka.ErrUnacked)
		}
		return nil
	}}
	e := newEdge(t, log)
	stream, err := newClient(t, e).StreamEvents(as("admin"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		// Sending fails once the server has ended the stream.
		if err := stream.Send(&tallystickv1.SendEventsRequest{Events: []*tallystickv1.UsageEvent{usage(fmt.Sprint(i), "acme")}}); err != nil {
			break
		}
	}
	_, err = stream.CloseAndRecv()
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("the stream ended with %v", err)
	}
	accepted := int64(-1)
	for _, d := range status.Convert(err).Details() {
		if res, ok := d.(*tallystickv1.SendEventsResponse); ok {
			accepted = res.Accepted
		}
	}
	if accepted != 3 || len(log.take()) != 3 || e.Stats().InFlight != 0 {
		t.Errorf("accepted %d, stats %+v", accepted, e.Stats())
	}
}

func TestGRPCStreamRefusesBadFrames(t *testing.T) {
	e := newEdge(t, &fakeLog{})
	stream, err := newClient(t, e).StreamEvents(as("admin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&tallystickv1.SendEventsRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty frame: %v", err)
	}
	stream, err = newClient(t, e).StreamEvents(as("nobody"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stream without a valid token: %v", err)
	}
}
