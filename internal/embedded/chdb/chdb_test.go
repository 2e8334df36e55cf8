package chdb

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	chproto "github.com/ClickHouse/ch-go/proto"
)

func TestCheckVersion(t *testing.T) {
	file := filepath.Join(t.TempDir(), "version")
	for _, test := range []struct {
		version string
		refused bool
	}{
		{"26.7.3-stable.1", false},
		{"26.7.3-stable.1", false},
		{"26.10.0", false}, // 10 is more than 7
		{"26.7.3", true},
		{"26.10", false},
		{"25.12.9", true},
		{"26.10.0.1", false},
	} {
		err := checkVersion(file, test.version)
		if (err != nil) != test.refused || err != nil && !errors.Is(err, ErrNewerData) {
			t.Errorf("%s: %v", test.version, err)
		}
		recorded, err := os.ReadFile(file)
		if err != nil || !test.refused && strings.TrimSpace(string(recorded)) != test.version {
			t.Errorf("%s: recorded %q, %v", test.version, recorded, err)
		}
	}
}

func TestCoarseSeconds(t *testing.T) {
	for value, want := range map[string]string{
		"1": "1", "3": "5", "60": "80", "86400": "86400", "100000": "100000", "0": "0", "-1": "-1", "2.5": "2.5", "x": "x",
	} {
		if got := coarseSeconds(value); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
	}
}

func TestParseEngineError(t *testing.T) {
	for text, want := range map[string]int{
		"Code: 60. DB::Exception: Unknown table (UNKNOWN_TABLE)":                   60,
		"Error: Code: 241. DB::Exception: memory":                                  241,
		"Code: 164. DB::Exception: Code: 62. DB::Exception: nested":                164,
		"Cannot run a query while a streaming insert is active on this connection": codeUnknown,
		"": codeUnknown,
	} {
		got := parseEngineError(text)
		if got.code != want || !strings.HasPrefix(strings.TrimPrefix(got.text, "Error: "), "Code: ") {
			t.Errorf("%q: %d %q", text, got.code, got.text)
		}
	}
}

func TestShiftPositions(t *testing.T) {
	got := shiftPositions("Syntax error: failed at position 19 (1) (line 1, col 19): 1", 12)
	if want := "Syntax error: failed at position 7 (1) (line 1, col 19): 1"; got != want {
		t.Errorf("%q", got)
	}
	if got := shiftPositions("failed at position 3", 12); got != "failed at position 3" {
		t.Errorf("%q", got)
	}
}

// TestRecodeRefusesRubbish: a block cut anywhere is an error, never a shorter
// result.
func TestRecodeRefusesRubbish(t *testing.T) {
	var whole chproto.Buffer
	block := chproto.Block{Rows: 2, Columns: 2}
	n, s := chproto.ColUInt64{1, 2}, new(chproto.ColStr)
	s.Append("one")
	s.Append("two")
	if err := block.EncodeRawBlock(&whole, 0, chproto.Input{{Name: "n", Data: &n}, {Name: "s", Data: s}}); err != nil {
		t.Fatal(err)
	}
	two := append(bytes.Clone(whole.Buf), whole.Buf...)
	for cut := range len(two) + 1 {
		var out chproto.Buffer
		err := recode(two[:cut], 54460, &out)
		if boundary := cut%len(whole.Buf) == 0; (err == nil) != boundary {
			t.Errorf("cut at %d of %d: %v", cut, len(two), err)
		}
	}
}
