package attribution_test

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
)

var rewrite = flag.Bool("rewrite", false, "write what is computed into testdata")

var names = []string{"", "team", "service", "feature", "agent", "user", "end_customer", "environment"}

func describe(a attribution.Attribution, used []string) string {
	var b strings.Builder
	for d, v := range a.Values {
		if v != "" {
			fmt.Fprintf(&b, "%s=%q\n", names[d], v)
		}
	}
	for _, t := range a.Tags {
		fmt.Fprintf(&b, "tag %q=%q\n", t.Key, t.Value)
	}
	if a.Dropped > 0 {
		fmt.Fprintf(&b, "dropped %d\n", a.Dropped)
	}
	fmt.Fprintf(&b, "used %v\n", used)
	return b.String()
}

// testdata/presets.txt holds cases: a name after "# ", headers, "----", the result,
// an empty line.
func TestPresets(t *testing.T) {
	const path = "testdata/presets.txt"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	seen := map[string]bool{}
	for block := range strings.SplitSeq(strings.TrimRight(string(data), "\n"), "\n\n") {
		title, rest, _ := strings.Cut(block, "\n")
		headers, want, ok := strings.Cut(rest, "----\n")
		if !ok {
			t.Fatalf("%s: no ----", title)
		}
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(headers + "\n"))).ReadMIMEHeader()
		if err != nil {
			t.Fatalf("%s: %v", title, err)
		}
		got := describe(attribution.FromHeaders(http.Header(h)))
		if got != want+"\n" && !*rewrite {
			t.Errorf("%s: got\n%swant\n%s", title, got, want)
		}
		seen[strings.Fields(title)[1]] = true
		fmt.Fprintf(&out, "%s\n%s----\n%s\n", title, headers, got)
	}
	for _, p := range attribution.Presets {
		if !seen[p.Name] {
			t.Errorf("no case for the preset %s", p.Name)
		}
	}
	if *rewrite {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever comes, the result keeps the limits of an event.
func TestLimitsHold(t *testing.T) {
	headers := []string{
		"X-Tallystick-Team", "X-Tallystick-Tags", "X-Tallystick-Tag-A", "X-Tc-Tags", "Helicone-Property-Env", "X-Portkey-Metadata",
		"X-Litellm-Spend-Logs-Metadata", "X-Litellm-Tags", "Baggage", "Accept",
	}
	rapid.Check(t, func(t *rapid.T) {
		h := http.Header{}
		for range rapid.IntRange(0, 6).Draw(t, "headers") {
			name := rapid.SampledFrom(headers).Draw(t, "name")
			h[name] = append(h[name], rapid.OneOf(
				rapid.String(), rapid.StringMatching(`([a-z]{1,3}=[a-zA-Z%0-9]{0,20},){0,40}`), rapid.StringMatching(`[a-z]{1,2}=[a-z]{240,300}`),
				rapid.StringMatching(`\{("[a-z_]{1,5}":("[a-z]{0,200}"|1|null|\[\]),){0,3}"z":true\}`),
			).Draw(t, "value"))
		}
		a, used := attribution.FromHeaders(h)
		e := event.Event{
			ID: "e", Tenant: "acme", OccurredAt: 1, Provider: "p", Model: "m",
			Tags: []event.Tag{{Key: "a", Value: "mine"}}, Team: "mine",
		}
		a.Apply(&e)
		if err := e.Validate(false); err != nil {
			t.Fatalf("%v of %q", err, h)
		}
		if e.Team != "mine" || !slices.Contains(e.Tags, event.Tag{Key: "a", Value: "mine"}) {
			t.Fatalf("the event's own words were changed: %+v", e)
		}
		for i := 1; i < len(e.Tags); i++ {
			if e.Tags[i-1].Key >= e.Tags[i].Key {
				t.Fatalf("tags not in order: %q", e.Tags)
			}
		}
		if want := len(h) - len(h["Accept"]); len(used) < min(want, 1) || slices.Contains(used, "Accept") {
			t.Fatalf("used %v of %q", used, h)
		}
	})
}

func TestTooManyTags(t *testing.T) {
	var list []string
	for i := range 40 {
		list = append(list, fmt.Sprintf("k%d=v", i))
	}
	a, _ := attribution.FromHeaders(http.Header{"X-Tallystick-Tags": {strings.Join(list, ",")}})
	if len(a.Tags) != event.MaxTags || a.Dropped != 8 {
		t.Errorf("%d tags, %d dropped", len(a.Tags), a.Dropped)
	}
}

func plainHeaders() http.Header {
	return http.Header{
		"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Authorization": {"Bearer x"}, "Content-Length": {"512"},
		"Content-Type": {"application/json"}, "User-Agent": {"openai-python"}, "X-Stainless-Lang": {"python"}, "X-Stainless-Os": {"Linux"},
		"X-Stainless-Retry-Count": {"0"}, "X-Stainless-Runtime": {"CPython"}, "Connection": {"keep-alive"},
	}
}

func TestNoHeadersNoAllocation(t *testing.T) {
	h := plainHeaders()
	if n := testing.AllocsPerRun(100, func() { attribution.FromHeaders(h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFromHeaders(b *testing.B) {
	with := plainHeaders()
	with["X-Tallystick-Team"], with["X-Tallystick-Service"], with["X-Tallystick-Tag-Tier"] = []string{"core"}, []string{"chat"}, []string{"gold"}
	for name, h := range map[string]http.Header{"none": plainHeaders(), "three": with} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				attribution.FromHeaders(h)
			}
		})
	}
}

func FuzzFromHeaders(f *testing.F) {
	f.Add("X-Portkey-Metadata", `{"_user":"u","a":{"b":1},"prompt":"x"}`)
	f.Add("Baggage", "tallystick.team=a%20b;p=1,user.id=7,x=%zz")
	f.Add("X-Litellm-Tags", "a,b:c,=,:")
	f.Fuzz(func(t *testing.T, name, value string) {
		a, _ := attribution.FromHeaders(http.Header{name: {value}})
		e := event.Event{ID: "e", Tenant: "acme", OccurredAt: 1, Provider: "p", Model: "m"}
		a.Apply(&e)
		if err := e.Validate(false); err != nil {
			t.Fatal(err)
		}
	})
}

// Every header of the table is found, whatever short cuts the look-up takes.
func TestEveryHeaderIsFound(t *testing.T) {
	for name := range strings.Lines(attribution.HeaderNames()) {
		name = strings.TrimSuffix(name, "\n")
		if strings.HasSuffix(name, "-") {
			name += "Zz"
		}
		if _, used := attribution.FromHeaders(http.Header{name: {"a=b"}}); len(used) != 1 || http.CanonicalHeaderKey(name) != name {
			t.Errorf("%s: used %v", name, used)
		}
	}
}
