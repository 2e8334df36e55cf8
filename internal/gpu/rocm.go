package gpu

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// rocmFields are the figures of `rocm-smi --json` by the names that its versions
// gave them. Of two for one figure the later one wins where it has a value.
var rocmFields = []struct {
	name  string
	field field
}{
	{"GPU use (%)", gpuUtilization},
	{"GPU memory use (%)", memoryUtilization},
	{"GPU Memory Read/Write Activity (%)", memoryUtilization},
	{"VRAM Total Memory (B)", field{octets, memoryTotal.at}},
	{"VRAM Total Used Memory (B)", field{octets, memoryUsed.at}},
	{"Average Graphics Package Power (W)", power},
	{"Current Socket Graphics Package Power (W)", power},
	{"Max Graphics Package Power (W)", powerLimit},
	{"Temperature (Sensor junction) (C)", temperature},
	{"Temperature (Sensor edge) (C)", temperature},
	{"Temperature (Sensor memory) (C)", memoryTemperature},
	{"Fan speed (%)", fan},
}

// rocmClocks are given as "(300Mhz)".
var rocmClocks = []struct {
	name  string
	field field
}{
	{"sclk clock speed:", smClock},
	{"mclk clock speed:", memoryClock},
}

// ParseROCm reads `rocm-smi --json` of any of the versions 3 to 6.
func ParseROCm(text []byte) (*Snapshot, error) {
	if len(text) > maxInputBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(text))
	}
	var doc map[string]map[string]string
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%w: not rocm-smi's JSON", ErrFormat)
	}
	snap := &Snapshot{Driver: present(doc["system"]["Driver version"])}
	for _, card := range slices.Sorted(maps.Keys(doc)) {
		number, is := strings.CutPrefix(card, "card")
		n, err := strconv.ParseUint(number, 10, 32)
		if !is || err != nil {
			continue // "system", or a process list
		}
		if len(snap.Samples) >= maxDevices {
			return nil, fmt.Errorf("%w: more than %d devices", ErrFormat, maxDevices)
		}
		snap.addCard(uint32(n), doc[card])
	}
	return snap, nil
}

func (s *Snapshot) addCard(n uint32, card map[string]string) {
	m := &pb.GpuSample{Vendor: VendorAMD, Source: SourceROCm, Index: new(n)}
	m.Model = cmp.Or(present(card["Device Name"]), present(card["Card series"]), present(card["Card Series"]), present(card["Card model"]), present(card["Card Model"]))
	m.GpuUuid = "AMD-0" // many cards tell none: Finish puts host and address in its place
	if id := present(card["Unique ID"]); !masked(strings.TrimPrefix(id, "0x")) {
		m.GpuUuid = clip("AMD-" + id)
	}
	for _, f := range rocmFields {
		f.field.set(m, card[f.name], "")
	}
	for _, f := range rocmClocks {
		text := strings.Trim(card[f.name], "()")
		if digits, ok := strings.CutSuffix(strings.ToLower(text), "mhz"); ok {
			f.field.set(m, digits, "MHz")
		}
	}
	s.Add(m, present(card["PCI Bus"]))
}
