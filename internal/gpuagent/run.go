package gpuagent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Run carries frames to the gateway until ctx ends, and then tells it once more
// how things stand. It connects again for ever, after a growing pause whose
// length is drawn at random, so that many agents do not come back at once. It
// returns nil, or one of the errors that no time heals.
func (a *Agent) Run(ctx context.Context) error {
	defer a.set("stopped", nil)
	for first := true; ctx.Err() == nil; first = false {
		if !first {
			a.mu.Lock()
			a.counts.reconnects++
			a.mu.Unlock()
		}
		a.set("connecting", a.lastFailure())
		err := a.connect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrAhead), errors.Is(err, ErrSpool), errors.Is(err, ErrInterval):
			return err
		}
		if err == nil {
			continue // it is time to try a stream again
		}
		a.set("connecting", err)
		pause := a.pause(err)
		a.opts.Log.Warn("agent: not connected, will try again", "err", plain(err), "in", pause.Round(time.Millisecond))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return nil
}

// connect holds one connection until it ends.
func (a *Agent) connect(ctx context.Context) error {
	unary := a.opts.Transport == TransportUnary ||
		(a.opts.Transport == TransportAuto && (a.toUnary >= streamFailures || a.opts.Now().Before(a.unaryEnd)))
	conn, err := a.opts.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if !unary {
		return a.stream(ctx, conn)
	}
	a.toUnary = 0
	err = a.unary(ctx, conn)
	if a.opts.Transport == TransportAuto && err == nil {
		a.opts.Log.Info("agent: will try a stream again")
	}
	return err
}

// set says how things stand.
func (a *Agent) set(state string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.failure = state, err
}

func (a *Agent) lastFailure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failure
}

// admitted notes that a connection stands.
func (a *Agent) admitted(state string) {
	a.backoff, a.toUnary = 0, 0
	a.set(state, nil)
	a.opts.Log.Info("agent: "+state, "epoch", a.epoch, "spooled", a.opts.Spool.Stats().Records)
}

// pause is how long to wait after err: at least what the gateway asks for, then
// anything between half and all of a length that doubles. Who is not admitted
// waits longest at once: only a person can change that.
func (a *Agent) pause(err error) time.Duration {
	d := maxBackoff
	if a.backoff < 8 && status.Code(err) != codes.Unauthenticated {
		d = min(minBackoff<<a.backoff, maxBackoff)
	}
	a.backoff++
	return max(d-random(d/2), retryAfter(err))
}

// random is a duration below d that nobody can guess.
func random(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil || d <= 0 {
		return 0
	}
	return time.Duration(binary.LittleEndian.Uint64(b[:]) % uint64(d))
}

// retryAfter is the delay that an answer asks for, or 0.
func retryAfter(err error) time.Duration {
	st, ok := status.FromError(err)
	if !ok {
		return 0
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return min(info.GetRetryDelay().AsDuration(), maxBackoff)
		}
	}
	return 0
}

// plain is an error's text without what gRPC puts before it.
func plain(err error) string {
	if errors.Is(err, io.EOF) {
		return "the gateway ended the stream"
	}
	if st, ok := status.FromError(err); ok {
		return st.Code().String() + ": " + st.Message()
	}
	return err.Error()
}
