package tokens

import "testing"

func TestClassNamesRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for c := Class(0); c < NumClasses; c++ {
		got, ok := ParseClass(c.String())
		if !ok || got != c {
			t.Errorf("ParseClass(%q) = %v, %v; want %v", c.String(), got, ok, c)
		}
		if seen[c.String()] {
			t.Errorf("name %q stands for two classes", c.String())
		}
		seen[c.String()] = true
	}
	if _, ok := ParseClass("unknown"); ok {
		t.Error(`ParseClass("unknown") succeeded`)
	}
}

// Prompt must agree with IsPrompt, and the prompt and completion classes must
// together be the total.
func TestVectorSums(t *testing.T) {
	var v Vector
	var prompt, total int64
	for c := Class(0); c < NumClasses; c++ {
		v[c] = 1 << c
		total += v[c]
		if c.IsPrompt() {
			prompt += v[c]
		}
	}
	if got := v.Prompt(); got != prompt {
		t.Errorf("Prompt() = %d, want %d", got, prompt)
	}
	if got := v.Total(); got != total {
		t.Errorf("Total() = %d, want %d", got, total)
	}
}
