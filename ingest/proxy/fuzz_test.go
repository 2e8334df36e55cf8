package proxy

import (
	"bytes"
	"encoding/json"
	"testing"
)

// Whatever a request's body is, reading it ends, and two encodings of one JSON
// document have one normal form.
func FuzzPrompt(f *testing.F) {
	for _, seed := range []string{
		`{"messages":[{"role":"user","content":"a\u0041"}],"max_tokens":7}`, `{"system":"x","n":1.50}`, `[]`, `{"input":`, "", `{"prompt":["a",null,true]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if limit, _ := answerLimit(body); limit < 0 {
			t.Error("a negative limit")
		}
		text := normalPrompt(body)
		var spaced bytes.Buffer
		if json.Indent(&spaced, body, " ", "\t") != nil {
			return
		}
		if again := normalPrompt(spaced.Bytes()); !bytes.Equal(text, again) {
			t.Errorf("%q is %q, and with white space %q", body, text, again)
		}
	})
}

// A provider's configuration is read or refused, and what is read is served.
func FuzzParseProvider(f *testing.F) {
	for _, seed := range []string{"lab=https://llm.example/v1", "openai=http://127.0.0.1:9 auth=api-key like=api.openai.com", "x=", "=y", "v1=https://a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParseProvider(text, BuiltinProviders())
		if err != nil {
			return
		}
		if got, want := len(newRoutes(list).byName), len(list); got != want {
			t.Errorf("%d routes of %d providers", got, want)
		}
	})
}
