package bedrock

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

// files are the records of the data pack with how many they are.
var files = []struct {
	name    string
	records int
}{
	{"invocation_logs_real_converse_stream.jsonl", 12},
	{"invocation_logs_samples.jsonl", 9},
	{"invocation_logs_constructed.jsonl.zst", 257},
}

// logs is a file of the pack, decompressed.
func logs(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(testenv.Data(t, "bedrock/"+name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".zst") {
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if b, err = d.DecodeAll(b, nil); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

var testKey = [32]byte{1, 2, 3}

// decodeAll reads all records.
func decodeAll(t testing.TB, src io.Reader) (recs []Record, malformed int) {
	t.Helper()
	d := NewDecoder(src, testKey)
	for {
		var r Record
		switch err := d.Next(&r); {
		case err == nil:
			recs = append(recs, r)
		case errors.Is(err, ErrMalformed):
			malformed++
		case err == io.EOF:
			return recs, malformed
		default:
			t.Fatal(err)
		}
	}
}

// Every record of the pack comes to what testdata/expected.py, which shares no
// code with this package, says.
func TestRecordsComeToWhatAnIndependentScriptSays(t *testing.T) {
	want, err := os.ReadFile("testdata/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	var total tokens.Vector
	statuses, records := map[string]int{}, 0
	classes := []tokens.Class{tokens.Input, tokens.Output, tokens.CacheRead, tokens.CacheWrite5m, tokens.CacheWrite1h, tokens.Reasoning}
	for _, f := range files {
		recs, malformed := decodeAll(t, bytes.NewReader(logs(t, f.name)))
		if len(recs) != f.records || malformed != 0 {
			t.Fatalf("%s: %d records, %d malformed; want %d and none", f.name, len(recs), malformed, f.records)
		}
		for i := range recs {
			e, err := recs[i].Event("acme", Place{Object: f.name, Index: int64(i)}, true)
			if err != nil {
				t.Fatalf("%s:%d: %v", f.name, i+1, err)
			}
			if err := e.Validate(false); err != nil {
				t.Errorf("%s:%d: %v", f.name, i+1, err)
			}
			if e.Estimated {
				t.Errorf("%s:%d is an estimate", f.name, i+1)
			}
			records++
			statuses[e.Status]++
			fmt.Fprintf(&got, "%s:%d %s %s latency_ms=%d %s", f.name, i+1, e.Model, e.Status, e.LatencyMicros/1000, doubt(&e))
			for _, c := range classes {
				total[c] += e.Tokens[c]
				if e.Tokens[c] != 0 {
					fmt.Fprintf(&got, " %s=%d", c, e.Tokens[c])
				}
			}
			got.WriteByte('\n')
		}
	}
	fmt.Fprintf(&got, "records %d blocked=%d error=%d ok=%d\ntokens", records, statuses["blocked"], statuses["error"], statuses["ok"])
	for _, c := range classes {
		fmt.Fprintf(&got, " %s=%d", c, total[c])
	}
	got.WriteByte('\n')
	wants, gots := strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")
	if len(wants) != len(gots) {
		t.Errorf("%d lines, want %d", len(gots), len(wants))
	}
	for i := range min(len(wants), len(gots)) {
		if wants[i] != gots[i] {
			t.Errorf("line %d:\n got  %s\n want %s", i+1, gots[i], wants[i])
		}
	}
}

func doubt(e *event.Event) string {
	for _, tag := range e.Tags {
		if tag.Key == TagUsage {
			return tag.Value
		}
	}
	return "-"
}
