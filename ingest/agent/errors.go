package agent

import (
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tallystick/tallystick/internal/agentauth"
)

// How streams and requests end. None says more than the agent may know.
var (
	// errRefused is the one answer to every proof that does not hold, and to every
	// agent that is not in force.
	errRefused = status.Error(codes.Unauthenticated, "the agent is not admitted")
	// errUnavailable is the answer while nobody can tell.
	errUnavailable = status.Error(codes.Unavailable, "agents cannot be verified now; come again")
	// errSuperseded ends the older of two streams of one agent.
	errSuperseded = status.Error(codes.Aborted, "the agent has a newer stream")
	// errStopping ends streams of a gateway that stops, after what they have in
	// flight is settled.
	errStopping = status.Error(codes.Unavailable, "the gateway stops; come again")
	// errProtocol ends a stream of what is no agent of ours, or a broken one.
	errProtocol = status.Error(codes.InvalidArgument, "a frame that is not of the protocol")
	// errEpoch ends a stream whose frames are not of the epoch of its hello.
	errEpoch = status.Error(codes.InvalidArgument, "a frame of another epoch than the hello's, or without a number")
	// errHelloTimeout ends a stream whose challenge was not answered.
	errHelloTimeout = status.Error(codes.DeadlineExceeded, "no answer to the challenge")
	// errDeaf ends a stream that goes on sending and does not read refusals.
	errDeaf = tooMuch("refusals are not read", time.Second)
	// errNotDurable is of a request whose samples Kafka did not acknowledge.
	errNotDurable = status.Error(codes.Unavailable, "the samples are not durable; send them again")
)

// errNonceUnknown says that a nonce could not be remembered.
var errNonceUnknown = errors.New("agent: the nonce cannot be remembered now")

func isRefused(err error) bool { return errors.Is(err, agentauth.ErrRefused) }

// Codes of Refusal.
const (
	codeExhausted   = "RESOURCE_EXHAUSTED"
	codeInvalid     = "INVALID_ARGUMENT"
	codeUnavailable = "UNAVAILABLE"
)

const (
	reasonNotDurable = "not_durable"
	reasonTooLarge   = "samples: too_large"
	// retryNotDurable is when an agent comes again with what Kafka did not take.
	retryNotDurable = time.Second
)

// tooMuch is RESOURCE_EXHAUSTED with a delay.
func tooMuch(reason string, wait time.Duration) error {
	st := status.New(codes.ResourceExhausted, reason)
	info := &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}
	if with, err := st.WithDetails(protoadapt.MessageV1Of(info)); err == nil {
		st = with
	}
	return st.Err()
}
