package attribution

import (
	"encoding/json"
	"net/url"
	"strings"
)

// object reads a JSON object of plain values. What is nested is left out: a header
// is no place for documents.
func (a *Attribution) object(value string) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(value), &members); err != nil {
		a.Dropped++
		return
	}
	a.Members(members)
}

// Members takes the members of a JSON object as metadata. What is no plain value
// is left out and counted.
func (a *Attribution) Members(members map[string]json.RawMessage) {
	for _, name := range sortedKeys(members) {
		raw := members[name]
		if string(raw) == "null" {
			continue
		}
		if s, ok := plain(raw); ok {
			a.Metadata(name, s)
		} else {
			a.Dropped++
		}
	}
}

// plain is a JSON string, number or boolean as text.
func plain(raw json.RawMessage) (string, bool) {
	switch {
	case len(raw) == 0 || raw[0] == '{' || raw[0] == '[':
		return "", false
	case raw[0] != '"':
		return string(raw), true
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// ownBaggage begins the names of baggage members that are meant for us.
const ownBaggage = "tallystick."

// baggage reads a W3C baggage header: members "name=value;property" with
// percent-encoded values. It is everybody's, so only dimensions by their names of
// the table are taken, and any member that begins with "tallystick.".
func (a *Attribution) baggage(value string) {
	for member := range strings.SplitSeq(value, ",") {
		member, _, _ = strings.Cut(member, ";")
		name, encoded, ok := strings.Cut(member, "=")
		name = strings.TrimSpace(name)
		own := strings.HasPrefix(name, ownBaggage)
		if d := dimensionOf(name); !ok || !own && d == Tag {
			continue
		}
		text, err := url.PathUnescape(strings.TrimSpace(encoded))
		if err != nil {
			a.Dropped++
			continue
		}
		a.Metadata(strings.TrimPrefix(name, ownBaggage), text)
	}
}

// Object takes a JSON object of plain values as metadata. What is nested or no
// object is left out and counted.
func (a *Attribution) Object(value string) {
	if len(value) > maxHeaderBytes {
		a.Dropped++
		return
	}
	a.object(value)
}

// Known reports whether a name of metadata means a dimension.
func Known(name string) bool { return dimensionOf(name) != Tag }
