package load

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

// dataFile is a file of the development data pack.
func dataFile(t testing.TB, name string) string {
	t.Helper()
	return testenv.Data(t, "llm/"+name)
}

const (
	deepseekTrace = "servegen_deepseek_r1_24h_requests.csv.zst"
	mLargeTrace   = "servegen_m_large_14d_1of300_requests.csv.zst"
)

// ServeGen's published count of requests per client and ten-minute window is
// the control total of the rebuilt trace: what the reader gives must equal it.
func TestServeGenControlTotal(t *testing.T) {
	type window struct{ client, at int64 }
	got := map[window]int64{}
	r, err := openTraceFile(dataFile(t, deepseekTrace))
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var row traceRow
	var rows int64
	for {
		err := r.next(&row)
		if errors.Is(err, errEnd) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[window{int64(row.client), row.atMicros / 600_000_000 * 600}]++
		rows++
	}
	if rows != 1_383_669 {
		t.Errorf("%d rows, want 1,383,669", rows)
	}
	f, err := os.Open(dataFile(t, "servegen_deepseek-r1_windows10min.csv.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var text strings.Builder
	if _, err := z.WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")[1:]
	equal := 0
	for _, line := range lines {
		f := fields{rest: []byte(line)}
		w := window{f.num(), f.num()}
		if n := f.num(); n == got[w] {
			equal++
		} else {
			t.Errorf("client %d from %d s: %d requests, want %d", w.client, w.at, got[w], n)
		}
	}
	if equal != 3111 || len(got) != 3111 {
		t.Errorf("%d of %d windows are equal, the trace has %d; want 3111", equal, len(lines), len(got))
	}
}

// The rows of every form, with the classes taken apart.
func TestForms(t *testing.T) {
	for _, c := range []struct {
		name, file, form string
		rows             int64
		model            model
	}{
		{"deepseek", deepseekTrace, "ServeGen deepseek-r1", 1_383_669, reasoner},
		{"m-large", mLargeTrace, "ServeGen m-large", 495_994, gpt4o},
		{"azure code", "azure_llm_2023_code.csv.zst", "Azure LLM inference", 8_819, azureGPT4},
		{"azure conv", "azure_llm_2023_conv.csv.zst", "Azure LLM inference", 19_366, gpt4oMini},
		{"mooncake", "mooncake_synthetic_requests.csv.zst", "Mooncake", 3_993, kimi},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Trace: dataFile(t, c.file), URL: "http://unused.invalid"}
			if err := o.prepare(); err != nil {
				t.Fatal(err)
			}
			tr, err := openTrace(&o)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.close()
			r, err := openTraceFile(o.Trace)
			if err != nil {
				t.Fatal(err)
			}
			defer r.close()
			if tr.extent.kept == nil || r.form.name != c.form || tr.mods[0] != c.model || tr.extent.rows != c.rows {
				t.Errorf("form %q, model %v, %d rows", r.form.name, tr.mods[0], tr.extent.rows)
			}
			var e call
			var last, n int64
			for {
				err := tr.next(&e)
				if errors.Is(err, errEnd) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				n++
				last = max(last, e.at)
				for class, v := range e.tokens {
					if v < 0 {
						t.Fatalf("row %d: %s is %d", n, tokens.Class(class), v)
					}
				}
			}
			if n != c.rows || last != o.Base.UnixNano() {
				t.Errorf("%d calls, the last at %d; want %d, %d", n, last, c.rows, o.Base.UnixNano())
			}
		})
	}
}

// Rows that are kept and rows that are read again are the same calls.
func TestKeptRowsEqualTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.csv")
	write := func(lines string) *trace {
		t.Helper()
		if err := os.WriteFile(path, []byte("ts_ms,input_tokens,cached_input_tokens,output_tokens,first_block,n_blocks\n"+lines), 0o600); err != nil {
			t.Fatal(err)
		}
		o := Options{Trace: path, URL: "http://unused.invalid", Base: testBase}
		if err := o.prepare(); err != nil {
			t.Fatal(err)
		}
		tr, err := openTrace(&o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tr.close)
		return tr
	}
	lines := "5,10,3,7,1,1\n6,11,4,8,2,1\n9,3000000000,0,1,3,1\n"
	read := write(lines) // the last row does not fit
	kept := write(lines[:strings.Index(lines, "9,3")] + "9,30,0,1,3,1\n")
	unsorted := write("7,1,0,1,1,1\n" + lines[:strings.Index(lines, "9,3")])
	if read.r == nil || kept.r != nil || unsorted.r == nil {
		t.Fatalf("read again: %v %v %v; want true, false, true", read.r != nil, kept.r != nil, unsorted.r != nil)
	}
	for range 2 {
		var a, b call
		if err := errors.Join(read.next(&a), kept.next(&b)); err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Errorf("%+v\n%+v", a, b)
		}
	}
}

func TestParseRows(t *testing.T) {
	for _, c := range []struct {
		parse func([]byte, *traceRow) bool
		line  string
		want  traceRow
		ok    bool
	}{
		{parseServeGenReason, "0,23,260,810,747", traceRow{client: 23, input: 260, output: 63, reasoning: 747}, true},
		{parseServeGenReason, "0,23,260,7,8", traceRow{}, false}, // more reasoning than output
		{parseServeGen, "163,56,217,37", traceRow{atMicros: 163_000, client: 56, input: 217, output: 37}, true},
		{parseServeGen, "163,56,217", traceRow{}, false},
		{parseServeGen, "163,56,217,37,1", traceRow{}, false},
		{parseServeGen, "-1,56,217,37", traceRow{}, false},
		{parseServeGen, "1,100000,217,37", traceRow{}, false},
		{parseServeGen, "1,1,99999999999999999999,37", traceRow{}, false},
		{parseServeGen, "", traceRow{}, false},
		{parseAzure, "1970-01-01 00:00:03.9799600,4808,10", traceRow{atMicros: 3_979_960, input: 4808, output: 10}, true},
		{parseAzure, "2023-13-16 18:17:03.9799600,4808,10", traceRow{}, false},
		{parseAzure, "2023-11-16 18:17:03.9799600", traceRow{}, false},
		{parseAzure, "2023-11-16T18:17:03.9799600,1,1", traceRow{}, false},
		{parseMooncake, "3000,1024,512,7,1,2", traceRow{atMicros: 3_000_000, input: 512, cached: 512, output: 7}, true},
		{parseMooncake, "3000,512,1024,7,1,2", traceRow{}, false}, // more cached than input
	} {
		var got traceRow
		ok := c.parse([]byte(c.line), &got)
		if got.client = got.client * int32(b2i(c.want.client != 0)); ok != c.ok || ok && got != c.want {
			t.Errorf("%q: %+v, %v; want %+v, %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestBadTraces(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          "",
		"unknown header": "a,b,c\n1,2,3\n",
		"no rows":        "ts_ms,client,input_tokens,output_tokens\n",
		"bad row":        "ts_ms,client,input_tokens,output_tokens\n1,2,3,x\n",
		"long line":      "ts_ms,client,input_tokens,output_tokens\n" + strings.Repeat("1", 70_000) + "\n",
		"broken zstd":    "\x28\xb5\x2f\xfd garbage",
	} {
		path := filepath.Join(t.TempDir(), "trace.csv")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Events(Options{Trace: path}, nil)
		if !errors.Is(err, ErrTrace) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), filepath.Dir(path)) && name != "missing" {
			t.Errorf("%s: the message names the folder: %v", name, err)
		}
	}
	if _, err := Events(Options{Trace: "no-such-file.csv"}, nil); !errors.Is(err, ErrTrace) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzTraceRows(f *testing.F) {
	f.Add([]byte("0,23,260,810,747"))
	f.Add([]byte("2023-11-16 18:17:03.9799600,4808,10"))
	f.Add([]byte("3000,1024,512,7,1,2"))
	f.Fuzz(func(t *testing.T, line []byte) {
		for i := range traceForms {
			var r traceRow
			if !traceForms[i].parse(line, &r) {
				continue
			}
			if r.client < 0 || r.client >= maxClient || r.input < 0 || r.cached < 0 || r.output < 0 || r.reasoning < 0 {
				t.Fatalf("%s accepts %q as %+v", traceForms[i].name, line, r)
			}
		}
	})
}
