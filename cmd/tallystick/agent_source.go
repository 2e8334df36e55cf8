package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/gpu/nvml"
	"github.com/tallystick/tallystick/internal/gpuagent"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// agentPlace is what the price of a device's time depends on, as its owner says.
type agentPlace struct {
	Cloud, Region, InstanceType, PurchaseOption string
	GPUsOnHost                                  uint32
}

// apply writes the place into samples.
func (p *agentPlace) apply(samples []*pb.GpuSample) {
	for _, s := range samples {
		s.Cloud, s.Region, s.InstanceType, s.PurchaseOption = p.Cloud, p.Region, p.InstanceType, p.PurchaseOption
		if p.GPUsOnHost > 0 {
			s.GpusOnHost = &p.GPUsOnHost
		}
	}
}

// agentSource is where samples come from: a collector, or recordings.
type agentSource struct {
	f         *agentFlags
	log       *slog.Logger
	collector gpu.Collector
	attribute *gpu.Attributor
	replay    []*gpu.Recording
	previous  map[string]time.Time // as gpu.Finish keeps it
	devices   int                  // of the newest look, to count what a failed one has lost
}

// source finds what the flags ask for. What the machine does not have is a usage
// error: an agent that would never see a device must not seem to run.
func (f *agentFlags) source(log *slog.Logger) (*agentSource, error) {
	s := &agentSource{f: f, log: log, previous: map[string]time.Time{}}
	for _, path := range f.replay {
		r, err := gpu.OpenRecording(path)
		if err != nil {
			s.close()
			return nil, usageError("--replay: %w", err)
		}
		s.replay = append(s.replay, r)
	}
	if len(f.replay) > 0 {
		return s, nil
	}
	var rules []gpu.Rule
	if f.rules != "" {
		file, err := os.Open(f.rules)
		if err != nil {
			return nil, usageError("--rules: %w", err)
		}
		defer file.Close()
		if rules, err = gpu.ParseRules(file); err != nil {
			return nil, usageError("--rules: %w", err)
		}
	}
	s.attribute = gpu.NewAttributor(f.root, rules)
	var err error
	if s.collector, err = f.collector(); err != nil {
		return nil, usageError("--collect %s: %w", f.collect, err)
	}
	log.Info("agent: reads GPUs", "with", s.collector.Name(), "every", f.interval)
	return s, nil
}

// collector is the one asked for, or the first that this machine has.
func (f *agentFlags) collector() (gpu.Collector, error) {
	kinds := map[string]func() (gpu.Collector, error){
		"nvml":       func() (gpu.Collector, error) { return nvml.Open("") },
		"nvidia-smi": func() (gpu.Collector, error) { return gpu.NewSMI(f.smiPath) },
		"dcgm":       func() (gpu.Collector, error) { return gpu.NewDCGM(f.dcgmURL) },
		"rocm-smi":   func() (gpu.Collector, error) { return gpu.NewROCm(f.rocmPath) },
	}
	if open, ok := kinds[f.collect]; ok {
		return open()
	}
	if f.collect != "auto" {
		return nil, errors.New("there are auto, nvml, nvidia-smi, dcgm and rocm-smi")
	}
	var errs []error
	for _, kind := range []string{"nvml", "nvidia-smi", "rocm-smi"} {
		c, err := kinds[kind]()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (s *agentSource) close() {
	for _, r := range s.replay {
		r.Close()
	}
	if c, ok := s.collector.(io.Closer); ok {
		c.Close()
	}
}

// run records until ctx ends, or the recordings do.
func (s *agentSource) run(ctx context.Context, a *gpuagent.Agent) error {
	if len(s.replay) > 0 {
		return s.play(ctx, func(samples []*pb.GpuSample) error {
			if err := a.WaitForRoom(ctx); err != nil {
				return nil // stopped; what follows is not played
			}
			return a.Record(samples)
		})
	}
	tick := time.NewTicker(s.f.interval)
	defer tick.Stop()
	for failing := false; ; {
		err := s.look(ctx, a)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			s.log.Error("agent: cannot record the GPUs, will try again", "err", err)
		case err == nil && failing:
			s.log.Info("agent: records the GPUs again")
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look reads all devices once and records them. A look that fails loses a sample
// of each device that was there.
func (s *agentSource) look(ctx context.Context, a *gpuagent.Agent) error {
	snap, err := s.collector.Collect(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.Lost(gpuagent.LostCollector, s.devices)
		}
		return err
	}
	at := time.Now()
	gpu.Finish(snap, s.f.host, at, 5*s.f.interval/2, s.previous)
	s.attribute.Attribute(snap)
	s.f.place.apply(snap.Samples)
	s.devices = len(snap.Samples)
	a.SetInventory(snap.Driver, gpu.Inventory(snap))
	return a.Record(snap.Samples)
}

// playBatch is how many samples are recorded at once at most while playing.
const playBatch = 400

// play plays each recording, as fast as asked for. Its times are moved so that
// it ends now if it is played faster than it was, and else begins now.
func (s *agentSource) play(ctx context.Context, record func([]*pb.GpuSample) error) error {
	for _, r := range s.replay {
		if err := s.playOne(ctx, r, record); err != nil {
			return err
		}
	}
	return nil
}

func (s *agentSource) playOne(ctx context.Context, r *gpu.Recording, record func([]*pb.GpuSample) error) error {
	start := time.Now()
	shift := start.Sub(r.First)
	if s.f.speed != 1 {
		shift = start.Sub(r.Last)
	}
	if r.First.IsZero() {
		shift = 0
	}
	var batch []*pb.GpuSample
	for ctx.Err() == nil {
		snap, err := r.Next()
		if errors.Is(err, io.EOF) {
			return record(batch)
		}
		if err != nil {
			return fmt.Errorf("--replay: %w", err)
		}
		at := start
		if !snap.Taken.IsZero() {
			at = snap.Taken.Add(shift)
		}
		gpu.Finish(snap, s.f.host, at, time.Hour, s.previous)
		s.f.place.apply(snap.Samples)
		due := 0 * time.Second
		if s.f.speed > 0 && !snap.Taken.IsZero() {
			due = time.Until(start.Add(time.Duration(float64(snap.Taken.Sub(r.First)) / s.f.speed)))
		}
		if len(batch) > 0 && (due > 10*time.Millisecond || len(batch)+len(snap.Samples) > playBatch) {
			if err := record(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		batch = append(batch, snap.Samples...)
		if due > 10*time.Millisecond {
			select {
			case <-time.After(due):
			case <-ctx.Done():
			}
		}
	}
	return record(batch)
}

// dryRun prints what would be sent, one JSON line for each sample.
func (s *agentSource) dryRun(ctx context.Context, w io.Writer) error {
	return s.play(ctx, func(samples []*pb.GpuSample) error {
		for _, m := range samples {
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				return err
			}
			if _, err := w.Write(append(b, '\n')); err != nil {
				return err
			}
		}
		return nil
	})
}
