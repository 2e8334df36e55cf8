package usage

import "math/bits"

// Count is a figure of usage as providers state it; figures overlap.
type Count uint8

// The counts.
const (
	// Prompt is prompt tokens; of which parts, depends on the provider.
	Prompt Count = iota
	// Cached is prompt tokens read from a cache.
	Cached
	// CacheWrite is prompt tokens written to a cache, of either lifetime.
	CacheWrite
	// CacheWrite5m and CacheWrite1h are CacheWrite by lifetime.
	CacheWrite5m
	CacheWrite1h
	// PromptAudio, PromptImage and PromptVideo are prompt tokens by kind; a
	// document counts as images.
	PromptAudio
	PromptImage
	PromptVideo
	// PromptText is the rest of the prompt where the provider states it.
	PromptText
	// CachedAudio, CachedImage, CachedVideo and CachedText are Cached by kind.
	CachedAudio
	CachedImage
	CachedVideo
	CachedText
	// ToolPrompt is tokens that the provider's own tools put in the prompt,
	// beside Prompt.
	ToolPrompt
	// Completion is answer tokens.
	Completion
	// Thinking is reasoning tokens.
	Thinking
	// ToolText is text of ToolPrompt.
	ToolText
	// CompletionAudio, CompletionImage and CompletionText are Completion by kind.
	CompletionAudio
	CompletionImage
	CompletionText
	// Total is the stated total.
	Total
	// RawPrompt, RawCompletion and RawCached are tokens that were processed
	// where billed ones are stated too (Cohere).
	RawPrompt
	RawCompletion
	RawCached
	// Searches is web searches of the provider's own tool.
	Searches
	// Seconds is audio billed by duration, rounded up.
	Seconds
	// Units is search units of a reranker.
	Units
	// Created is when the provider began the response, in unix seconds.
	Created
	// Background is 1 for a response that is made whether its client waits or not.
	Background
	// StatusCode is the HTTP status that a line of a batch's results states.
	StatusCode

	// NumCounts is how many counts there are.
	NumCounts

	detailTokens // a list element's count, whose kind stands beside it
)

// usageCounts are the counts that make a response one with usage in tokens.
const usageCounts = 1<<Prompt | 1<<Completion | 1<<Total | 1<<RawPrompt | 1<<RawCompletion | 1<<Thinking | 1<<ToolPrompt

const (
	maxName  = 128
	maxCount = 1 << 40 // tokens; more than any call can have
)

// The names that are kept of a document.
const (
	nameModel = iota
	nameID
	nameTier
	nameFinish
	nameError
	nameEvent  // the kind of a stream's event
	nameDetail // the kind of a list's element
	numNames
)

// Lines of batches have names of their own in the places of those that they lack.
const (
	nameOutcome  = nameEvent  // what became of the request (Anthropic)
	nameAnswered = nameEvent  // the id of the request that was made of the line (OpenAI)
	nameCustom   = nameDetail // the client's name of the line
	nameObject   = nameFinish // what kind of response it is
)

// fixedName is a name without an allocation.
type fixedName struct {
	n uint8
	b [maxName]byte
}

func (f *fixedName) String() string { return string(f.b[:f.n]) }

func (f *fixedName) set(b []byte) { f.n = uint8(copy(f.b[:], b)) }

// nameByte reports whether c is of the alphabet of names.
func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '.' || c == '_' || c == ':' || c == '/' || c == '@' || c == '+' || c == '-' || c == '='
}

// merging is how the documents of one response belong together.
type merging uint8

const (
	latest merging = iota
	snapshots
	sums
)

// doc is what one JSON document says, or several of them together.
type doc struct {
	has       uint32
	v         [NumCounts]int64
	detail    int64
	clash     bool
	badNumber bool
	fell      bool  // a later total was smaller
	odd       uint8 // names that were there and are none of ours, by bit
	names     [numNames]fixedName
}

func (d *doc) any() bool {
	for i := range d.names {
		if d.names[i].n > 0 {
			return true
		}
	}
	return d.has != 0
}

func (d *doc) reset() {
	if d.has != 0 {
		d.v = [NumCounts]int64{}
	}
	d.has, d.detail, d.clash, d.badNumber, d.odd = 0, 0, false, false, 0
	for i := range d.names {
		d.names[i].n = 0
	}
}

// set takes a count; of two that differ the larger.
func (d *doc) set(c Count, n int64) {
	if c == detailTokens {
		d.detail = n
		return
	}
	if d.has&(1<<c) != 0 && d.v[c] != n {
		d.clash = true
		n = max(n, d.v[c])
	}
	d.has |= 1 << c
	d.v[c] = n
}

// element ends an element of a list of counts by kind.
func (d *doc) element(l list) {
	kind := d.names[nameDetail].String()
	for _, k := range l.kinds {
		if k.name == kind {
			d.has |= 1 << k.to
			d.v[k.to] += d.detail
		}
	}
	d.detail = 0
	d.names[nameDetail].n = 0
}

// merge takes over what from says: later documents of a response replace what
// earlier ones said (their counts are cumulative), those of a batch are summed.
//
// A snapshot (Gemini) replaces all counts at once.
func (d *doc) merge(from *doc, how merging) {
	if how == snapshots && from.has&usageCounts != 0 {
		d.fell = d.fell || from.v[Total] < d.v[Total]
		d.has, d.v = 0, [NumCounts]int64{}
	}
	for left := from.has; left != 0; left &= left - 1 {
		c := bits.TrailingZeros32(left)
		if how == sums {
			d.v[c] += from.v[c]
		} else {
			d.v[c] = from.v[c]
		}
	}
	d.has |= from.has
	d.clash = d.clash || from.clash
	d.badNumber = d.badNumber || from.badNumber
	d.odd |= from.odd
	for i := range from.names {
		if from.names[i].n > 0 && (i != nameID || d.names[i].n == 0) {
			d.names[i].set(from.names[i].b[:from.names[i].n])
		}
	}
}

// textSize is the size of text that was seen and not kept.
type textSize struct{ ascii, other int64 }

// tokens estimates how many tokens the text is: a quarter per ASCII character
// and one per other character, the rule of thumb of the providers' own guides,
// rounded up. It is within a third for English and coarse for all else.
func (t textSize) tokens() int64 { return (t.ascii+3)/4 + t.other }
