package gputime

import (
	"errors"
	"math"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/gpu"
)

// errSample says that a sample is none that time can be accounted by.
var errSample = errors.New("gputime: not a sample")

// sampleOf takes a sample off the wire. The error is errSample: a sample that the
// gateway should have refused is counted and accounts for nothing.
func sampleOf(m *pb.GpuSample) (Sample, error) {
	s := Sample{
		GPU: m.GetGpuUuid(), MIG: m.GetMigUuid(), Profile: m.GetMigProfile(), Start: m.GetStartUs(), End: m.GetEndUs(),
		Device: Device{
			Host: m.GetHost(), Model: m.GetModel(), Cloud: m.GetCloud(), Region: m.GetRegion(),
			Instance: m.GetInstanceType(),
		},
		MIGEnabled: m.GetMigEnabled(), Used: Unknown, Relayed: m.GetSource() == gpu.SourceOTLP,
	}
	purchase, ok := event.Purchase(m.GetPurchaseOption())
	s.Device.Purchase = purchase
	if s.MIG != "" && s.Profile == "" {
		s.Profile = unnamed // some tools list instances without their size
	}
	if s.Start <= 0 {
		s.Start = s.End
	}
	if !ok || s.GPU == "" || s.End <= 0 || s.Start > s.End || s.End > math.MaxInt64/1000 || !plain(&s) {
		return s, errSample
	}
	// How much of the device was busy says more than that any kernel ran; a device
	// of which a driver reports 100 % for ever is told apart by it.
	switch {
	case m.SmActivePercent != nil:
		s.Used = shareOf(m.GetSmActivePercent())
	case m.GpuUtilizationPercent != nil && !(s.MIG == "" && s.MIGEnabled):
		s.Used = shareOf(m.GetGpuUtilizationPercent())
	}
	claims, ok := claimsOf(m.GetWorkloads())
	if !ok {
		return s, errSample
	}
	s.Claims = claims
	if s.Relayed { // a collector knows neither since when nor which process
		s.Start = s.End
		for i := range s.Claims {
			s.Claims[i].Used = Unknown
		}
	}
	return s, nil
}

// plain holds the texts against what an event can carry.
func plain(s *Sample) bool {
	if len(s.Device.Cloud) > maxName || len(s.Device.Region) > maxName {
		return false
	}
	device := s.Device.texts()
	for _, t := range append(device[:], s.GPU, s.MIG, s.Profile) {
		if !event.ValidText(t, event.MaxValueBytes) {
			return false
		}
	}
	return true
}

// maxName bounds cloud and region, as the event's fields do.
const maxName = 64

// shareOf is a percentage in parts per million. What is no percentage is Unknown.
func shareOf(percent float64) int64 {
	if math.IsNaN(percent) || percent < 0 || percent > 100 {
		return Unknown
	}
	return int64(math.Round(percent * (million / 100)))
}

// claimsOf are the owners that the workloads name: those that the device is
// allocated to, else those with a process on it. A process that only draws is
// nobody's work.
func claimsOf(list []*pb.GpuWorkload) (claims []Claim, ok bool) {
	allocated := false
	for _, w := range list {
		allocated = allocated || w.GetAllocated()
	}
	for _, w := range list {
		if allocated && !w.GetAllocated() || !allocated && (w.Allocated == nil && w.Pid == nil && w.GetPod() == "" && w.GetJob() == "" || w.GetKind() == "graphics") {
			continue
		}
		if !allocated && w.Allocated != nil && w.Pid == nil {
			continue // it is said that it does not have the device, and nothing runs
		}
		c := Claim{
			Owner: Owner{w.GetNamespace(), w.GetPod(), w.GetJob(), w.GetTeam(), w.GetService(), w.GetEnvironment()},
			Share: Unknown, Used: Unknown,
		}
		for _, t := range c.Owner.texts() {
			if !event.ValidText(t, event.MaxValueBytes) {
				return nil, false
			}
		}
		if w.AllocatedShare != nil {
			if c.Share = shareOf(100 * w.GetAllocatedShare()); c.Share <= 0 {
				c.Share = Unknown
			}
		}
		if w.SmUtilizationPercent != nil {
			c.Used = shareOf(w.GetSmUtilizationPercent())
		}
		claims = append(claims, c)
	}
	return mergeClaims(claims), true
}
