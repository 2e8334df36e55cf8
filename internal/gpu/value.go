package gpu

import (
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// kind is what a field's number means, and with it the range outside which a
// value is not one.
type kind int

const (
	percent  kind = iota // 0 to 100
	ratio                // 0 to 1, kept as 0 to 100
	watts                // 0 to 100,000
	celsius              // 0 to 500: tools give 0 or less where there is no sensor; 0 is kept
	mhz                  // 0 to 100,000
	octets               // a whole number of bytes, or with a unit
	mebibyte             // bytes without a unit are MiB
	count                // any whole number
	joules               // kept as thousandths
	mask                 // a whole number, decimal or 0x…
	pstate               // P0 to P15
	enabled              // Enabled or Disabled, 1 or 0
)

// field is one figure of a sample. at gives its place: **float64, **uint64,
// **uint32 or **bool.
type field struct {
	kind kind
	at   func(*pb.GpuSample) any
}

// The figures that the tools share.
var (
	gpuUtilization    = field{percent, func(s *pb.GpuSample) any { return &s.GpuUtilizationPercent }}
	memoryUtilization = field{percent, func(s *pb.GpuSample) any { return &s.MemoryUtilizationPercent }}
	encoder           = field{percent, func(s *pb.GpuSample) any { return &s.EncoderUtilizationPercent }}
	decoder           = field{percent, func(s *pb.GpuSample) any { return &s.DecoderUtilizationPercent }}
	smActive          = field{ratio, func(s *pb.GpuSample) any { return &s.SmActivePercent }}
	smOccupancy       = field{ratio, func(s *pb.GpuSample) any { return &s.SmOccupancyPercent }}
	tensorActive      = field{ratio, func(s *pb.GpuSample) any { return &s.TensorActivePercent }}
	dramActive        = field{ratio, func(s *pb.GpuSample) any { return &s.DramActivePercent }}
	memoryUsed        = field{mebibyte, func(s *pb.GpuSample) any { return &s.MemoryUsedBytes }}
	memoryFree        = field{mebibyte, func(s *pb.GpuSample) any { return &s.MemoryFreeBytes }}
	memoryReserved    = field{mebibyte, func(s *pb.GpuSample) any { return &s.MemoryReservedBytes }}
	memoryTotal       = field{mebibyte, func(s *pb.GpuSample) any { return &s.MemoryTotalBytes }}
	power             = field{watts, func(s *pb.GpuSample) any { return &s.PowerWatts }}
	powerLimit        = field{watts, func(s *pb.GpuSample) any { return &s.PowerLimitWatts }}
	energy            = field{count, func(s *pb.GpuSample) any { return &s.EnergyMillijoules }}
	temperature       = field{celsius, func(s *pb.GpuSample) any { return &s.TemperatureCelsius }}
	memoryTemperature = field{celsius, func(s *pb.GpuSample) any { return &s.MemoryTemperatureCelsius }}
	smClock           = field{mhz, func(s *pb.GpuSample) any { return &s.SmClockMhz }}
	memoryClock       = field{mhz, func(s *pb.GpuSample) any { return &s.MemoryClockMhz }}
	fan               = field{percent, func(s *pb.GpuSample) any { return &s.FanPercent }}
	performance       = field{pstate, func(s *pb.GpuSample) any { return &s.PerformanceState }}
	clockReasons      = field{mask, func(s *pb.GpuSample) any { return &s.ClockEventReasons }}
	xid               = field{count, func(s *pb.GpuSample) any { return &s.XidError }}
	eccUncorrected    = field{count, func(s *pb.GpuSample) any { return &s.EccUncorrected }}
	migEnabled        = field{enabled, func(s *pb.GpuSample) any { return &s.MigEnabled }}
	index             = field{count, func(s *pb.GpuSample) any { return &s.Index }}
	gpuInstance       = field{count, func(s *pb.GpuSample) any { return &s.GpuInstanceId }}
	computeInstance   = field{count, func(s *pb.GpuSample) any { return &s.ComputeInstanceId }}
)

// set reads text into the figure, or leaves it unset when the text is no value
// of it. unit is what the tool gives apart from the value, or empty.
func (f field) set(s *pb.GpuSample, text, unit string) { f.kind.set(f.at(s), text, unit) }

// set reads text into dst.
func (k kind) set(dst any, text, unit string) {
	text = strings.TrimSpace(text)
	if k == enabled {
		yes := text == "Enabled" || text == "1"
		if dst, ok := dst.(**bool); ok && (yes || text == "Disabled" || text == "0") {
			*dst = new(yes)
		}
		return
	}
	switch dst := dst.(type) {
	case **float64:
		if v, ok := k.float(text, unit); ok {
			*dst = &v
		}
	case **uint64:
		if v, ok := k.whole(text, unit); ok {
			*dst = &v
		}
	case **uint32:
		if v, ok := k.whole(text, unit); ok && v <= math.MaxUint32 {
			*dst = new(uint32(v))
		}
	}
}

// float is the value in the unit of the sample's field.
func (k kind) float(text, unit string) (float64, bool) {
	number, own := splitUnit(text)
	if own != "" {
		unit = own
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || blankFloat(v) {
		return 0, false
	}
	switch k {
	case percent:
		return v, (unit == "" || unit == "%") && v >= 0 && v <= 100
	case ratio:
		return v * 100, unit == "" && v >= 0 && v <= 1
	case watts:
		return v, (unit == "" || unit == "W") && v >= 0 && v <= 1e5
	case celsius:
		return v, (unit == "" || unit == "C") && v >= 0 && v <= 500
	case mhz:
		return v, (unit == "" || strings.EqualFold(unit, "MHz")) && v >= 0 && v <= 1e5
	}
	return 0, false
}

// whole is the value of a figure that has no fractions.
func (k kind) whole(text, unit string) (uint64, bool) {
	switch k {
	case pstate:
		digits, ok := strings.CutPrefix(text, "P")
		v, err := strconv.ParseUint(digits, 10, 8)
		return v, ok && err == nil && v <= 15
	case mask:
		if digits, hex := strings.CutPrefix(text, "0x"); hex {
			v, err := strconv.ParseUint(digits, 16, 64)
			return v, err == nil
		}
		return wholeNumber(text)
	case count:
		return wholeNumber(text)
	case joules:
		v, err := strconv.ParseFloat(text, 64)
		milli := math.Round(v * 1000)
		return uint64(milli), err == nil && !blankFloat(v) && milli >= 0 && milli < 1<<63
	case octets, mebibyte:
		number, own := splitUnit(text)
		if own != "" {
			unit = own
		} else if unit == "" && k == mebibyte {
			unit = "MiB"
		}
		v, ok := wholeNumber(number)
		shift, known := byteUnits[unit]
		return v << shift, ok && known && v<<shift>>shift == v && v<<shift <= 1<<46
	}
	return 0, false
}

// byteUnits are the powers of two that tools count memory in.
var byteUnits = map[string]int{"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30}

// wholeNumber reads a decimal without fraction, also in the form 5.0 or 5e+06 in
// which Prometheus text gives one.
func wholeNumber(text string) (uint64, bool) {
	if v, err := strconv.ParseUint(text, 10, 64); err == nil {
		return v, !blankWhole(v)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f < 0 || f != math.Trunc(f) || f >= 1<<63 || blankFloat(f) {
		return 0, false
	}
	return uint64(f), true
}

// DCGM says "no value" with numbers: each of these and the three after it (blank,
// not found, not supported, not permitted), of which a float shows the first.
const (
	blankInt32 = 0x7ffffff0
	blankInt64 = 0x7ffffffffffffff0
	blankFP64  = 140737488355328
)

func blankWhole(v uint64) bool {
	return (v >= blankInt32 && v <= blankInt32+3) || v >= blankInt64 || (v >= blankFP64 && v <= blankFP64+3)
}

func blankFloat(v float64) bool {
	return (v >= blankInt32 && v <= blankInt32+3) || v >= blankInt64 || (v >= blankFP64 && v <= blankFP64+3)
}

// splitUnit cuts "596 MiB" in two.
func splitUnit(text string) (number, unit string) {
	number, unit, _ = strings.Cut(text, " ")
	return number, strings.TrimSpace(unit)
}

// present is a name as a tool gives it, or empty where it says that it has none.
func present(text string) string {
	text = strings.TrimSpace(text)
	switch strings.Trim(text, "[]") {
	case "N/A", "None", "Not Supported", "Unknown Error", "-", "Insufficient Permissions", "Unknown":
		return ""
	}
	return clip(text)
}

// ProcessName is the base name of an executable, out of a path or command line.
func ProcessName(command string) string { return baseName(command) }

// Text is a name as a sample may hold it, empty where the tool says it has none.
func Text(name string) string { return present(name) }

// clip bounds a name and takes out what is no text.
func clip(s string) string { return clipTo(s, maxTextBytes) }

// word is present for what is shorter than a name.
func word(text string) string { return clipTo(present(text), maxWordBytes) }

func clipTo(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	for len(s) > most {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// baseName is the executable's own name. Some tools give the whole command line,
// of which nothing behind the first blank is kept: arguments hold secrets. Only
// Windows has blanks in paths, and there it is the path alone that is given.
func baseName(command string) string {
	command = present(command)
	if i := strings.LastIndexByte(command, '\\'); i >= 0 && strings.Contains(command, `:\`) {
		return command[i+1:]
	}
	command, _, _ = strings.Cut(command, " ")
	return command[strings.LastIndexByte(command, '/')+1:]
}

func decimal(v uint64) string { return strconv.FormatUint(v, 10) }
