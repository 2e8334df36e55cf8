package event

import "fmt"

// Rules that a field can break. They are part of the API: clients match on them.
const (
	RuleMalformed = "malformed"    // not a message of the stated encoding
	RuleUnknown   = "unknown"      // no such field
	RuleType      = "type"         // the value has another type
	RuleRequired  = "required"     // missing or empty
	RuleMaxBytes  = "max_bytes"    // longer than allowed
	RuleMaxItems  = "max_items"    // more than allowed
	RuleUTF8      = "utf8"         // not valid UTF-8
	RuleControl   = "control_char" // contains a control character
	RuleOneOf     = "one_of"       // not in the vocabulary
	RuleRange     = "range"        // a number or time outside its range
	RuleDuplicate = "duplicate"    // given twice
	RuleEdgeOnly  = "edge_only"    // only the edge may set it
	RuleMoney     = "money"        // not a decimal number of USD with at most 12 places
	RuleFuture    = "future"       // occurred_at lies too far ahead of the edge's clock
	RuleTooOld    = "too_old"      // occurred_at lies too far behind
	RuleTenant    = "tenant"       // unknown, or not one the caller may write for
)

// FieldError says which field of an event broke which rule. Its message never
// repeats the field's value: a value may be somebody's prompt in the wrong place.
type FieldError struct {
	Field  string
	Rule   string
	Detail string // what the rule asks for, such as "at most 256 bytes"
}

// Error is "field: rule (detail)".
func (e *FieldError) Error() string {
	if e.Detail == "" {
		return e.Field + ": " + e.Rule
	}
	return fmt.Sprintf("%s: %s (%s)", e.Field, e.Rule, e.Detail)
}

func fail(field, rule, detail string, args ...any) error {
	if len(args) > 0 {
		detail = fmt.Sprintf(detail, args...)
	}
	return &FieldError{Field: field, Rule: rule, Detail: detail}
}
