package pricing

import (
	"slices"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Hints say what a model takes; they allow derivations that would be guesses otherwise.
type Hints struct {
	Vision, AudioInput bool
}

// derivation is one rate that follows from another class by the provider's own billing.
type derivation struct {
	class, from tokens.Class
	allowed     func(provider string, h Hints) bool
}

var derivations = []derivation{
	// Hidden reasoning is billed as output. OpenAI, "Reasoning models": reasoning tokens "are
	// billed as output tokens"; Anthropic, "Extended thinking": thinking tokens are billed as
	// output tokens; Google, "Gemini API pricing": "output price (including thinking tokens)";
	// DeepSeek, "Models & pricing": the chain of thought and the answer are priced equally.
	{tokens.Reasoning, tokens.Output, func(string, Hints) bool { return true }},
	// Images in a prompt are billed as prompt tokens. OpenAI, "Images and vision": image
	// inputs "are metered and charged in tokens, similar to text inputs"; Google, "Gemini API
	// pricing": one price for "text / image / video".
	{tokens.ImageInput, tokens.Input, func(provider string, h Hints) bool {
		return h.Vision && slices.Contains([]string{"openai", "azure", "gemini", "vertex_ai"}, provider)
	}},
	// Where Google names one input price for all kinds (2.5 Pro), audio has it too; models
	// with an audio price of their own state it.
	{tokens.AudioInput, tokens.Input, func(provider string, h Hints) bool {
		return h.AudioInput && (provider == "gemini" || provider == "vertex_ai")
	}},
}

// Derive fills in, and marks as derived, the rates that the source leaves out because the
// provider bills the class like another one. Cache reads and writes are never derived: their
// discounts and surcharges differ by provider and model. A class for which any sheet of the
// row states a rate that differs from its model class's is priced by its own rule, and is
// then not derived in the other sheets either.
func (r *Row) Derive(h Hints) {
	for _, d := range derivations {
		if !d.allowed(r.Provider, h) || r.hasOwnRate(d.class, d.from) {
			continue
		}
		for i := range r.Sheets {
			s := &r.Sheets[i]
			if s.Rates[d.class] == NoRate && s.Rates[d.from] != NoRate {
				s.Rates[d.class] = s.Rates[d.from]
				s.Derived[d.class] = true
			}
		}
	}
}

// hasOwnRate reports a stated rate of class that differs from the one of from.
func (r *Row) hasOwnRate(class, from tokens.Class) bool {
	return slices.ContainsFunc(r.Sheets, func(s Sheet) bool {
		return s.Rates[class] != NoRate && s.Rates[class] != s.Rates[from]
	})
}
