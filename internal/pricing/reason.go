package pricing

import (
	"fmt"

	"github.com/tallystick/tallystick/internal/tokens"
)

// ReasonCode says why a usage is unpriced. The numbers are stored: they are never changed.
type ReasonCode uint8

// The reasons for having no price.
const (
	// ReasonNone: the usage is priced.
	ReasonNone ReasonCode = 0
	// ReasonUnknownModel: the book has no row for this provider and model.
	ReasonUnknownModel ReasonCode = 1
	// ReasonRegion: the model has rows, but only for other regions.
	ReasonRegion ReasonCode = 2
	// ReasonNotValid: no row of the model is valid at the usage's time.
	ReasonNotValid ReasonCode = 3
	// ReasonNotKnown: a row is valid then, but was not known at the knowledge time.
	ReasonNotKnown ReasonCode = 4
	// ReasonServiceTier: the service tier is unknown, or the row has no rates for it.
	ReasonServiceTier ReasonCode = 5
	// ReasonContextTier: the row has the service tier, but not at this context length.
	ReasonContextTier ReasonCode = 6
	// ReasonNoRate: the sheet has no rate for the class named beside the code.
	ReasonNoRate ReasonCode = 7
	// ReasonNegativeTokens: a count is negative.
	ReasonNegativeTokens ReasonCode = 8
	// ReasonOverflow: the cost does not fit a money.Pico.
	ReasonOverflow ReasonCode = 9
	// ReasonPurchase: the GPU instance has prices, but not for the way in which it was bought.
	ReasonPurchase ReasonCode = 10

	numReasons = 11
)

var reasonNames = [numReasons]string{
	"", "unknown_model", "no_price_in_region", "no_price_at_time", "price_not_yet_known",
	"no_price_for_service_tier", "no_price_for_context_tier", "no_rate", "negative_tokens", "cost_overflow",
	"no_price_for_purchase_option",
}

// Reason is why a usage is unpriced; the zero value means that it is priced.
type Reason struct {
	Code ReasonCode
	// Class is the token class that ReasonNoRate, ReasonNegativeTokens and ReasonOverflow
	// are about.
	Class tokens.Class
}

// reasonText holds every text, so String does not allocate on the hot path.
var reasonText = func() (text [numReasons][tokens.NumClasses]string) {
	for code := range text {
		for class := range text[code] {
			text[code][class] = reasonNames[code]
			if ReasonCode(code).hasClass() {
				text[code][class] += ":" + tokens.Class(class).String()
			}
		}
	}
	return text
}()

func (c ReasonCode) hasClass() bool {
	return c == ReasonNoRate || c == ReasonNegativeTokens || c == ReasonOverflow
}

// String is the stored and displayed form, "" when priced, for example "unknown_model" or
// "no_rate:cache_write_1h". It does not allocate for valid reasons.
func (r Reason) String() string {
	if r.Code < numReasons && r.Class < tokens.NumClasses {
		return reasonText[r.Code][r.Class]
	}
	return fmt.Sprintf("reason_%d:%d", r.Code, r.Class)
}

// ParseReason is the inverse of String.
func ParseReason(s string) (Reason, bool) {
	for code := range reasonText {
		for class, text := range reasonText[code] {
			if text == s {
				return Reason{ReasonCode(code), tokens.Class(class)}, true
			}
		}
	}
	return Reason{}, false
}
