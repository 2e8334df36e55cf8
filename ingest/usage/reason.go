package usage

import "strings"

// Flags say how far a Result can be trusted. 0 is: as the provider stated it.
type Flags uint8

// The flags.
const (
	// Ambiguous is: what the provider stated contradicts itself.
	Ambiguous Flags = 1 << iota
	// Estimated is: some of the tokens are our estimate.
	Estimated
	// Absent is: the provider stated no usage.
	Absent
	// Truncated is: the response ended before its end.
	Truncated
)

// Reason is why a flag is set, or why usage is zero.
type Reason uint8

// The reasons.
const (
	// NotMetered is an endpoint that uses no tokens (files, counts, listings), or none that
	// are known of here (see Unlisted).
	NotMetered Reason = iota
	// Refused is a status of 400 or more: zero usage.
	Refused
	// Repeat is a response that was counted when it was made.
	Repeat
	// OtherUnit is usage in seconds or search units and not in tokens.
	OtherUnit
	// StreamError is an error that arrived within a response of status 200.
	StreamError
	// NoUsage is a response without usage.
	NoUsage
	// Estimate is a count made from the size of the text, see ReadRequest, or with
	// Counted one that may miss tokens which no text shows.
	Estimate
	// CutOff is a response without its end.
	CutOff
	// Malformed is a response that is not what its framing promises.
	Malformed
	// StatedTwice is one count stated twice with two values; the larger is used.
	StatedTwice
	// BadNumber is a count that is negative, no whole number or beyond reason.
	BadNumber
	// TotalDiffers is a stated total that the classes do not add up to.
	TotalDiffers
	// Pending is a background response that is still being made: its usage will be
	// stated when it is read again, in a Result that is Due and has the same ID.
	Pending
	// CountsFell is a stream whose stated total became smaller; the last is used.
	CountsFell
	// PartsExceed is subsets that are larger than what they are part of.
	PartsExceed
	// Counted is tokens counted out of the text by the model's own tokenizer, and
	// the prompt's by the published rule. Without Estimate that is all of them.
	Counted

	numReasons
)

var reasons = [numReasons]struct {
	name string
	flag Flags
}{
	{"not_metered", 0}, {"refused", 0}, {"repeat", 0}, {"other_unit", 0}, {"stream_error", 0},
	{"no_usage", Absent}, {"estimate", Estimated}, {"cut_off", Truncated},
	{"malformed", Ambiguous}, {"stated_twice", Ambiguous}, {"bad_number", Ambiguous},
	{"total_differs", Ambiguous}, {"pending", Absent}, {"counts_fell", Ambiguous},
	{"parts_exceed", Ambiguous}, {"counted", 0},
}

// String is the reason's name in reports.
func (r Reason) String() string {
	if r < numReasons {
		return reasons[r].name
	}
	return "unknown"
}

// Reasons is a set of reasons.
type Reasons uint32

// Has reports whether r is in the set.
func (s Reasons) Has(r Reason) bool { return s&(1<<r) != 0 }

func (s *Reasons) add(r Reason) { *s |= 1 << r }

func (s Reasons) flags() (f Flags) {
	for r := range numReasons {
		if s.Has(r) {
			f |= reasons[r].flag
		}
	}
	return f
}

// String lists the names, comma-separated; "" is none.
func (s Reasons) String() string {
	var b strings.Builder
	for r := range numReasons {
		if !s.Has(r) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(r.String())
	}
	return b.String()
}
