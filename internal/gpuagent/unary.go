package gpuagent

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/spool"
)

// unary sends frames one request at a time, for a while, each with its own
// proof. It returns nil when it is time to try a stream again.
func (a *Agent) unary(ctx context.Context, conn *grpc.ClientConn) error {
	until := a.opts.Now().Add(unaryTime)
	client := pb.NewAgentGatewayClient(conn)
	if err := a.callState(ctx, client); err != nil {
		return err
	}
	a.unaryEnd = until
	a.admitted("single requests")
	var batch spool.Batch
	for beat := a.opts.Now().Add(defaultHeartbeat); ; {
		if a.opts.Now().After(beat) {
			if err := a.callState(ctx, client); err != nil {
				return err
			}
			beat = a.opts.Now().Add(defaultHeartbeat)
		}
		waiting, cancel := context.WithDeadline(ctx, beat.Add(time.Millisecond))
		err := a.opts.Spool.Read(waiting, 0, readBytes, &batch)
		cancel()
		switch {
		case ctx.Err() != nil:
			return a.callState(context.WithoutCancel(ctx), client)
		case errors.Is(err, context.DeadlineExceeded): // nothing to send until the heartbeat
		case err != nil:
			return err
		}
		for i, rec := range batch.Records {
			if err := a.callFrame(ctx, client, int64(batch.First)+int64(i), rec); err != nil {
				return err
			}
		}
		if a.opts.Transport == TransportAuto && a.opts.Now().After(until) {
			return nil
		}
	}
}

// callFrame sends one frame until it is taken; over a limit it waits as long as
// it is told to.
func (a *Agent) callFrame(ctx context.Context, client pb.AgentGatewayClient, seq int64, rec []byte) error {
	frame, err := a.frameOf(seq, rec)
	if err != nil {
		return err
	}
	for {
		resp, err := a.call(ctx, client, frame)
		if err == nil {
			if r := resp.GetRefusal(); r != nil {
				if err := a.countRefused(r); err != nil {
					return err
				}
			}
			return a.acknowledge(seq)
		}
		wait := retryAfter(err)
		if c := status.Code(err); (c != codes.ResourceExhausted && c != codes.Unavailable) || wait == 0 {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// callState sends inventory and heartbeat.
func (a *Agent) callState(ctx context.Context, client pb.AgentGatewayClient) error {
	if inventory := a.inventoryNow(); inventory != nil {
		if _, err := a.call(ctx, client, &pb.AgentFrame{Body: &pb.AgentFrame_Inventory{Inventory: inventory}}); err != nil {
			return err
		}
	}
	_, err := a.call(ctx, client, &pb.AgentFrame{Body: &pb.AgentFrame_Heartbeat{Heartbeat: a.heartbeat()}})
	return err
}

// call sends one frame with its proof.
func (a *Agent) call(ctx context.Context, client pb.AgentGatewayClient, frame *pb.AgentFrame) (*pb.SendTelemetryResponse, error) {
	body, err := proto.Marshal(frame)
	if err != nil {
		return nil, err
	}
	credential, err := a.opts.Credential()
	if err != nil {
		return nil, err
	}
	req := &pb.SendTelemetryRequest{
		Version: agentauth.ProofVersion, TenantId: string(credential.Tenant), AgentId: credential.Agent, ProducerEpoch: a.epoch,
		SentAtUs: a.opts.Now().UnixMicro(), Nonce: newNonce(), Frame: body,
	}
	agentauth.SignFrame(&credential.Secret, req)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return client.SendTelemetry(ctx, req)
}
