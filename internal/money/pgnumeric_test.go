package money_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
)

// Vectors in the form numeric_send of PostgreSQL gives for value::numeric(38,12).
func TestPgNumericVectors(t *testing.T) {
	for in, want := range map[string]string{
		"0":                     "0000" + "0000" + "0000" + "000c",
		"1":                     "0001" + "0000" + "0000" + "000c" + "0001",
		"-1":                    "0001" + "0000" + "4000" + "000c" + "0001",
		"10000":                 "0001" + "0001" + "0000" + "000c" + "0001",
		"12345.6789":            "0003" + "0001" + "0000" + "000c" + "0001" + "0929" + "1a85",
		"0.000001230000":        "0001" + "fffe" + "0000" + "000c" + "007b",
		"0.000000000001":        "0001" + "fffd" + "0000" + "000c" + "0001",
		"1.000000000001":        "0004" + "0000" + "0000" + "000c" + "0001" + "0000" + "0000" + "0001",
		"-9223372.036854775808": "0005" + "0001" + "4000" + "000c" + "039a" + "0d2c" + "0170" + "1565" + "16b0",
	} {
		p, err := money.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(p.AppendPgNumeric(nil)); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// decodePgNumeric is the definition: Σ digit × 10000^(weight-i), in units of 1e-12.
func decodePgNumeric(t *rapid.T, b []byte) *big.Int {
	n, weight := int(binary.BigEndian.Uint16(b)), int(int16(binary.BigEndian.Uint16(b[2:])))
	if len(b) != 8+2*n || binary.BigEndian.Uint16(b[6:]) != 12 {
		t.Fatalf("bad frame %x", b)
	}
	total := new(big.Int)
	for i := range n {
		d := big.NewInt(int64(binary.BigEndian.Uint16(b[8+2*i:])))
		total.Add(total, d.Mul(d, tenTo(4*int64(weight-i)+12)))
	}
	if n > 0 && (b[8]|b[9] == 0 || b[len(b)-1]|b[len(b)-2] == 0) {
		t.Fatalf("%x is not normalised", b)
	}
	if binary.BigEndian.Uint16(b[4:]) == 0x4000 {
		total.Neg(total)
	}
	return total
}

func TestPgNumericIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, s := picos.Draw(t, "p"), sums.Draw(t, "s")
		b := p.AppendPgNumeric(nil)
		if got := decodePgNumeric(t, b); got.Cmp(bigOf(p)) != 0 {
			t.Fatalf("%v encodes as %v", p, got)
		}
		if back, err := money.ParsePgNumeric(b); back != p || err != nil {
			t.Fatalf("ParsePgNumeric(%x) = %v, %v", b, back, err)
		}
		b = s.AppendPgNumeric(nil)
		if got := decodePgNumeric(t, b); got.Cmp(s.Big()) != 0 || len(b) > money.PgNumericMaxLen {
			t.Fatalf("%v encodes as %v (%d bytes)", s, got, len(b))
		}
		if back, err := money.ParsePgNumericSum(b); back != s || err != nil {
			t.Fatalf("ParsePgNumericSum(%x) = %v, %v", b, back, err)
		}
		field := s.AppendPgField([]byte("before"))
		if !bytes.Equal(field[10:], b) || int(binary.BigEndian.Uint32(field[6:])) != len(b) {
			t.Fatalf("field %x of %x", field, b)
		}
		field = p.AppendPgField(nil)
		if int(binary.BigEndian.Uint32(field)) != len(field)-4 {
			t.Fatalf("field %x", field)
		}
	})
}

func TestParsePgNumericRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		wire string
		err  error
	}{
		"short":       {"00010000", money.ErrWire},
		"NaN":         {"00000000c0000000", money.ErrWire},
		"infinity":    {"00000000d0000000", money.ErrWire},
		"cut":         {"0002000000000000" + "0001", money.ErrWire},
		"long":        {"0001000000000000" + "00010001", money.ErrWire},
		"digit":       {"0001000000000000" + "2710", money.ErrWire},
		"too fine":    {"0001fffc00000010" + "0001", money.ErrPrecision},
		"too big":     {"0001000200000000" + "0001", money.ErrOverflow},
		"far too big": {"00017fff00000000" + "0001", money.ErrOverflow},
	} {
		b, err := hex.DecodeString(c.wire)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := money.ParsePgNumeric(b); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, %v; want %v", name, p, err, c.err)
		}
	}
}

// Other programs may send leading zero digits and trailing ones; the value counts.
func TestParsePgNumericAcceptsUnnormalised(t *testing.T) {
	b, _ := hex.DecodeString("0004" + "0001" + "0000" + "0004" + "0000" + "0001" + "1388" + "0000")
	if p, err := money.ParsePgNumeric(b); p != money.USD*3/2 || err != nil {
		t.Fatalf("%v, %v", p, err)
	}
	zero, _ := hex.DecodeString("0001" + "7fff" + "0000" + "0000" + "0000")
	if p, err := money.ParsePgNumeric(zero); p != 0 || err != nil {
		t.Fatalf("%v, %v", p, err)
	}
}

func FuzzParsePgNumeric(f *testing.F) {
	f.Add(money.Max.AppendPgNumeric(nil))
	f.Add([]byte{0, 1, 0x7f, 0xff, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := money.ParsePgNumericSum(b); err == nil {
			back, err := money.ParsePgNumericSum(s.AppendPgNumeric(nil))
			if err != nil || back != s {
				t.Fatalf("%x: %v, %v, %v", b, s, back, err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0.000001230000", "-9223372.036854775808", "1e9", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := money.Parse(in)
		s, sumErr := money.ParseSum(in)
		if err == nil && (sumErr != nil || s != money.SumOf(p)) {
			t.Fatalf("Parse(%q) = %v, ParseSum = %v, %v", in, p, s, sumErr)
		}
		if sumErr == nil {
			if back, err := money.ParseSum(s.String()); err != nil || back != s {
				t.Fatalf("%q: %v, %v, %v", in, s, back, err)
			}
		}
	})
}

func TestNoAllocations(t *testing.T) {
	buf := make([]byte, 0, 64)
	p, s := money.Pico(-1_234_567_890_123_456), money.SumOf(money.Max)
	if n := testing.AllocsPerRun(100, func() {
		buf = p.AppendPgField(buf[:0])
		buf = s.AppendPgField(buf[:0])
		buf = p.AppendTo(buf[:0])
		buf = s.AppendTo(buf[:0])
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkAppendPgField(b *testing.B) {
	buf, p := make([]byte, 0, 64), money.Pico(1_234_567_890_123)
	b.ReportAllocs()
	for b.Loop() {
		buf = p.AppendPgField(buf[:0])
	}
}

func BenchmarkMulAtto(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := money.MulAtto(12_345, 2_500_000_000_000); err != nil {
			b.Fatal(err)
		}
	}
}
