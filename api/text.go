package api

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// checkText refuses a request with a NUL character in one of its texts. No
// field has use for one and Postgres cannot hold one, so a text that no rule
// looked at would become a database's error.
func checkText(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if field := nulIn(m.ProtoReflect()); field != "" {
		return invalid(field, "syntax", "must not have the character U+0000")
	}
	return nil
}

// nulIn is the path of a text with a NUL, or "".
func nulIn(m protoreflect.Message) (path string) {
	has := func(v protoreflect.Value) bool { return strings.IndexByte(v.String(), 0) >= 0 }
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch text, message := f.Kind() == protoreflect.StringKind, f.Kind() == protoreflect.MessageKind; {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				if f.MapKey().Kind() == protoreflect.StringKind && has(k.Value()) || f.MapValue().Kind() == protoreflect.StringKind && has(e) {
					path = string(f.Name())
				}
				return path == ""
			})
		case f.IsList() && text:
			for i := range v.List().Len() {
				if has(v.List().Get(i)) {
					path = string(f.Name())
				}
			}
		case f.IsList() && message:
			for i := 0; i < v.List().Len() && path == ""; i++ {
				path = below(f, nulIn(v.List().Get(i).Message()))
			}
		case text:
			if has(v) {
				path = string(f.Name())
			}
		case message:
			path = below(f, nulIn(v.Message()))
		}
		return path == ""
	})
	return path
}

func below(f protoreflect.FieldDescriptor, path string) string {
	if path == "" {
		return ""
	}
	return string(f.Name()) + "." + path
}
