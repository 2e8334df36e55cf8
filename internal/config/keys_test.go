package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestTableAndStructAgree: each field of Config is one key of the table and
// the other way round, so that nothing can be set in one way only.
func TestTableAndStructAgree(t *testing.T) {
	var fields []string
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name := prefix + f.Tag.Get("koanf")
			if f.Type.Kind() == reflect.Struct {
				walk(name+".", f.Type)
				continue
			}
			fields = append(fields, name)
			k, ok := keyNamed(name)
			if !ok {
				t.Errorf("%s is a field and no key", name)
			} else if isSecret := f.Type == reflect.TypeFor[Secret](); isSecret != k.secret {
				t.Errorf("%s: the table says secret %v, the type %s", name, k.secret, f.Type)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	var names, flags, envs []string
	for _, k := range keys {
		names, flags, envs = append(names, k.name), append(flags, k.flagName()), append(envs, k.envName())
		if !slices.Contains(fields, k.name) {
			t.Errorf("%s is a key and no field", k.name)
		}
		if k.help == "" || strings.HasSuffix(k.help, ".") {
			t.Errorf("%s: help text %q", k.name, k.help)
		}
		if _, rule := k.coerce(k.def); rule != "" {
			t.Errorf("%s: its default is not %s", k.name, rule)
		}
	}
	for _, set := range [][]string{names, flags, envs} {
		slices.Sort(set)
		if len(slices.Compact(slices.Clone(set))) != len(set) {
			t.Errorf("two keys share a name in %v", set)
		}
	}
}
