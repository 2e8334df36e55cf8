// Package mapping is a tenant's rules that say whom a call is for where its
// producer does not: "calls with this credential are team search's", "this service
// belongs to that customer".
//
// Rules run at the edge, once, in their order; what they made of an event and the
// version of the rules is in its entry, and each version is in the tenant's chain
// as a control entry with the hash of its canonical text. A version is never
// changed: new rules are the next one. The rules are pure: the same event and
// credential give the same attribution.
//
// Beside the rules it keeps whom reports show as the owner of what is untagged even
// so (owners.go).
package mapping

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Limits of a version.
const (
	MaxRules = 200
	MaxBytes = 64 << 10 // of the canonical text
	maxValue = 256
)

// ErrInvalid says that rules are not acceptable; the text says which and why.
var ErrInvalid = errors.New("mapping: not acceptable")

// ErrVersion says that the rules are of another version than the caller believes.
var ErrVersion = errors.New("mapping: there is a newer version")

// Rule gives events that match some of its dimensions.
type Rule struct {
	// When has a pattern for each name that must match: "*" is any text, "?" any
	// character (path.Match without classes). Names are those of Fields, "credential" for the id of
	// the token that the event came with, or "tag.KEY". An empty pattern matches what
	// is not there. A rule without conditions matches every event.
	When map[string]string `json:"when,omitempty"`
	// Set has a value for each dimension that is given.
	Set map[string]string `json:"set"`
	// Override replaces what the producer or a rule before said; without it a rule
	// only fills in what is empty.
	Override bool `json:"override,omitempty"`
}

// Fields are the names of an event that a rule can look at; the first seven are the
// dimensions that it can set. "user" is not among them: a person is never given.
var Fields = []string{
	"team", "service", "feature", "agent", "end_customer", "environment",
	"provider", "model", "operation", "region", "producer_id",
}

// dimensions is how many of Fields can be set.
const dimensions = 6

// Credential is the name of the condition on the caller's token.
const Credential = "credential"

const tagPrefix = "tag."

// Rules are one version of a tenant's rules.
type Rules struct {
	Tenant  tenant.ID
	Version int64 // 0: the tenant has none
	list    []Rule
}

// Event is what rules see and change.
type Event interface {
	// Get is the value of one of Fields, or of "tag.KEY".
	Get(name string) string
	// Set gives one of the dimensions its value.
	Set(name, value string)
}

// Parse reads rules in JSON: {"rules":[…]}. Error: ErrInvalid.
func Parse(text []byte) ([]Rule, error) {
	var doc struct {
		Rules []Rule `json:"rules"`
	}
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrInvalid, MaxBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if dec.More() {
		return nil, fmt.Errorf("%w: something follows the rules", ErrInvalid)
	}
	return doc.Rules, check(doc.Rules)
}

// Canonical is the one text of rules, which their hash is of.
func Canonical(rules []Rule) ([]byte, error) {
	if rules == nil {
		rules = []Rule{}
	}
	text, err := json.Marshal(map[string][]Rule{"rules": rules}) // members of maps are sorted
	if err == nil && len(text) > MaxBytes {
		err = fmt.Errorf("%w: more than %d bytes", ErrInvalid, MaxBytes)
	}
	return text, err
}

// Hash is the SHA-256 of a canonical text.
func Hash(text []byte) [sha256.Size]byte { return sha256.Sum256(text) }

// New makes a version of rules that were read from where versions are kept.
func New(id tenant.ID, version int64, text []byte) (*Rules, error) {
	list, err := Parse(text)
	return &Rules{Tenant: id, Version: version, list: list}, err
}

func check(rules []Rule) error {
	if len(rules) > MaxRules {
		return fmt.Errorf("%w: more than %d rules", ErrInvalid, MaxRules)
	}
	for i, r := range rules {
		if len(r.Set) == 0 {
			return fmt.Errorf("%w: rule %d sets nothing", ErrInvalid, i+1)
		}
		for name, value := range r.Set {
			if !contains(Fields[:dimensions], name) {
				return fmt.Errorf("%w: rule %d sets %q; it can set %s", ErrInvalid, i+1, name, strings.Join(Fields[:dimensions], ", "))
			}
			if value == "" || !plain(value) {
				return fmt.Errorf("%w: rule %d: the value of %q has 1 to %d bytes of text", ErrInvalid, i+1, name, maxValue)
			}
		}
		for name, pattern := range r.When {
			if !contains(Fields, name) && name != Credential && (!strings.HasPrefix(name, tagPrefix) || len(name) == len(tagPrefix)) {
				return fmt.Errorf("%w: rule %d looks at %q; it can look at %s, %s and tag.KEY", ErrInvalid, i+1, name, strings.Join(Fields, ", "), Credential)
			}
			if !plain(pattern) || strings.ContainsAny(pattern, `[\`) {
				return fmt.Errorf("%w: rule %d: the pattern of %q has at most %d bytes of text, * and ?", ErrInvalid, i+1, name, maxValue)
			}
		}
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// plain reports text without control characters.
func plain(s string) bool {
	return len(s) <= maxValue && strings.ToValidUTF8(s, "") == s && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}

// Apply runs the rules over an event that came with a credential, and reports
// whether they changed it.
func (r *Rules) Apply(e Event, credential string) (changed bool) {
	for i := range r.list {
		rule := &r.list[i]
		if !rule.matches(e, credential) {
			continue
		}
		for _, name := range Fields[:dimensions] {
			value := rule.Set[name]
			if have := e.Get(name); value != "" && have != value && (have == "" || rule.Override) {
				e.Set(name, value)
				changed = true
			}
		}
	}
	return changed
}

func (r *Rule) matches(e Event, credential string) bool {
	for name, pattern := range r.When {
		value := credential
		if name != Credential {
			value = e.Get(name)
		}
		if !match(pattern, value) {
			return false
		}
	}
	return true
}

// match is path.Match in which a slash is a character like any other.
func match(pattern, value string) bool {
	if !strings.ContainsAny(pattern, "*?") {
		return pattern == value
	}
	ok, err := path.Match(slash.Replace(pattern), slash.Replace(value))
	return ok && err == nil
}

var slash = strings.NewReplacer("/", "\x00")
