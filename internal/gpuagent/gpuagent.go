// Package gpuagent is what runs beside the GPUs: it numbers samples, keeps them
// on disk, and carries them to the gateway (ingest/agent) until the gateway says
// that Kafka has them.
//
// It promises that a sample which [Agent.Record] took is sent until it is
// acknowledged, whatever is killed meanwhile: it is fsync'd in a spool before
// Record returns, a number always means the same samples, and only the gateway's
// acknowledgement lets go of them. What it cannot keep (the spool is full, a
// collector failed) it counts, by reason, and tells in every heartbeat: its
// counters are cumulative over the life of the spool, also over kill -9.
//
// It never sends a secret, only proofs (internal/agentauth), never speaks without
// TLS but to this machine, and never logs a sample.
package gpuagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/spool"
)

// Errors that end an agent: nothing that time heals.
var (
	// ErrAhead: the gateway has frames of this epoch that the spool never made. The
	// spool was put back to an older state, or two agents share it; what it would
	// send now would pass for what it has sent. Give the agent a new spool folder.
	ErrAhead = errors.New("gpuagent: the gateway knows frames that this spool never made; begin with an empty spool folder")
	// ErrSpool: the spool holds what this agent did not write.
	ErrSpool = errors.New("gpuagent: the spool is not this agent's")
	// ErrInterval: the gateway says that a sample counts for less than the time from
	// one look to the next. The rest would be in no event.
	ErrInterval = errors.New("a sample does not count for so long")
)

// ErrFull: the spool has no room. The samples are counted as lost.
var ErrFull = errors.New("gpuagent: the spool is full")

// Transports.
const (
	// TransportAuto streams, and goes over to single requests where streams do not
	// get through.
	TransportAuto   = "auto"
	TransportStream = "stream"
	TransportUnary  = "unary"
)

// Bounds.
const (
	// maxFrameSamples and maxFrameBytes are below what the gateway takes.
	maxFrameSamples = 500
	maxFrameBytes   = 512 << 10
	// window is how many frames may be sent and not acknowledged.
	window = 32
	// readBytes is about how much is read from the spool at once.
	readBytes = 256 << 10

	defaultHeartbeat = 30 * time.Second
	helloTimeout     = 15 * time.Second
	callTimeout      = 20 * time.Second
	minBackoff       = 250 * time.Millisecond
	maxBackoff       = time.Minute
	// streamFailures in a row let an automatic agent try single requests, and
	// unaryTime is how long it keeps to them before it tries a stream again.
	streamFailures = 3
	unaryTime      = 5 * time.Minute
	finalTimeout   = 5 * time.Second
)

// Reasons for which samples are lost before they have a number.
const (
	LostSpoolFull = "spool_full"
	LostCollector = "collector_error"
)

// Options of an agent.
type Options struct {
	// Dial makes connections to the gateway; required. The agent closes them.
	Dial func() (*grpc.ClientConn, error)
	// Credential is read before each connection, so that a new secret is used
	// without a restart; required.
	Credential func() (agentauth.Credential, error)
	// Spool keeps the frames; required. It stays the caller's to close, after Run.
	Spool *spool.Spool
	// Interval is how often the devices are looked at; 0 where they are not. One that
	// is longer than what a sample counts for ends Run with [ErrInterval] at the first
	// answer to a hello. At a later one, when the server was set to less meanwhile, it
	// is logged at each: some of the time is better than none.
	Interval time.Duration
	// Host and Version are told to the gateway.
	Host, Version string
	// Transport is one of the transports above; default [TransportAuto].
	Transport string
	// Log hears of connections and failures; default nobody.
	Log *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Agent carries samples from Record to the gateway. Its methods may be called by
// many goroutines, Run by one.
type Agent struct {
	opts  Options
	epoch int64

	acked    chan struct{} // capacity 1: something was acknowledged
	changed  chan struct{} // capacity 1: there is a new inventory
	backoff  int           // failures in a row; of Run's goroutine
	toUnary  int           // streams in a row that did not get through; likewise
	unaryEnd time.Time     // likewise
	begun    bool          // a hello was answered; likewise

	recording sync.Mutex // one Record at a time: numbers and counts go together
	keeping   sync.Mutex // one keep at a time: an older note never follows a newer one

	mu        sync.Mutex // protects what follows
	counts    counts
	emitted   int64 // samples of all frames ever made in this epoch
	frames    map[uint64]int64
	inventory *pb.Inventory
	state     string
	failure   error
}

// Stats say what the agent has done since its spool was begun.
type Stats struct {
	// EmittedSamples were made durable, in EmittedFrames; AckedSamples of them, in
	// AckedFrames, are in Kafka as the gateway says, but for RefusedSamples.
	EmittedSamples, EmittedFrames int64
	AckedSamples, AckedFrames     int64
	RefusedSamples, RefusedFrames int64
	// LostSamples never had a number, by reason.
	LostSamples map[string]int64
	Reconnects  int64
	// SpooledFrames wait, in SpooledBytes.
	SpooledFrames, SpooledBytes int64
	// State is connecting, streaming, single requests, or stopped.
	State string
	// Err is why the newest connection failed; nil while one stands.
	Err error
}

// New reads from the spool what an agent has done with it before.
func New(opts Options) (*Agent, error) {
	if opts.Dial == nil || opts.Credential == nil || opts.Spool == nil {
		return nil, errors.New("gpuagent: Dial, Credential and Spool are required")
	}
	switch opts.Transport {
	case "":
		opts.Transport = TransportAuto
	case TransportAuto, TransportStream, TransportUnary:
	default:
		return nil, fmt.Errorf("gpuagent: transport %q; there are %s, %s and %s", opts.Transport, TransportAuto, TransportStream, TransportUnary)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Spool.Epoch() > math.MaxInt64 {
		return nil, ErrSpool
	}
	a := &Agent{
		opts: opts, epoch: int64(opts.Spool.Epoch()), acked: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		frames: map[uint64]int64{}, state: "connecting", counts: parseCounts(opts.Spool.Note()),
	}
	return a, a.restore()
}

// restore finds the counts again: the note has those of what is acknowledged,
// and each frame on disk how many samples were made before it.
func (a *Agent) restore() error {
	a.emitted = a.counts.ackedSamples
	st := a.opts.Spool.Stats()
	a.counts.ackedFrames = int64(st.Acked)
	var b spool.Batch
	for at := st.Acked; at < st.Last; at = b.Last() {
		if err := a.opts.Spool.Read(context.Background(), at, readBytes, &b); err != nil {
			return err
		}
		for i, rec := range b.Records {
			before, samples, _, err := parseStored(rec)
			if err != nil {
				return fmt.Errorf("%w: frame %d: %w", ErrSpool, b.First+uint64(i), err)
			}
			if at == st.Acked && i == 0 {
				// A power cut may have put the note back: the frame knows better.
				a.counts.ackedSamples = before
			}
			a.frames[b.First+uint64(i)] = samples
			a.emitted = before + samples
		}
	}
	return nil
}

// Record makes samples durable and gives them numbers. It changes nothing of
// them. An error means that none of the frame that failed, and of those after
// it, is kept; they are counted as lost.
func (a *Agent) Record(samples []*pb.GpuSample) error {
	a.recording.Lock()
	defer a.recording.Unlock()
	for len(samples) > 0 {
		frame, n, err := nextFrame(samples)
		if err != nil {
			return err
		}
		if err := a.append(frame, n); err != nil {
			a.Lost(LostSpoolFull, len(samples))
			return err
		}
		samples = samples[n:]
	}
	return nil
}

// append makes one frame durable. Only this function appends to the spool, one
// call at a time, so the number is known before: an acknowledgement may come
// before Append has returned here.
func (a *Agent) append(frame []byte, n int) error {
	seq := a.opts.Spool.Stats().Last + 1
	a.mu.Lock()
	before := a.emitted
	a.emitted += int64(n)
	a.frames[seq] = int64(n)
	a.mu.Unlock()
	// Without an end: a frame of which nobody knows whether it is kept has no count.
	got, err := a.opts.Spool.Append(context.Background(), [][]byte{storedFrame(before, n, frame)})
	if err == nil && got == seq {
		return nil
	}
	a.mu.Lock()
	a.emitted -= int64(n)
	delete(a.frames, seq)
	a.mu.Unlock()
	switch {
	case err == nil:
		return fmt.Errorf("%w: somebody else appends to it", ErrSpool)
	case errors.Is(err, spool.ErrFull), errors.Is(err, spool.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// nextFrame encodes as many samples as fit into one frame.
func nextFrame(samples []*pb.GpuSample) (frame []byte, n int, err error) {
	for n < len(samples) && n < maxFrameSamples {
		one, err := proto.Marshal(&pb.SampleFrame{Samples: samples[n : n+1]})
		if err != nil {
			return nil, 0, fmt.Errorf("gpuagent: a sample cannot be encoded: %w", err)
		}
		if n > 0 && len(frame)+len(one) > maxFrameBytes {
			break
		}
		frame = append(frame, one...) // repeated fields of one message may stand in a row
		n++
	}
	return frame, n, nil
}

// Lost counts samples that were not recorded.
func (a *Agent) Lost(reason string, n int) {
	a.mu.Lock()
	switch reason {
	case LostSpoolFull:
		a.counts.lostFull += int64(n)
	default:
		a.counts.lostCollector += int64(n)
	}
	a.mu.Unlock()
	if err := a.keep(0); err != nil {
		a.opts.Log.Error("agent: cannot keep its counters", "err", err)
	}
}

// SetInventory has the devices told to the gateway, now and after each connection.
func (a *Agent) SetInventory(driver string, devices []*pb.GpuDevice) {
	next := &pb.Inventory{Host: a.opts.Host, DriverVersion: driver, Devices: devices}
	a.mu.Lock()
	same := a.inventory != nil && proto.Equal(&pb.Inventory{Host: a.inventory.Host, DriverVersion: a.inventory.DriverVersion, Devices: a.inventory.Devices}, next)
	if !same {
		a.inventory = next
	}
	a.mu.Unlock()
	if !same {
		poke(a.changed)
	}
}

// poke puts a mark into a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Stats are exact at some moment during the call.
func (a *Agent) Stats() Stats {
	sp := a.opts.Spool.Stats()
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{
		EmittedSamples: a.emitted, EmittedFrames: int64(sp.Last),
		AckedSamples: a.counts.ackedSamples, AckedFrames: a.counts.ackedFrames,
		RefusedSamples: a.counts.refusedSamples, RefusedFrames: a.counts.refusedFrames,
		LostSamples: map[string]int64{LostSpoolFull: a.counts.lostFull, LostCollector: a.counts.lostCollector},
		Reconnects:  a.counts.reconnects, SpooledFrames: int64(sp.Records), SpooledBytes: sp.Bytes,
		State: a.state, Err: a.failure,
	}
}

// Drain waits until everything recorded is acknowledged, or ctx ends, and then
// returns its cause. One caller waits at a time.
func (a *Agent) Drain(ctx context.Context) error {
	for a.opts.Spool.Stats().Records > 0 {
		select {
		case <-a.acked:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// WaitForRoom waits while more than three quarters of the spool are full, for a
// source that can wait. One caller waits at a time, and not beside Drain.
func (a *Agent) WaitForRoom(ctx context.Context) error {
	for {
		if st := a.opts.Spool.Stats(); st.Bytes < st.MaxBytes/4*3 {
			return nil
		}
		select {
		case <-a.acked:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// acknowledge lets go of the frames through seq.
func (a *Agent) acknowledge(seq int64) error {
	st := a.opts.Spool.Stats()
	switch {
	case seq <= int64(st.Acked):
		return nil
	case uint64(seq) > st.Last:
		return fmt.Errorf("%w: it has %d, the spool %d", ErrAhead, seq, st.Last)
	}
	a.mu.Lock()
	for s := st.Acked + 1; s <= uint64(seq); s++ {
		a.counts.ackedSamples += a.frames[s]
		delete(a.frames, s)
	}
	a.counts.ackedFrames = seq
	a.mu.Unlock()
	err := a.keep(uint64(seq))
	poke(a.acked)
	return err
}

// keep stores the counts beside the acknowledgement of seq, 0 for none new.
func (a *Agent) keep(seq uint64) error {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	a.mu.Lock()
	note := a.counts.note()
	a.mu.Unlock()
	return a.opts.Spool.AckNote(seq, note)
}

// heartbeat is what the agent says of itself.
func (a *Agent) heartbeat() *pb.Heartbeat {
	st := a.Stats()
	h := &pb.Heartbeat{
		ProducerEpoch: a.epoch, SentAt: stamp(a.opts.Now()),
		EmittedSamples: st.EmittedSamples, EmittedFrames: st.EmittedFrames, AckedSamples: st.AckedSamples, AckedFrames: st.AckedFrames,
		SpooledFrames: st.SpooledFrames, SpooledBytes: st.SpooledBytes, RefusedFrames: st.RefusedFrames, Reconnects: st.Reconnects,
		LostSamples: map[string]int64{},
	}
	for reason, n := range st.LostSamples {
		if n > 0 {
			h.LostSamples[reason] = n
		}
	}
	return h
}

// inventoryNow is the inventory to send, or nil.
func (a *Agent) inventoryNow() *pb.Inventory {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inventory == nil {
		return nil
	}
	return &pb.Inventory{
		ProducerEpoch: a.epoch, TakenAt: stamp(a.opts.Now()), Host: a.inventory.Host,
		DriverVersion: a.inventory.DriverVersion, Devices: a.inventory.Devices,
	}
}
