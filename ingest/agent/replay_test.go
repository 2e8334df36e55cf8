package agent_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/tallystick/tallystick/internal/agentauth"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// replays is how many attacks are made; `make edge` counts them.
const replays = 10_000

// flip changes one bit of one field of a proof, chosen at random, and says which.
func flip(m proto.Message) string {
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for {
		f := fields.Get(pick(fields.Len()))
		v := r.Get(f)
		switch f.Kind() {
		case protoreflect.BytesKind:
			b := append([]byte(nil), v.Bytes()...)
			if len(b) == 0 {
				continue
			}
			b[pick(len(b))] ^= 1 << pick(8)
			r.Set(f, protoreflect.ValueOfBytes(b))
		case protoreflect.StringKind:
			b := []byte(v.String())
			if len(b) == 0 {
				continue
			}
			b[pick(len(b))] ^= 1 << pick(5) // stays ASCII
			r.Set(f, protoreflect.ValueOfString(string(b)))
		case protoreflect.Int64Kind:
			r.Set(f, protoreflect.ValueOfInt64(v.Int()^1<<pick(40)))
		case protoreflect.Uint32Kind:
			r.Set(f, protoreflect.ValueOfUint32(uint32(v.Uint())^1<<pick(30)))
		default:
			continue
		}
		return string(f.Name())
	}
}

func pick(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err)
	}
	return int(i.Int64())
}

// attacker has seen everything that others sent, and sends it again, as it is or
// changed.
type attacker struct {
	w        *world
	conn     *grpc.ClientConn
	hellos   []*pb.HelloProof
	requests []*pb.SendTelemetryRequest
}

// hello tries one hello on a stream of the attacker's own; it returns whether it
// was admitted.
func (a *attacker) hello(ctx context.Context, conn *grpc.ClientConn, h *pb.HelloProof) (bool, error) {
	s, err := open(ctx, conn, agentauth.Credential{}, 0)
	if err != nil {
		return false, err
	}
	defer s.cancel()
	switch err := s.greet(h); status.Code(err) {
	case codes.OK:
		return true, nil
	case codes.Unauthenticated, codes.InvalidArgument:
		return false, nil
	default:
		return false, err
	}
}

func (a *attacker) request(ctx context.Context, r *pb.SendTelemetryRequest) (bool, error) {
	_, err := pb.NewAgentGatewayClient(a.conn).SendTelemetry(ctx, r)
	switch status.Code(err) {
	case codes.OK:
		return true, nil
	case codes.Unauthenticated, codes.InvalidArgument:
		return false, nil
	default:
		return false, err
	}
}

// attack makes the n-th attack; what says which.
func (a *attacker) attack(ctx context.Context, n int) (admitted bool, what string, err error) {
	h := proto.Clone(a.hellos[pick(len(a.hellos))]).(*pb.HelloProof)
	r := proto.Clone(a.requests[pick(len(a.requests))]).(*pb.SendTelemetryRequest)
	switch n % 5 {
	case 0: // as it was, on another stream of the same connection, or on another connection
		what = "a hello again"
		admitted, err = a.hello(ctx, a.conn, h)
	case 1:
		what = "a hello of a challenge with a field changed: " + flip(h)
		admitted, err = a.hello(ctx, a.conn, h)
	case 2:
		admitted, what, err = a.flipped(ctx)
	case 3:
		what = "a request again"
		admitted, err = a.request(ctx, r)
	case 4:
		// A new nonce or time alone would make it new if the mac did not cover it.
		what = "a request with a field changed: " + flip(r)
		admitted, err = a.request(ctx, r)
	}
	return admitted, what, err
}

// flipped answers a fresh challenge with a proof that holds but for one bit.
func (a *attacker) flipped(ctx context.Context) (admitted bool, what string, err error) {
	s, err := open(ctx, a.conn, a.w.agent("acme", "agt_1"), 1)
	if err != nil {
		return false, "", err
	}
	defer s.cancel()
	h := s.proof()
	what = "a fresh hello with a field changed: " + flip(h)
	switch err := s.greet(h); status.Code(err) {
	case codes.OK:
		return true, what, nil
	case codes.Unauthenticated, codes.InvalidArgument:
		return false, what, nil
	default:
		return false, what, err
	}
}

// TestReplays interleaves attacks with hellos and requests that hold: none of
// the former and all of the latter are admitted. The last line is for
// `make edge`.
func TestReplays(t *testing.T) {
	w := newWorld(t, nil)
	ctx, n := t.Context(), replays
	conn := w.dial(t)
	a := &attacker{w: w, conn: w.dial(t)}
	valid, tried, passed := 0, 0, 0
	for i := range n {
		// One that holds, which the attacker sees, for each two attacks.
		if i%2 == 0 {
			who, epoch := w.agent("acme", fmt.Sprintf("agt_%d", pick(20))), int64(1+pick(3))
			s, err := open(ctx, conn, who, epoch)
			if err != nil {
				t.Fatal(err)
			}
			h := s.proof()
			tried++
			if err := s.greet(h); err != nil {
				t.Errorf("a hello that holds: %v", err)
			} else {
				valid++
			}
			s.cancel()
			r := request(who, epoch, time.Now(), heartbeat(epoch, int64(i)))
			tried++
			if _, err := pb.NewAgentGatewayClient(conn).SendTelemetry(ctx, r); err != nil {
				t.Errorf("a request that holds: %v", err)
			} else {
				valid++
			}
			a.hellos, a.requests = append(a.hellos, h), append(a.requests, r)
		}
		admitted, what, err := a.attack(ctx, i)
		if err != nil {
			t.Fatalf("attack %d, %s: %v", i, what, err)
		}
		if admitted {
			passed++
			t.Errorf("attack %d was admitted: %s", i, what)
		}
	}
	t.Logf("replays=%d/%d valid_hellos=%d/%d", passed, n, valid, tried)
}
