package event

import (
	"strings"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Normalize fills defaults and brings equal values into one form, so that two
// spellings of one event have the same content. It is applied before the
// ContentMAC is computed.
func (e *Event) Normalize() error {
	if e.Status == "" {
		e.Status = StatusOK
	}
	if e.ServiceTier == "" {
		e.ServiceTier = "standard"
	}
	if e.ProviderCost != "" {
		c, err := money.Parse(e.ProviderCost)
		if err != nil || c < 0 {
			return fail("provider_cost_usd", RuleMoney, "a decimal number of USD >= 0 with at most 12 places")
		}
		if s := c.String(); s != e.ProviderCost {
			e.ProviderCost = s
		}
	}
	return nil
}

// Validate holds the event against the limits that need no clock and no state.
// The edge runs it on a producer's event, and hop 3 of the ledger runs it again
// on what it finds in the log, because the log can be written by others.
// log says that the edge's fields must be there. The error is a *FieldError.
func (e *Event) Validate(log bool) error {
	for i := range Fields {
		f := &Fields[i]
		if f.Edge && !log || f.Kind == String && !f.Required && *e.str(f) == "" {
			continue
		}
		if err := e.validateField(f); err != nil {
			return err
		}
	}
	if err := e.validateGPU(); err != nil {
		return err
	}
	return e.validateCorrection()
}

func (e *Event) validateField(f *Field) error {
	switch f.Kind {
	case String:
		return validateString(f, *e.str(f))
	case Int:
		if v := *e.num(f); v < 0 || v > f.Max {
			return fail(f.Name, RuleRange, "0 to %d", f.Max)
		}
	case Time:
		if v := *e.instant(f); v == 0 {
			return fail(f.Name, RuleRequired, "")
		} else if v < 0 {
			return fail(f.Name, RuleRange, "a time between 1970 and 2262")
		}
	case Bytes:
		if !e.HasContentMAC {
			return fail(f.Name, RuleRequired, "")
		}
	case TokenMap:
		return e.validateTokens(f)
	case TagMap:
		return e.validateTags(f)
	case Blob:
		if int64(len(e.SealedTags)) > f.Max {
			return fail(f.Name, RuleMaxBytes, "at most %d bytes", f.Max)
		}
	}
	return nil
}

func validateString(f *Field, s string) error {
	if s == "" {
		if f.Required {
			return fail(f.Name, RuleRequired, "")
		}
		return nil
	}
	if int64(len(s)) > f.Max {
		return fail(f.Name, RuleMaxBytes, "at most %d bytes", f.Max)
	}
	if rule := textRule(s); rule != "" {
		return fail(f.Name, rule, "")
	}
	switch {
	case f.Num == fieldTenantID && !tenant.ValidID(s):
		return fail(f.Name, RuleTenant, "%s", tenant.ErrInvalidID.Error())
	case f.OneOf != nil && !oneOf(f.OneOf, s):
		return fail(f.Name, RuleOneOf, "one of %s", strings.Join(f.OneOf, ", "))
	case f.Num == fieldUserPseudonym && len(s) != 32:
		return fail(f.Name, RuleRange, "32 hexadecimal digits")
	case f.Num == fieldProviderCost:
		if c, err := money.Parse(s); err != nil || c < 0 {
			return fail(f.Name, RuleMoney, "a decimal number of USD >= 0 with at most 12 places")
		}
	}
	return nil
}

func oneOf(words []string, s string) bool {
	for _, w := range words {
		if w == s {
			return true
		}
	}
	return false
}

// ValidText reports whether s is text that every field would take: valid UTF-8
// without control characters, at most maxBytes long.
func ValidText(s string, maxBytes int) bool { return len(s) <= maxBytes && textRule(s) == "" }

// textRule is the rule that a text breaks, or "". One pass over ASCII, the
// common case, eight bytes at a time; C0 and C1 controls are refused.
func textRule(s string) string {
	i := 0
	for ; i+8 <= len(s); i += 8 {
		if !printable(s[i : i+8]) {
			break
		}
	}
	for ; i < len(s); i++ {
		c := s[i]
		if c >= utf8.RuneSelf {
			if !utf8.ValidString(s[i:]) {
				return RuleUTF8
			}
			for _, r := range s[i:] {
				if r < 0x20 || r >= 0x7f && r < 0xa0 {
					return RuleControl
				}
			}
			return ""
		}
		if c < 0x20 || c == 0x7f {
			return RuleControl
		}
	}
	return ""
}

// printable reports that eight bytes are ASCII without controls. It tests all of
// them in one word: https://graphics.stanford.edu/~seander/bithacks.html#HasLessInWord,
// whose terms are exact below 128, and bytes from there on are not printable here.
func printable(s string) bool {
	_ = s[7]
	w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
	const each, high = 0x0101010101010101, 0x8080808080808080
	del := w ^ each*0x7f
	return (w|(w-each*0x20)|(del-each))&high == 0
}

func (e *Event) validateTokens(f *Field) error {
	for c, n := range e.Tokens {
		if n < 0 || n > f.Max {
			return fail("tokens."+tokens.Class(c).String(), RuleRange, "0 to %d", f.Max)
		}
	}
	return nil
}

func (e *Event) validateTags(f *Field) error {
	if len(e.Tags) > MaxTags {
		return fail(f.Name, RuleMaxItems, "at most %d", MaxTags)
	}
	for i := range e.Tags {
		t := &e.Tags[i]
		if t.Key == "" {
			return fail(f.Name, RuleRequired, "a key is empty")
		}
		for _, s := range [...]string{t.Key, t.Value} {
			if int64(len(s)) > f.Max {
				return fail(f.Name, RuleMaxBytes, "keys and values at most %d bytes", f.Max)
			}
			if rule := textRule(s); rule != "" {
				return fail(f.Name, rule, "")
			}
		}
	}
	return nil
}
