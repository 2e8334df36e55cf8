package callback

import (
	"encoding/json"
	"math"
	"strconv"
)

// The members of others' payloads change their types between versions: a count is
// a number, a number in quotes or null, a code a number or a text. These take what
// they can use and pass over the rest, so that one member costs no call.

// text is a string, or a number or boolean as it is written.
type text string

// UnmarshalJSON takes any value.
func (t *text) UnmarshalJSON(b []byte) error {
	switch {
	case len(b) == 0 || b[0] == '{' || b[0] == '[' || string(b) == "null":
		*t = ""
		return nil
	case b[0] != '"':
		*t = text(b)
		return nil
	}
	return json.Unmarshal(b, (*string)(t))
}

// seconds is a time or a duration.
type seconds float64

// UnmarshalJSON takes any value.
func (s *seconds) UnmarshalJSON(b []byte) error {
	var t text
	if err := t.UnmarshalJSON(b); err != nil {
		return err
	}
	x, err := strconv.ParseFloat(string(t), 64)
	if err != nil || math.IsNaN(x) {
		x = 0
	}
	*s = seconds(x)
	return nil
}

// count is a number of tokens, 0 for what is none.
type count int64

// UnmarshalJSON takes any value.
func (c *count) UnmarshalJSON(b []byte) error {
	var s seconds
	if err := s.UnmarshalJSON(b); err != nil {
		return err
	}
	*c = 0
	if s >= 0 && s < 1<<53 {
		*c = count(s)
	}
	return nil
}

// flag is true only for true.
type flag bool

// UnmarshalJSON takes any value.
func (f *flag) UnmarshalJSON(b []byte) error {
	*f = string(b) == "true"
	return nil
}

// members are those of an object; nil for another value.
type members map[string]json.RawMessage

// UnmarshalJSON takes any value.
func (m *members) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '{' {
		*m = nil
		return nil
	}
	return json.Unmarshal(b, (*map[string]json.RawMessage)(m))
}

// part is an object of which T is read; another value is nothing of it.
type part[T any] struct{ of T }

// UnmarshalJSON takes any value.
func (p *part[T]) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '{' {
		return nil
	}
	return json.Unmarshal(b, &p.of)
}
