package verify

import (
	"math/big"
	"math/bits"
	"strings"
)

// Sums is what checked entries add up to. Money has 128 bits: no ledger of
// 2^63 entries overflows it.
type Sums struct {
	Count
	Kinds [lastKind + 1]int64 // entries by kind
	// The earliest and latest times in the entries, unix nanoseconds; 0 is none.
	FirstOccurred, LastOccurred int64
	FirstReceived, LastReceived int64
	// Dated are the entries that occurred in [DatesFrom, DatesTo), when asked for.
	DatesFrom, DatesTo int64
	Dated              Count
}

// Count is how many entries there are, and their money.
type Count struct {
	Entries  int64
	Priced   int64 // entries with a cost
	Unpriced int64 // usage without one
	costHigh int64
	costLow  uint64
}

func (c *Count) add(b *content) {
	c.Entries++
	switch {
	case b.priced:
		c.Priced++
		var carry uint64
		c.costLow, carry = bits.Add64(c.costLow, uint64(b.cost), 0)
		c.costHigh += b.cost>>63 + int64(carry)
	case b.kind == kindUsage:
		c.Unpriced++
	}
}

func (c *Count) merge(o *Count) {
	c.Entries += o.Entries
	c.Priced += o.Priced
	c.Unpriced += o.Unpriced
	var carry uint64
	c.costLow, carry = bits.Add64(c.costLow, o.costLow, 0)
	c.costHigh += o.costHigh + int64(carry)
}

// CostUSD is the sum of the costs as a decimal with twelve places.
func (c *Count) CostUSD() string {
	sum := new(big.Int).Lsh(big.NewInt(c.costHigh), 64)
	sum.Add(sum, new(big.Int).SetUint64(c.costLow))
	digits := new(big.Int).Abs(sum).String()
	if len(digits) < 13 {
		digits = strings.Repeat("0", 13-len(digits)) + digits
	}
	text := digits[:len(digits)-12] + "." + digits[len(digits)-12:]
	if sum.Sign() < 0 {
		text = "-" + text
	}
	return text
}

func (s *Sums) add(b *content) {
	s.Count.add(b)
	s.Kinds[b.kind]++
	widen(&s.FirstOccurred, &s.LastOccurred, b.occurred, b.occurred)
	widen(&s.FirstReceived, &s.LastReceived, b.received, b.received)
	if b.occurred != 0 && b.occurred >= s.DatesFrom && b.occurred < s.DatesTo {
		s.Dated.add(b)
	}
}

func (s *Sums) merge(o *Sums) {
	s.Count.merge(&o.Count)
	s.Dated.merge(&o.Dated)
	for k, n := range o.Kinds {
		s.Kinds[k] += n
	}
	widen(&s.FirstOccurred, &s.LastOccurred, o.FirstOccurred, o.LastOccurred)
	widen(&s.FirstReceived, &s.LastReceived, o.FirstReceived, o.LastReceived)
}

// widen makes first..last hold from..to as well; 0 is no time.
func widen(first, last *int64, from, to int64) {
	if from != 0 && (*first == 0 || from < *first) {
		*first = from
	}
	if to != 0 && (*last == 0 || to > *last) {
		*last = to
	}
}
