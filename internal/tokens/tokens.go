// Package tokens names the token classes that usage is counted and priced in.
//
// The classes are disjoint: a token that was read from a provider's prompt
// cache is counted in CacheRead and never also in Input, a reasoning token is
// never also an Output token. The sum over all classes is therefore the number
// of tokens of a call. Providers that report subsets ("input includes cached")
// are taken apart at the edge, before anything else sees the numbers.
//
// The numeric values of the classes are stored (docs/ledger-format.md): they
// are never renumbered, new ones go to the end.
package tokens

// Class is one kind of billable token.
type Class uint8

// The token classes, in their stored order.
const (
	// Input is uncached prompt tokens.
	Input Class = iota
	// CacheRead is prompt tokens served from the provider's cache.
	CacheRead
	// CacheWrite5m is prompt tokens written to a cache that lives five minutes
	// (or the provider's default lifetime).
	CacheWrite5m
	// CacheWrite1h is prompt tokens written to a cache that lives an hour.
	CacheWrite1h
	// Output is visible completion tokens.
	Output
	// Reasoning is hidden completion tokens ("thinking").
	Reasoning
	// AudioInput is prompt tokens that encode audio.
	AudioInput
	// AudioOutput is completion tokens that encode audio.
	AudioOutput
	// ImageInput is prompt tokens that encode images.
	ImageInput
	// ImageOutput is completion tokens that encode images.
	ImageOutput

	// NumClasses is how many classes there are.
	NumClasses
)

var names = [NumClasses]string{
	"input", "cache_read", "cache_write_5m", "cache_write_1h", "output",
	"reasoning", "audio_input", "audio_output", "image_input", "image_output",
}

// String is the class's name in the API, in price books and in reports.
func (c Class) String() string {
	if c < NumClasses {
		return names[c]
	}
	return "unknown"
}

// ParseClass is the inverse of String.
func ParseClass(s string) (Class, bool) {
	for c, n := range names {
		if n == s {
			return Class(c), true
		}
	}
	return 0, false
}

// IsPrompt reports whether tokens of the class are part of the prompt, whose
// total length decides context-length price tiers.
func (c Class) IsPrompt() bool {
	switch c {
	case Input, CacheRead, CacheWrite5m, CacheWrite1h, AudioInput, ImageInput:
		return true
	default:
		return false
	}
}

// Vector is a count per class. All counts of a valid usage are >= 0.
type Vector [NumClasses]int64

// Prompt is the number of prompt tokens of the vector.
func (v *Vector) Prompt() int64 {
	return v[Input] + v[CacheRead] + v[CacheWrite5m] + v[CacheWrite1h] + v[AudioInput] + v[ImageInput]
}

// Total is the number of tokens of all classes.
func (v *Vector) Total() int64 {
	var n int64
	for _, x := range v {
		n += x
	}
	return n
}
