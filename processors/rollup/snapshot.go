package rollup

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/tallystick/tallystick/internal/money"
)

// errState says that bytes are not what Snapshot writes.
var errState = errors.New("rollup: not a snapshot of this version")

// Snapshot appends what is kept, in sorted order: equal states have equal
// bytes. All integers are varints; strings stand once, in a table.
//
//	newest, floor, number of symbols, symbols (length, bytes),
//	number of cells, cells (tenant, hour, dimension, value, sums)
func (r *Rollup) Snapshot(b []byte) []byte {
	b = binary.AppendVarint(b, int64(r.newest))
	b = binary.AppendVarint(b, int64(r.floor))
	order := r.kept.sorted(nil, &r.symbols)
	used := newSymbols() // only what the cells name, in the order in which they do
	for _, i := range order {
		used.of(r.symbols.names[r.kept.keys[i].tenant])
		used.of(r.symbols.names[r.kept.keys[i].value])
	}
	b = binary.AppendUvarint(b, uint64(len(used.names)-1))
	for _, name := range used.names[1:] {
		b = append(binary.AppendUvarint(b, uint64(len(name))), name...)
	}
	b = binary.AppendUvarint(b, uint64(len(order)))
	for _, i := range order {
		k := &r.kept.keys[i]
		b = binary.AppendUvarint(b, uint64(used.of(r.symbols.names[k.tenant])))
		b = binary.AppendVarint(b, int64(k.hour))
		b = append(b, k.dimension)
		b = binary.AppendUvarint(b, uint64(used.of(r.symbols.names[k.value])))
		b = appendSums(b, &r.kept.cells[i])
	}
	return b
}

func appendSums(b []byte, s *Sums) []byte {
	for _, n := range [...]int64{s.Requests, s.Failed, s.Unpriced, s.Estimated, s.Corrections} {
		b = binary.AppendVarint(b, n)
	}
	hi, lo := s.Cost.Words()
	b = binary.AppendVarint(b, int64(hi))
	b = binary.AppendUvarint(b, lo)
	for _, n := range &s.Tokens {
		b = binary.AppendVarint(b, n)
	}
	return binary.AppendVarint(b, s.GPUMicros)
}

// Restore replaces the state. On an error the state is not to be used.
func (r *Rollup) Restore(b []byte) error {
	maxCells := r.maxCells
	*r = *New()
	r.maxCells = maxCells
	d := decoder{b: b}
	r.newest, r.floor = d.hour(), d.hour()
	for n := d.count(1); n > 0 && !d.bad; n-- {
		name := d.text()
		if before := len(r.symbols.names); int(r.symbols.of(name)) != before {
			return errState
		}
	}
	for n := d.count(minCellBytes); n > 0 && !d.bad; n-- {
		k := key{tenant: d.symbol(&r.symbols), hour: d.hour()}
		k.dimension = d.dimension()
		k.value = d.symbol(&r.symbols)
		before := len(r.kept.keys)
		d.sums(r.kept.of(k))
		if len(r.kept.keys) == before {
			return errState // a cell stands twice
		}
		r.perHour[k.hour]++
	}
	if d.bad || len(d.b) > 0 {
		return errState
	}
	return nil
}

// minCellBytes is the size of the smallest cell: 4 for its key and 18 numbers.
const minCellBytes = 4 + 5 + 2 + 10 + 1

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.bad, d.b = true, nil }

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads how many things of at least the given size follow.
func (d *decoder) count(size int) uint64 {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) hour() int32 {
	v := d.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		d.fail()
	}
	return int32(v)
}

func (d *decoder) text() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) symbol(s *symbols) uint32 {
	i := d.uvarint()
	if i >= uint64(len(s.names)) {
		d.fail()
		return emptySymbol
	}
	return uint32(i)
}

func (d *decoder) dimension() uint8 {
	if len(d.b) == 0 || d.b[0] >= numDimensions {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) sums(s *Sums) {
	for _, n := range [...]*int64{&s.Requests, &s.Failed, &s.Unpriced, &s.Estimated, &s.Corrections} {
		*n = d.varint()
	}
	hi := d.varint()
	cost, err := money.SumFromWords(uint64(hi), d.uvarint())
	if err != nil {
		d.fail()
	}
	s.Cost = cost
	for i := range s.Tokens {
		s.Tokens[i] = d.varint()
	}
	s.GPUMicros = d.varint()
}
