package usage

import "github.com/tallystick/tallystick/internal/tokens"

// shape is how a dialect's counts overlap.
type shape uint8

const (
	// subsets: cached and media tokens are part of the prompt, reasoning and
	// media tokens part of the completion (OpenAI and all that follow it).
	subsets shape = iota
	// apart: cache reads and writes stand beside the prompt (Anthropic, Bedrock).
	apart
	// thoughtsApart: cached tokens are part of the prompt, thoughts and what
	// tools put in the prompt stand beside (Gemini).
	thoughtsApart
	// billed: billed counts, else processed ones (Cohere).
	billed
)

// normalise takes overlapping counts apart into disjoint classes. The stated
// total decides where providers of one dialect differ.
func normalise(s shape, d *doc, r *Result) {
	n := d.v // a copy: Reported stays as stated
	has := func(c Count) bool { return d.has&(1<<c) != 0 }
	if s == billed {
		n[Cached] = 0
		if !has(Prompt) && !has(Completion) {
			n[Prompt], n[Completion], n[Cached] = n[RawPrompt], n[RawCompletion], min(n[RawCached], n[RawPrompt])
		}
	}
	if !has(Prompt) && !has(Completion) && has(Total) && !has(ToolPrompt) && !has(Thinking) {
		n[Prompt] = n[Total] // embeddings of some providers state only this
	}
	if split := n[CacheWrite5m] + n[CacheWrite1h]; !has(CacheWrite) {
		n[CacheWrite] = split
	} else if split > n[CacheWrite] {
		r.Reasons.add(PartsExceed)
		n[CacheWrite] = split
	}
	n[Prompt] += n[ToolPrompt]
	cache := n[Cached] + n[CacheWrite]
	if wholePrompt(s, &n, cache, has(Total)) {
		n[Prompt] += cache
	}
	if wholeCompletion(s, &n, has(Total)) {
		n[Completion] += n[Thinking]
	}
	spread(&n, r)
	if has(Total) && r.Tokens.Total() != n[Total] {
		r.Reasons.add(TotalDiffers)
	}
}

// wholePrompt reports that the cache's tokens are to be added to the prompt.
func wholePrompt(s shape, n *[NumCounts]int64, cache int64, total bool) bool {
	if cache == 0 {
		return false
	}
	within, beside := n[Prompt]+n[Completion], n[Prompt]+n[Completion]+cache
	if s == apart {
		// Some models behind the same interface count them within.
		return !(total && n[Total] == within && cache <= n[Prompt])
	}
	return total && n[Total] == beside && cache > n[Prompt]
}

// wholeCompletion reports that reasoning is to be added to the completion.
func wholeCompletion(s shape, n *[NumCounts]int64, total bool) bool {
	if n[Thinking] == 0 {
		return false
	}
	within, beside := n[Prompt]+n[Completion], n[Prompt]+n[Completion]+n[Thinking]
	if s == thoughtsApart {
		return !(total && n[Total] == within && n[Thinking] <= n[Completion])
	}
	return total && n[Total] == beside || !total && n[Thinking] > n[Completion]
}

// spread puts whole counts into disjoint classes. Where parts exceed their
// whole the whole is kept and the later parts give way.
func spread(n *[NumCounts]int64, r *Result) {
	left := n[Prompt]
	take := func(want int64) int64 {
		got := max(min(want, left), 0)
		if got != want {
			r.Reasons.add(PartsExceed)
		}
		left -= got
		return got
	}
	t := &r.Tokens
	t[tokens.CacheRead] = take(n[Cached])
	hour := min(n[CacheWrite1h], n[CacheWrite])
	t[tokens.CacheWrite1h] = take(hour)
	t[tokens.CacheWrite5m] = take(n[CacheWrite] - hour)
	t[tokens.AudioInput] = take(max(n[PromptAudio]-n[CachedAudio], 0))
	t[tokens.ImageInput] = take(max(n[PromptImage]-n[CachedImage], 0))
	t[tokens.Input] = left
	left = n[Completion]
	t[tokens.Reasoning] = take(n[Thinking])
	t[tokens.AudioOutput] = take(n[CompletionAudio])
	t[tokens.ImageOutput] = take(n[CompletionImage])
	t[tokens.Output] = left
}
