package attribution

import (
	"maps"
	"slices"
	"strings"
)

// form is how a header is written.
type form uint8

const (
	strip  form = iota // says nothing about attribution; it is kept from the provider
	text               // the value of one dimension or tag
	suffix             // the name goes on with a tag's key
	pairs              // k=v,k=v
	words              // a,b:c
	object             // a JSON object
	baggage
)

// rule is one row of the table.
type rule struct {
	// header is the canonical name; with the forms suffix and strip its beginning.
	header string
	form   form
	to     Dimension // of text
	tag    string    // of text to a Tag
	known  bool      // suffix: keys that name a dimension are it
}

// Preset is the headers of one convention.
type Preset struct {
	Name  string
	rules []rule
}

// Presets is the table, in order of precedence. Sources: our own API; the SDKs
// `tolvyn` (PyPI) and `@tensorcost/*` (npm), as published in 2026; Helicone's and
// Portkey's header directories; LiteLLM's "request headers" page; W3C Baggage.
var Presets = []Preset{
	{"tallystick", []rule{
		{header: "X-Tallystick-Team", form: text, to: Team},
		{header: "X-Tallystick-Service", form: text, to: Service},
		{header: "X-Tallystick-Feature", form: text, to: Feature},
		{header: "X-Tallystick-Agent", form: text, to: Agent},
		{header: "X-Tallystick-User", form: text, to: User},
		{header: "X-Tallystick-End-Customer", form: text, to: EndCustomer},
		{header: "X-Tallystick-Environment", form: text, to: Environment},
		{header: "X-Tallystick-Tags", form: pairs},
		{header: "X-Tallystick-Tag-", form: suffix},
		{header: "X-Tallystick-", form: strip},
	}},
	{"tolvyn", []rule{
		{header: "X-Tolvyn-Team", form: text, to: Team},
		{header: "X-Tolvyn-Service", form: text, to: Service},
		{header: "X-Tolvyn-Feature", form: text, to: Feature},
		{header: "X-Tolvyn-Agent", form: text, to: Agent},
		{header: "X-Tolvyn-User", form: text, to: User},
		{header: "X-Tolvyn-End-Customer", form: text, to: EndCustomer},
		{header: "X-Tolvyn-Environment", form: text, to: Environment},
		{header: "X-Tolvyn-", form: strip},
	}},
	{"tensorcost", []rule{
		{header: "X-Tc-Team-Id", form: text, to: Team},
		{header: "X-Tc-Team", form: text, to: Team},
		{header: "X-Tc-Application", form: text, to: Service},
		{header: "X-Tc-Feature", form: text, to: Feature},
		{header: "X-Tc-Agent-Id", form: text, to: Agent},
		{header: "X-Tc-User", form: text, to: User},
		{header: "X-Tc-Customer", form: text, to: EndCustomer},
		{header: "X-Tc-Environment", form: text, to: Environment},
		{header: "X-Tc-Workflow-Id", form: text, tag: "workflow_id"},
		{header: "X-Tc-Tags", form: words},
		{header: "X-Tc-", form: strip},
	}},
	{"helicone", []rule{
		{header: "Helicone-User-Id", form: text, to: User},
		{header: "Helicone-Session-Id", form: text, tag: "session_id"},
		{header: "Helicone-Session-Name", form: text, tag: "session_name"},
		{header: "Helicone-Prompt-Id", form: text, tag: "template_id"},
		{header: "Helicone-Property-", form: suffix, known: true},
		{header: "Helicone-", form: strip},
	}},
	{"portkey", []rule{
		{header: "X-Portkey-Metadata", form: object},
		{header: "X-Portkey-Trace-Id", form: text, tag: "trace_id"},
		{header: "X-Portkey-", form: strip},
	}},
	{"litellm", []rule{
		{header: "X-Litellm-Customer-Id", form: text, to: EndCustomer},
		{header: "X-Litellm-End-User-Id", form: text, to: EndCustomer},
		{header: "X-Litellm-Agent-Id", form: text, to: Agent},
		{header: "X-Litellm-Trace-Id", form: text, tag: "trace_id"},
		{header: "X-Litellm-Session-Id", form: text, tag: "session_id"},
		{header: "X-Litellm-Spend-Logs-Metadata", form: object},
		{header: "X-Litellm-Tags", form: words},
		{header: "X-Litellm-", form: strip},
	}},
	{"baggage", []rule{
		{header: "Baggage", form: baggage},
	}},
}

// names are what the dimensions are called in metadata, properties, baggage and
// resource attributes. They are compared in lower case, with '_' for '-', '.' and ' '.
var names = map[string]Dimension{
	"team": Team, "team_id": Team, "team_name": Team, "team_alias": Team, "tallystick_team": Team,
	"service": Service, "service_name": Service, "app": Service, "application": Service, "app_name": Service, "tallystick_service": Service,
	"feature": Feature, "feature_name": Feature, "use_case": Feature, "usecase": Feature, "tallystick_feature": Feature,
	"agent": Agent, "agent_id": Agent, "agent_name": Agent, "gen_ai_agent_name": Agent, "tallystick_agent": Agent,
	"user": User, "_user": User, "user_id": User, "userid": User, "enduser_id": User, "user_email": User, "tallystick_user": User,
	"end_customer": EndCustomer, "customer": EndCustomer, "customer_id": EndCustomer, "tallystick_end_customer": EndCustomer,
	"environment": Environment, "env": Environment, "_environment": Environment,
	"deployment_environment": Environment, "deployment_environment_name": Environment, "tallystick_environment": Environment,
}

// dimensionOf is the dimension that a name means, or Tag.
func dimensionOf(name string) Dimension {
	if len(name) > 32 {
		return Tag
	}
	var b [32]byte
	for i := range len(name) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case c == '-' || c == '.' || c == ' ':
			c = '_'
		}
		b[i] = c
	}
	return names[string(b[:len(name)])]
}

// content are words that name what a model was told or said.
var content = map[string]bool{
	"prompt": true, "prompts": true, "message": true, "messages": true, "completion": true, "completions": true,
	"response": true, "responses": true, "content": true, "input": true, "output": true, "answer": true, "query": true, "question": true,
	"system": true, "instructions": true, "body": true, "text": true, "choices": true,
}

// NamesContent reports whether a name is one of prompts' or answers'. The last part
// of a dotted name decides.
func NamesContent(name string) bool {
	name = name[strings.LastIndexByte(name, '.')+1:]
	if len(name) > len("instructions") {
		return false
	}
	return content[strings.ToLower(name)]
}

// index is the table for look-ups: whole names, and beginnings by their first part.
type index struct {
	exact  map[string]int
	begins []int // ranks of rules with the forms suffix and strip
	rules  []rule
}

var table = newIndex(Presets)

func newIndex(presets []Preset) (x index) {
	x.exact = map[string]int{}
	for _, p := range presets {
		for _, r := range p.rules {
			rank := len(x.rules)
			x.rules = append(x.rules, r)
			if r.form == suffix || r.form == strip {
				x.begins = append(x.begins, rank)
			} else {
				x.exact[r.header] = rank
			}
		}
	}
	return x
}

// ruleOf finds the row of a canonical header name, nil for a header of no preset.
func ruleOf(name string) (*rule, int) {
	if !maybe(name) {
		return nil, 0
	}
	if rank, ok := table.exact[name]; ok {
		return &table.rules[rank], rank
	}
	for _, rank := range table.begins {
		if r := &table.rules[rank]; len(name) > len(r.header) && strings.HasPrefix(name, r.header) {
			return r, rank
		}
	}
	return nil, 0
}

// maybe reports false for most headers that are of no preset, by the few letters
// with which all that are begin.
func maybe(name string) bool {
	switch {
	case len(name) < len("Baggage"):
		return false
	case name[0] == 'X':
		return name[2] == 'T' || name[2] == 'P' || name[2] == 'L'
	default:
		return name[0] == 'H' || name[0] == 'B'
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
