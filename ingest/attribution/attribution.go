// Package attribution reads whom a call is for out of the headers and metadata that
// clients send already: our own headers, those of the gateways that people migrate
// from, and W3C baggage. Which header says what is one table (presets.go).
//
// It promises that the same headers give the same Attribution whatever their order,
// that an earlier preset wins over a later one, that what it returns keeps the limits
// of an event, and that a header of a preset is named as used even when nothing was
// taken from it: a gateway's own headers, of which some hold its keys, are never for
// the provider. What breaks a limit is left out and counted; it never fails a call.
// It never takes what is named like a prompt or an answer.
package attribution

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/ingest/event"
)

// Dimension is one place of an Attribution.
type Dimension uint8

// The dimensions. Tag is none of the seven: a pair of the tags.
const (
	Tag Dimension = iota
	Team
	Service
	Feature
	Agent
	User
	EndCustomer
	Environment

	numDimensions
)

// Attribution says whom a call is for. An empty value is unknown.
type Attribution struct {
	// Values are the dimensions by their number; that of Tag is not used.
	Values [numDimensions]string
	// Tags have unique keys, in no order.
	Tags []event.Tag
	// Dropped is how many values broke a limit and were left out.
	Dropped int
}

// Apply puts the attribution into an event where the event says nothing itself.
func (a *Attribution) Apply(e *event.Event) {
	for d, to := range [...]*string{
		Team: &e.Team, Service: &e.Service, Feature: &e.Feature, Agent: &e.Agent,
		User: &e.User, EndCustomer: &e.EndCustomer, Environment: &e.Environment,
	} {
		if to != nil && *to == "" {
			*to = a.Values[d]
		}
	}
	for _, t := range a.Tags {
		if len(e.Tags) < event.MaxTags && !hasKey(e.Tags, t.Key) {
			e.Tags = append(e.Tags, t)
		}
	}
	slices.SortFunc(e.Tags, func(x, y event.Tag) int { return cmp.Compare(x.Key, y.Key) })
}

// Set takes a value for a dimension unless there is one already.
func (a *Attribution) Set(d Dimension, value string) {
	value = strings.TrimSpace(value)
	switch {
	case d == Tag || value == "" || a.Values[d] != "":
	case !event.ValidText(value, event.MaxValueBytes):
		a.Dropped++
	default:
		a.Values[d] = value
	}
}

// SetTag takes a pair unless there is one of its key already.
func (a *Attribution) SetTag(key, value string) {
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch {
	case key == "" || hasKey(a.Tags, key):
	case len(a.Tags) == event.MaxTags || !event.ValidText(key, event.MaxValueBytes) || !event.ValidText(value, event.MaxValueBytes) || NamesContent(key):
		a.Dropped++
	default:
		a.Tags = append(a.Tags, event.Tag{Key: key, Value: value})
	}
}

// Metadata takes one member of a free map of names and values: as a dimension
// when the name is one of the table's, else as a tag.
func (a *Attribution) Metadata(name, value string) {
	if d := dimensionOf(name); d != Tag {
		a.Set(d, value)
	} else {
		a.SetTag(name, value)
	}
}

func hasKey(tags []event.Tag, key string) bool {
	for i := range tags {
		if tags[i].Key == key {
			return true
		}
	}
	return false
}

// found is a header of a preset.
type found struct {
	rank int // of its rule in the table: lower wins
	rule *rule
	name string
}

// FromHeaders reads the attribution of a request, and names the headers that are of
// any preset. The names are the map's own keys, which must be canonical
// (net/http makes them so); a proxy deletes them before it calls upstream. A request
// without such headers costs no allocation.
func FromHeaders(h http.Header) (a Attribution, used []string) {
	var room [16]found
	hits := room[:0]
	for name := range h {
		if r, rank := ruleOf(name); r != nil {
			hits = append(hits, found{rank, r, name})
		}
	}
	if len(hits) == 0 {
		return a, nil
	}
	slices.SortFunc(hits, func(x, y found) int {
		if c := cmp.Compare(x.rank, y.rank); c != 0 {
			return c
		}
		return cmp.Compare(x.name, y.name)
	})
	used = make([]string, len(hits))
	for i, hit := range hits {
		used[i] = hit.name
		for _, value := range h[hit.name] {
			if len(value) > maxHeaderBytes {
				a.Dropped++
				continue
			}
			hit.rule.read(&a, hit.name, value)
		}
	}
	return a, used
}

// maxHeaderBytes bounds what is parsed of one header: 32 tags of 512 bytes.
const maxHeaderBytes = 16 << 10

// read takes what one value of a header says.
func (r *rule) read(a *Attribution, name, value string) {
	switch r.form {
	case strip:
	case text:
		a.take(r.to, r.tag, value)
	case suffix:
		key := strings.ToLower(name[len(r.header):])
		if r.known {
			a.Metadata(key, value)
		} else {
			a.SetTag(key, value)
		}
	case pairs:
		for pair := range strings.SplitSeq(value, ",") {
			if k, v, ok := strings.Cut(pair, "="); ok {
				a.Metadata(strings.TrimSpace(k), v)
			} else if strings.TrimSpace(pair) != "" {
				a.Dropped++
			}
		}
	case words:
		a.Words(value)
	case object:
		a.object(value)
	case baggage:
		a.baggage(value)
	}
}

func (a *Attribution) take(d Dimension, tag, value string) {
	if d == Tag {
		a.SetTag(tag, value)
	} else {
		a.Set(d, value)
	}
}

// Words takes a list of tags that are words: "k:v" and "k=v" are pairs, and
// another word is a tag of the value "true".
func (a *Attribution) Words(list string) {
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if i := strings.IndexAny(word, ":="); i > 0 {
			a.Metadata(word[:i], word[i+1:])
		} else if word != "" {
			a.SetTag(word, "true")
		}
	}
}
