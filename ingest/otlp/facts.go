package otlp

import (
	"math"
	"strconv"
	"strings"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// facts are what attributes state about a call. Attributes that are in no table are
// never looked into: that is how prompts and answers stay out.
type facts struct {
	text   [numTexts]string
	num    [numFields]int64
	rank   [numFields]int // of the alias that said it, plus one; 0 is unknown
	ops    []bool         // what its operations are, by the table
	bill   string
	whose  attribution.Attribution
	tokens bool // a count of tokens is stated, be it 0
}

// read takes the attributes by a table of aliases, and attribution by its own.
func (f *facts) read(attrs []*commonpb.KeyValue, table []alias, find map[string]int) {
	for _, kv := range attrs {
		if i, ok := find[kv.GetKey()]; ok {
			f.take(table[i].to, i+1, kv.GetValue())
		} else {
			f.attribute(kv)
		}
	}
}

func (f *facts) take(to field, rank int, v *commonpb.AnyValue) {
	switch {
	case to == billBy:
		if f.bill != billNone { // which either the call or its resource may say
			f.bill = v.GetStringValue()
		}
	case to == proxyEvent:
		f.word(to, rank, firstText(v))
	case to == metadataJSON:
		f.whose.Object(v.GetStringValue())
	case to == providerPath:
		f.word(provider, rank, providerOf(textOf(v)))
	case tagNames[to] != "":
		f.whose.SetTag(tagNames[to], textOf(v))
	case to < numTexts:
		f.word(to, rank, textOf(v))
	default:
		f.number(to, rank, v)
	}
}

// better says whether a name of this rank may state the fact, and notes it.
func (f *facts) better(to field, rank int) bool {
	if f.rank[to] != 0 && f.rank[to] <= rank {
		return false
	}
	f.rank[to] = rank
	return true
}

func (f *facts) word(to field, rank int, s string) {
	if to == operation {
		if call, known := operations[strings.ToLower(s)]; known {
			f.ops = append(f.ops, call)
		}
	}
	if s != "" && f.better(to, rank) {
		f.text[to] = s
	}
}

func (f *facts) number(to field, rank int, v *commonpb.AnyValue) {
	scale := 1.0
	switch to {
	case ttftSeconds:
		scale = 1e6
	case ttftMillis, durationMillis:
		scale = 1e3
	}
	n, ok := numberOf(v, scale)
	if !ok {
		return
	}
	if to >= inputTokens && to <= toolInput {
		f.tokens = true
	}
	if f.better(to, rank) {
		f.num[to] = n
	}
}

// attribute takes one that says whom the call is for.
func (f *facts) attribute(kv *commonpb.KeyValue) {
	const properties, tag = "traceloop.association.properties.", "tallystick.tag."
	key := kv.GetKey()
	switch {
	case attribution.Known(key):
		f.whose.Metadata(key, textOf(kv.GetValue()))
	case strings.HasPrefix(key, properties):
		f.whose.Metadata(key[len(properties):], textOf(kv.GetValue()))
	case strings.HasPrefix(key, tag):
		f.whose.SetTag(key[len(tag):], textOf(kv.GetValue()))
	}
}

// textOf is a plain value as text; lists and maps are "".
func textOf(v *commonpb.AnyValue) string {
	switch x := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return x.StringValue
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(x.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(x.DoubleValue, 'f', -1, 64)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(x.BoolValue)
	default:
		return ""
	}
}

// firstText is the first of a list of texts, as headers are, or a plain value.
func firstText(v *commonpb.AnyValue) string {
	if values := v.GetArrayValue().GetValues(); len(values) > 0 {
		return textOf(values[0])
	}
	return textOf(v)
}

// numberOf is a value as a count, times scale. Counts are written as integers, as
// doubles and as text.
func numberOf(v *commonpb.AnyValue, scale float64) (int64, bool) {
	var x float64
	switch n := v.GetValue().(type) {
	case *commonpb.AnyValue_IntValue:
		if scale == 1 {
			return n.IntValue, n.IntValue >= 0 && n.IntValue < 1<<53
		}
		x = float64(n.IntValue)
	case *commonpb.AnyValue_DoubleValue:
		x = n.DoubleValue
	case *commonpb.AnyValue_BoolValue:
		if n.BoolValue {
			x = 1
		}
	case *commonpb.AnyValue_StringValue:
		var err error
		if x, err = strconv.ParseFloat(n.StringValue, 64); err != nil {
			return 0, false
		}
	default:
		return 0, false
	}
	if x *= scale; !(x >= 0 && x < 1<<53) {
		return 0, false
	}
	return int64(math.Round(x)), true
}

// isCall says whether the facts are of one call of a model.
func (f *facts) isCall() bool {
	call := f.tokens && (f.rank[model] > 0 || f.rank[requestedModel] > 0 || f.rank[provider] > 0)
	for _, op := range f.ops {
		if !op {
			return false
		}
		call = true
	}
	return call
}

// vector makes disjoint classes of what is stated. In OpenTelemetry cached and
// audio tokens are part of the input and reasoning of the output; some producers
// state them apart, as the providers' APIs do. The total tells which, where one is
// stated; else what cannot be a part is not one. clear is false when nothing fits.
func (f *facts) vector(cacheApart, reasoningApart bool) (v tokens.Vector, clear bool) {
	in, out, total := f.num[inputTokens], f.num[outputTokens], f.num[totalTokens]
	parts := f.num[cacheRead] + f.num[cacheWrite] + f.num[cacheWrite1h] + f.num[audioInput] + f.num[imageInput]
	hidden := f.num[reasoning] + f.num[audioOutput] + f.num[imageOutput]
	if f.rank[inputTokens] == 0 && total > out {
		in = total - out
	}
	clear = true
	switch tools := f.num[toolInput]; {
	case f.rank[totalTokens] == 0 || f.rank[inputTokens] == 0 || cacheApart || reasoningApart:
		cacheApart = cacheApart || parts > in
		reasoningApart = reasoningApart || hidden > out
	case total == in+out+tools:
	case total == in+out+parts:
		cacheApart = true
	case total == in+out+tools+hidden:
		reasoningApart = true
	case total == in+out+parts+hidden:
		cacheApart, reasoningApart = true, true
	default:
		clear = false
	}
	if !cacheApart {
		in, clear = less(in, parts, clear)
	}
	if !reasoningApart {
		out, clear = less(out, hidden, clear)
	}
	v[tokens.Input] = in + f.num[toolInput]
	v[tokens.CacheRead], v[tokens.CacheWrite5m], v[tokens.CacheWrite1h] = f.num[cacheRead], f.num[cacheWrite], f.num[cacheWrite1h]
	v[tokens.AudioInput], v[tokens.AudioOutput] = f.num[audioInput], f.num[audioOutput]
	v[tokens.ImageInput], v[tokens.ImageOutput] = f.num[imageInput], f.num[imageOutput]
	v[tokens.Output], v[tokens.Reasoning] = out, f.num[reasoning]
	return v, clear
}

func less(whole, parts int64, clear bool) (int64, bool) {
	if parts > whole {
		return 0, false
	}
	return whole - parts, clear
}

// Tags of an event whose usage is not plainly stated.
const (
	usageTag       = "usage"
	usageMissing   = "missing"
	usageAmbiguous = "ambiguous"
)

// unknown stands for a provider or model that a failed call never learnt.
const unknown = "unknown"

// event fills in what the facts say of a call.
func (f *facts) event(e *event.Event, cacheApart, reasoningApart bool) {
	e.Provider, e.RequestedModel = first(word(strings.ToLower(f.text[provider]), 64), unknown), f.text[requestedModel]
	e.Model = first(f.text[model], f.text[requestedModel], unknown)
	e.Operation = word(strings.ToLower(f.text[operation]), 64)
	e.ServiceTier, e.Region = tiers[strings.ToLower(f.text[serviceTier])], word(f.text[region], 64)
	e.ProviderRequestID = f.text[responseID]
	e.Streamed = f.num[streaming] > 0
	if f.num[httpStatus] <= 999 {
		e.HTTPStatus = f.num[httpStatus]
	}
	e.TTFTMicros = min(max(f.num[ttftSeconds], f.num[ttftMillis]), event.MaxMicros)
	e.ProviderCost = ingest.USD(f.text[providerCost])
	vec, clear := f.vector(cacheApart, reasoningApart)
	e.Tokens = vec
	if !clear {
		f.whose.SetTag(usageTag, usageAmbiguous)
	}
}

// providerOf is the provider at the beginning of a path.
func providerOf(path string) string {
	if strings.HasPrefix(path, "google.vertex") {
		return "vertex_ai"
	}
	name, _, _ := strings.Cut(path, ".")
	return name
}

func first(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// word is s if it can be a name: short and without blanks. An error's message is none.
func word(s string, maxBytes int) string {
	if len(s) > maxBytes || strings.ContainsAny(s, " \t\r\n") {
		return ""
	}
	return s
}
