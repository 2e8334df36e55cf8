package event

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// plainRule says what textRule says, a rune at a time.
func plainRule(s string) string {
	if !utf8.ValidString(s) {
		return RuleUTF8
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return RuleControl
		}
	}
	return ""
}

// TestTextRule puts every byte at every place of a text of some words.
func TestTextRule(t *testing.T) {
	for length := range 20 {
		for at := range length {
			for b := range 256 {
				s := strings.Repeat("~", at) + string([]byte{byte(b)}) + strings.Repeat(" ", length-at-1)
				if got, want := textRule(s) == "", plainRule(s) == ""; got != want {
					t.Fatalf("%q: allowed %v, want %v", s, got, want)
				}
			}
		}
	}
}

func TestTextRuleOfAnyText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,40}`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		if got, want := textRule(s) == "", plainRule(s) == ""; got != want {
			t.Fatalf("allowed %v, want %v", got, want)
		}
	})
}

func BenchmarkTextRule(b *testing.B) {
	s := "anthropic.claude-sonnet-4-20250514-v1:0"
	for b.Loop() {
		if textRule(s) != "" {
			b.Fatal("refused")
		}
	}
}
