package tenant

import (
	"errors"
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	for _, ok := range []string{"acme", "a", "0", "acme-eu-1", strings.Repeat("a", MaxIDBytes)} {
		if _, err := ParseID(ok); err != nil {
			t.Errorf("ParseID(%q): %v", ok, err)
		}
	}
	for _, bad := range []string{"", "-a", "Acme", "a_b", "a/b", "system/0", "a b", "é", strings.Repeat("a", MaxIDBytes+1)} {
		if _, err := ParseID(bad); !errors.Is(err, ErrInvalidID) {
			t.Errorf("ParseID(%q) = %v, want ErrInvalidID", bad, err)
		}
	}
}

func TestSystem(t *testing.T) {
	id := System(7)
	if id != "system/7" || !id.IsSystem() {
		t.Fatalf("System(7) = %q, IsSystem %v", id, id.IsSystem())
	}
	if p, ok := id.SystemPartition(); !ok || p != 7 {
		t.Errorf("SystemPartition = %d, %v", p, ok)
	}
	if got := id.Partition(12); got != 7 {
		t.Errorf("system/7 lives in partition %d of 12", got)
	}
	for _, bad := range []ID{"system/", "system/-1", "system/07", "system/x", "acme"} {
		if _, ok := bad.SystemPartition(); ok {
			t.Errorf("%q passes for a system chain", bad)
		}
	}
}

// The vectors are those of Apache Kafka's own UtilsTest.testMurmur2.
func TestMurmur2AgreesWithKafka(t *testing.T) {
	for in, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string":                       -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2(in)); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", in, got, want)
		}
	}
}
