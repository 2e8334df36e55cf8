package bpe

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The vectors that OpenAI publishes: tests/test_encoding.py of tiktoken, and the
// examples of the cookbook's "How to count tokens with tiktoken".
func TestPublishedVectors(t *testing.T) {
	for _, v := range []struct {
		encoding *Encoding
		text     string
		want     []uint32
	}{
		{Cl100kBase, "", nil},
		{Cl100kBase, "hello world", []uint32{15339, 1917}},
		{Cl100kBase, "rer", []uint32{38149}},
		{Cl100kBase, "'rer", []uint32{2351, 81}},
		{Cl100kBase, "today\n ", []uint32{31213, 198, 220}},
		{Cl100kBase, "today\n \n", []uint32{31213, 27907}},
		{Cl100kBase, "today\n  \n", []uint32{31213, 14211}},
		{Cl100kBase, " \u00850", []uint32{220, 126, 227, 15}},
		{Cl100kBase, "👍", []uint32{9468, 239, 235}},
		{Cl100kBase, "tiktoken is great!", []uint32{83, 1609, 5963, 374, 2294, 0}},
		{Cl100kBase, "antidisestablishmentarianism", []uint32{519, 85342, 34500, 479, 8997, 2191}},
		{Cl100kBase, "2 + 2 = 4", []uint32{17, 489, 220, 17, 284, 220, 19}},
		{Cl100kBase, "お誕生日おめでとう", []uint32{33334, 45918, 243, 21990, 9080, 33334, 62004, 16556, 78699}},
		{O200kBase, "antidisestablishmentarianism", []uint32{493, 129901, 376, 160388, 21203, 2367}},
		{O200kBase, "2 + 2 = 4", []uint32{17, 659, 220, 17, 314, 220, 19}},
		{O200kBase, "お誕生日おめでとう", []uint32{8930, 9697, 243, 128225, 8930, 17693, 4344, 48669}},
	} {
		got, err := v.encoding.Encode(v.text)
		if err != nil || !slices.Equal(got, v.want) {
			t.Errorf("%s of %q: %v, want %v, %v", v.encoding, v.text, got, v.want, err)
		}
	}
}

// testdata/tiktoken.jsonl is what tiktoken 0.14.0 (Rust) makes of words of many
// scripts, code, white space, marks, emoji and random characters, drawn at random
// with a fixed seed: one JSON object a line.
func TestAgreesWithTiktoken(t *testing.T) {
	file := "testdata/tiktoken.jsonl"
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for ; lines.Scan(); n++ {
		var v struct {
			Text      string
			O200kBase []uint32 `json:"o200k_base"`
			Cl100k    []uint32 `json:"cl100k_base"`
		}
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		for e, want := range map[*Encoding][]uint32{O200kBase: v.O200kBase, Cl100kBase: v.Cl100k} {
			got, err := e.Encode(v.Text)
			if count, bad := e.Count(v.Text); err != nil || bad != nil || !slices.Equal(got, want) || count != len(want) {
				t.Errorf("%s of %q: %v, want %v, %v", e, v.Text, got, want, err)
			}
		}
	}
	if lines.Err() != nil || n < 250 {
		t.Fatalf("%d lines: %v", n, lines.Err())
	}
}

// hostile are texts on which tokenizers have taken minutes.
var hostile = []string{
	"a", "A", "aA", "_", "'s", " ", "\n", " \n", "\t\t\t\t \n", "\r", "漢", "ǅ", "\u0301", "7", "\xff", "a/", "a\u0301", "0", "^", "👍", "<|endoftext|>", "ſ'", "A漢",
	strings.Repeat(" ", 1000) + "x", strings.Repeat("A", 1000) + "1", strings.Repeat("-", 10000) + "=",
}

// A text of a quarter of a megabyte takes less than five seconds whatever it is, also
// on a slow and busy machine: a tenth of a second is usual. Time in the square of the
// length would be minutes.
func TestHostileText(t *testing.T) {
	const size, limit = 256 << 10, 5 * time.Second
	slowest, by := time.Duration(0), ""
	for _, e := range []*Encoding{O200kBase, Cl100kBase} {
		for _, s := range hostile {
			text := strings.Repeat(s, size/len(s))
			start := time.Now()
			n, err := e.Count(text)
			took := time.Since(start)
			if err != nil || n == 0 || took > limit {
				t.Errorf("%s of %.10q…: %d tokens in %v, %v", e, text, n, took, err)
			}
			if took > slowest {
				slowest, by = took, s[:min(len(s), 10)]
			}
		}
	}
	t.Logf("slowest: %v, %q", slowest, by)
}

// The tokens of any text come to the text again, scanning and the heap agree, and
// pieces are never empty.
func FuzzEncode(f *testing.F) {
	for _, s := range hostile {
		f.Add(strings.Repeat(s, 3))
	}
	f.Add("Hello, World! I'm 漢字\n \n\tfooBar 12345")
	texts := map[*Encoding]map[uint32]string{}
	for _, e := range []*Encoding{O200kBase, Cl100kBase} {
		ranks, err := e.ranks()
		if err != nil {
			f.Fatal(err)
		}
		texts[e] = make(map[uint32]string, len(ranks))
		for text, rank := range ranks {
			texts[e][rank] = text
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		for e, text := range texts {
			tokens, err := e.Encode(s)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, token := range tokens {
				b.WriteString(text[token])
			}
			if b.String() != s {
				t.Fatalf("%s: %q came to %q", e, s, b.String())
			}
			if len(s) > 4<<10 { // scanning takes time in its square
				continue
			}
			ranks, _ := e.ranks()
			a, z := merger{ranks: ranks}, merger{ranks: ranks}
			a.begin(s)
			a.scan(s)
			z.begin(s)
			z.drain(s)
			for i := int32(0); i < int32(len(s)); i = a.parts[i].next {
				if a.parts[i].next != z.parts[i].next {
					t.Fatalf("%s: scanning and the heap differ at %d of %q", e, i, s)
				}
			}
		}
	})
}

func BenchmarkCount(b *testing.B) {
	text := strings.Repeat("The quick brown fox jumps over the lazy dog, and it's 1,234 years old.\n", 1000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := O200kBase.Count(text); err != nil {
			b.Fatal(err)
		}
	}
}
