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
