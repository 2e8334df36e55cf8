package proxy

import (
	"net/url"
	"testing"
)

// A base may be given as clients of the provider have it, with the version at its
// end, or without: the version stands in the address once.
func TestAddressOfTarget(t *testing.T) {
	for _, c := range []struct{ base, path, want string }{
		{"https://api.openai.com", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions?a=b"},
		{"https://api.openai.com/v1", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions?a=b"},
		{"https://host/openai/v1beta", "/v1beta/models/m:generateContent", "https://host/openai/v1beta/models/m:generateContent?a=b"},
		{"https://host/v1", "/v1beta/models", "https://host/v1/v1beta/models?a=b"},
		{"https://host/very", "/very/path", "https://host/very/very/path?a=b"},
		{"https://host/a%2Fb/v1", "/v1/x%2Fy", "https://host/a%2Fb/v1/x%2Fy?a=b"},
	} {
		base, err := url.Parse(c.base)
		if err != nil {
			t.Fatal(err)
		}
		to := target{up: &upstream{}, path: c.path}
		if got := to.url(*base, "a=b").String(); got != c.want {
			t.Errorf("%s and %s: %s, want %s", c.base, c.path, got, c.want)
		}
	}
}

// The place of a path is put into the provider's own address, never into a tenant's,
// whose host may hold the same letters: the caller would choose where the key goes.
func TestPlaceOfTarget(t *testing.T) {
	r := newRoutes(BuiltinProviders())
	for base, want := range map[string]string{
		"": "https://bedrock-runtime.eu-west-1.amazonaws.com/model/m/converse", "https://marketplace.example.com": "https://marketplace.example.com/model/m/converse",
	} {
		to := target{up: r.byName["bedrock"], place: "eu-west-1", path: "/model/m/converse"}
		at := to.up.base
		if base != "" {
			u, err := url.Parse(base)
			if err != nil {
				t.Fatal(err)
			}
			at = *u
		}
		if got := to.url(at, "").String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestParseProvider(t *testing.T) {
	list, err := ParseProvider("bedrock=https://vpce-1.bedrock-runtime.{place}.vpce.amazonaws.com", BuiltinProviders())
	if err != nil || len(list) != len(BuiltinProviders()) {
		t.Fatal(err)
	}
	list, err = ParseProvider("inside=https://llm.example.com auth=sigv4 region=eu-west-1", list)
	if err != nil {
		t.Fatal(err)
	}
	if v := list[len(list)-1]; v.Auth != SigV4 || v.Region != "eu-west-1" {
		t.Errorf("%+v", v)
	}
	for _, text := range []string{"x=https://h auth=authorization", "x=https://h auth=aws", "x=https://h region=", "x=https://h region=EU", "x=https://h region=a/b"} {
		if _, err := ParseProvider(text, nil); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
