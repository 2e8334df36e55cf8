package api

import (
	"encoding/base64"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// jsonMarshaler reads requests as protojson does, refusing unknown fields, and
// writes answers in one fixed form: snake_case names in the order of the .proto,
// every field present, 64-bit integers as strings, and null for what has no
// value (a cost without a price, a time that is not known). protojson's own
// output leaves the latter out and varies its white space on purpose.
type jsonMarshaler struct{ runtime.JSONPb }

func newJSONMarshaler() *jsonMarshaler {
	return &jsonMarshaler{runtime.JSONPb{UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false}}}
}

// ContentType implements runtime.Marshaler.
func (*jsonMarshaler) ContentType(any) string { return "application/json" }

// Marshal implements runtime.Marshaler.
func (j *jsonMarshaler) Marshal(v any) ([]byte, error) {
	if m, ok := v.(proto.Message); ok {
		return append(appendMessage(nil, m.ProtoReflect()), '\n'), nil
	}
	return j.JSONPb.Marshal(v)
}

// NewEncoder implements runtime.Marshaler.
func (j *jsonMarshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		b, err := j.Marshal(v)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	})
}

func appendMessage(b []byte, m protoreflect.Message) []byte {
	fields := m.Descriptor().Fields()
	b = append(b, '{')
	for i := range fields.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		f := fields.Get(i)
		b = append(appendText(b, string(f.Name())), ':')
		b = appendField(b, m, f)
	}
	return append(b, '}')
}

func appendField(b []byte, m protoreflect.Message, f protoreflect.FieldDescriptor) []byte {
	switch {
	case f.IsList():
		list := m.Get(f).List()
		b = append(b, '[')
		for i := range list.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, f, list.Get(i))
		}
		return append(b, ']')
	case f.IsMap():
		return appendMap(b, f.MapValue(), m.Get(f).Map())
	case f.HasPresence() && !m.Has(f):
		return append(b, "null"...)
	default:
		return appendValue(b, f, m.Get(f))
	}
}

// appendMap writes the keys in order, so that equal answers are equal bytes.
func appendMap(b []byte, value protoreflect.FieldDescriptor, m protoreflect.Map) []byte {
	keys := make([]string, 0, m.Len())
	for k := range m.Range {
		keys = append(keys, k.String())
	}
	slices.Sort(keys)
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, k), ':')
		b = appendValue(b, value, m.Get(protoreflect.ValueOfString(k).MapKey()))
	}
	return append(b, '}')
}

func appendValue(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool())
	case protoreflect.Int32Kind:
		return strconv.AppendInt(b, v.Int(), 10)
	case protoreflect.Int64Kind:
		return append(strconv.AppendInt(append(b, '"'), v.Int(), 10), '"')
	case protoreflect.DoubleKind:
		if n := v.Float(); !math.IsNaN(n) && !math.IsInf(n, 0) {
			return strconv.AppendFloat(b, n, 'f', -1, 64)
		}
		return append(b, "null"...)
	case protoreflect.BytesKind:
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.Bytes()), '"')
	case protoreflect.MessageKind:
		if t, ok := v.Message().Interface().(*timestamppb.Timestamp); ok {
			return append(t.AsTime().AppendFormat(append(b, '"'), "2006-01-02T15:04:05.999999999Z07:00"), '"')
		}
		return appendMessage(b, v.Message())
	default:
		return appendText(b, v.String())
	}
}

// appendText writes a JSON string. Invalid UTF-8, which no field of a message
// can hold, becomes the replacement character.
func appendText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}
