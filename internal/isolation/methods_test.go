package isolation

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	// Registers the API's descriptors.
	_ "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// method is one method of the API as its descriptor tells of it.
type method struct {
	name, short string // /package.Service/Method; Method
	input       protoreflect.MessageDescriptor
	output      protoreflect.MessageDescriptor
	http        *annotations.HttpRule // nil without a REST form
	streams     bool
	reads       bool // it is named as one that changes nothing
}

// apiMethods lists all methods, those that destroy something last.
func apiMethods(t testing.TB) []method {
	t.Helper()
	var list []method
	protoregistry.GlobalFiles.RangeFilesByPackage("tallystick.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if s.Name() == "AgentGateway" {
				continue // on a listener of its own, without tokens: ingest/agent has its attacks
			}
			for j := range s.Methods().Len() {
				d := s.Methods().Get(j)
				m := method{name: fmt.Sprintf("/%s/%s", s.FullName(), d.Name()), short: string(d.Name()), input: d.Input(), output: d.Output(),
					streams: d.IsStreamingClient() || d.IsStreamingServer()}
				if rule, ok := proto.GetExtension(d.Options(), annotations.E_Http).(*annotations.HttpRule); ok {
					m.http = rule
				}
				for _, verb := range []string{"Get", "List", "Query", "Verify", "Find"} {
					m.reads = m.reads || strings.HasPrefix(m.short, verb)
				}
				list = append(list, m)
			}
		}
		return true
	})
	if len(list) < 20 {
		t.Fatalf("only %d methods: the descriptors are not all there", len(list))
	}
	last := func(m method) int {
		for _, verb := range []string{"Destroy", "Rotate", "Rewrap", "Erase", "Revoke"} {
			if strings.HasPrefix(m.short, verb) {
				return 1
			}
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b method) int {
		return 1000*(last(a)-last(b)) + strings.Compare(a.name, b.name)
	})
	return list
}

func (m *method) response() proto.Message { return dynamicpb.NewMessage(m.output) }

// place is one string in a request: the way to it, and for a map its side.
type place struct {
	name   string
	path   []protoreflect.FieldDescriptor
	mapKey bool
}

// places are all strings of the request, in messages within it too.
func (m *method) places() []place { return places(m.input, nil, "") }

func places(d protoreflect.MessageDescriptor, path []protoreflect.FieldDescriptor, prefix string) (list []place) {
	if len(path) > 4 {
		return nil
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		here, name := append(slices.Clone(path), f), prefix+string(f.Name())
		switch {
		case f.IsMap():
			if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
				list = append(list, place{name + ".key", here, true}, place{name + ".value", here, false})
			}
		case f.Kind() == protoreflect.StringKind:
			list = append(list, place{name: name, path: here})
		case f.Kind() == protoreflect.MessageKind && !strings.HasPrefix(string(f.Message().FullName()), "google."):
			list = append(list, places(f.Message(), here, name+".")...)
		}
	}
	return list
}

// usual is what stands in the fields of a request that have nothing put into
// them, so that the request gets as far as it can.
func usual(tenant string) map[string]any {
	return map[string]any{
		"tenant_id": tenant, "window": "all", "granularity": "PT1H", "group_by": "team", "top": int32(10), "page_size": int32(50), "seq": int64(8), "descending": true,
		"name": "a-name", "kind": "webhook_url", "value": "https://example.com/hook", "scopes": "read", "log": "ledger", "provider": "openai", "model": "gpt-4o",
		"pseudonym": strings.Repeat("0", 32), "identity": "nobody@example.com", "tag_keys": "a-key", "reason": "a reason", "token_id": "tok_none", "secret_id": "sec_none", "agent_id": "agt_none",
		"connection_id": "con_none", "source": "directory", "prefix": "logs",
		"job_id": "00000000-0000-0000-0000-000000000000", "confirm_tenant_id": "nobody", "series": "mac", "dry_run": true,
		"event_id": mark(tenant) + "-1",
		"base_url": "https://api.example.com", "key_id": "tok_none", "switch_id": "swi_none", "scope": "team", "subject": "a-team", "usd_per_month": "1",
	}
}

// base is the request as a tenant would usually make it.
func (m *method) base(tenant string) proto.Message {
	msg := dynamicpb.NewMessage(m.input)
	fill(msg, usual(tenant))
	return msg
}

func fill(msg protoreflect.Message, usual map[string]any) {
	fields := msg.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := string(f.Name())
		switch {
		case name == "window":
			w := msg.Mutable(f).Message()
			w.Set(w.Descriptor().Fields().ByName("name"), protoreflect.ValueOfString("all"))
		case name == "events":
			fillEvent(msg.Mutable(f).List().AppendMutable().Message(), usual)
		case name == "from" && f.Kind() == protoreflect.Int64Kind: // of a proof
			msg.Set(f, protoreflect.ValueOfInt64(1))
		case usual[name] == nil || f.IsMap() || f.Kind() == protoreflect.MessageKind:
		case f.IsList():
			msg.Mutable(f).List().Append(protoreflect.ValueOf(usual[name]))
		default:
			if v := protoreflect.ValueOf(usual[name]); fits(f, v) {
				msg.Set(f, v)
			}
		}
	}
}

func fits(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	switch v.Interface().(type) {
	case string:
		return f.Kind() == protoreflect.StringKind
	case int32:
		return f.Kind() == protoreflect.Int32Kind
	case int64:
		return f.Kind() == protoreflect.Int64Kind
	case bool:
		return f.Kind() == protoreflect.BoolKind
	}
	return false
}

// fillEvent makes an event that the edge takes, once: its id is new.
func fillEvent(event protoreflect.Message, usual map[string]any) {
	fields := event.Descriptor().Fields()
	for _, name := range []protoreflect.Name{"tenant_id", "provider", "model"} {
		event.Set(fields.ByName(name), protoreflect.ValueOf(usual[string(name)]))
	}
	event.Set(fields.ByName("event_id"), protoreflect.ValueOfString(fmt.Sprintf("i-%d", time.Now().UnixNano())))
	at := event.Mutable(fields.ByName("occurred_at")).Message()
	at.Set(at.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(time.Now().Unix()))
}

// with is the usual request of the intruder with the payload in one place.
func (m *method) with(p place, payload string) proto.Message {
	msg := m.base(intruder).ProtoReflect()
	at := msg
	for _, f := range p.path[:len(p.path)-1] {
		if !f.IsList() {
			at = at.Mutable(f).Message()
			continue
		}
		list := at.Mutable(f).List()
		if list.Len() == 0 {
			list.AppendMutable()
		}
		at = list.Get(0).Message()
		if d := at.Descriptor().Fields().ByName("dimension"); d != nil && p.path[len(p.path)-1] != d {
			at.Set(d, protoreflect.ValueOfString("team"))
		}
	}
	f, text := p.path[len(p.path)-1], protoreflect.ValueOfString(payload)
	switch {
	case f.IsMap() && p.mapKey:
		at.Mutable(f).Map().Set(text.MapKey(), protoreflect.ValueOfString("v"))
	case f.IsMap():
		at.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), text)
	case f.IsList():
		list := at.Mutable(f).List()
		list.Truncate(0)
		list.Append(text)
	default:
		at.Set(f, text)
	}
	return msg.Interface()
}

// rest is the request in its REST form: path parameters in the path, and the
// rest in the body or the query.
func (m *method) rest(msg proto.Message) (verb, path string, body []byte, err error) {
	verb, path = http.MethodGet, m.http.GetGet()
	if path == "" {
		verb, path = http.MethodPost, m.http.GetPost()
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(msg)
	if err != nil {
		return "", "", nil, err
	}
	query := url.Values{}
	msg.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := "{" + string(f.Name()) + "}"
		switch {
		case strings.Contains(path, name):
			path = strings.Replace(path, name, url.PathEscape(v.String()), 1)
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			for i := range v.List().Len() {
				query.Add(string(f.Name()), v.List().Get(i).String())
			}
		case !f.IsList() && !f.IsMap() && f.Kind() != protoreflect.MessageKind:
			query.Set(string(f.Name()), v.String())
		}
		return true
	})
	// A path parameter that is empty, or was never set.
	for {
		i := strings.Index(path, "{")
		if i < 0 {
			break
		}
		path = path[:i] + path[i+strings.Index(path[i:], "}")+1:]
	}
	if verb == http.MethodGet {
		return verb, path + "?" + query.Encode(), nil, nil
	}
	return verb, path, raw, nil
}

// chunk is what a message of a stream adds to the answer: its one field of bytes
// as it is, so that what was cut into chunks is whole again, else its wire form.
func chunk(msg proto.Message) []byte {
	fields := msg.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Kind() == protoreflect.BytesKind && !f.IsList() {
			return msg.ProtoReflect().Get(f).Bytes()
		}
	}
	raw, err := proto.Marshal(msg)
	if err != nil {
		return []byte(err.Error())
	}
	return raw
}
