package analytics

import (
	"strings"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/tallystick/tallystick/ingest/event"
)

// maxKeptValues bounds the values that a lowColumn remembers from block to
// block. A column with more distinct values than that forgets and begins anew.
const maxKeptValues = 1 << 16

// lowCardinalityVersion and the flags are those of ClickHouse's serialisation
// of LowCardinality: keys with their own dictionary in each block.
const (
	lowCardinalityVersion = 1
	lowCardinalityFlags   = 1<<9 | 1<<10
)

// lowColumn is a LowCardinality(String) column that copies a value only when it
// meets it for the first time: ch-go's own keeps the strings it is given, and
// those of an entry live no longer than the call.
type lowColumn struct {
	slots  map[string]uint32 // where a value stands in values
	values []string
	// block and local say, by slot, in which block the value was last used and
	// as the how-manieth of that block's dictionary.
	block   []uint32
	local   []uint32
	current uint32
	order   []uint32 // slots of this block's dictionary
	keys    []uint32 // the place in the dictionary of each row
	last    string   // the value of the row before, and its place
	lastKey uint32
}

func newLowColumn() *lowColumn {
	return &lowColumn{slots: make(map[string]uint32), current: 1}
}

// Append adds a row and returns the value's place in the block's dictionary.
func (c *lowColumn) Append(v string) uint32 {
	if len(c.keys) == 0 || v != c.last {
		c.lastKey = c.find(v)
		c.last = c.values[c.order[c.lastKey]]
	}
	c.keys = append(c.keys, c.lastKey)
	return c.lastKey
}

// find returns the value's place in the block's dictionary, adding it there.
func (c *lowColumn) find(v string) uint32 {
	slot, ok := c.slots[v]
	if !ok {
		slot = uint32(len(c.values))
		v = strings.Clone(v)
		c.slots[v] = slot
		c.values = append(c.values, v)
		c.block = append(c.block, 0)
		c.local = append(c.local, 0)
	}
	if c.block[slot] != c.current {
		c.block[slot], c.local[slot] = c.current, uint32(len(c.order))
		c.order = append(c.order, slot)
	}
	return c.local[slot]
}

// Value is the value at a place of the block's dictionary.
func (c *lowColumn) Value(key uint32) string { return c.values[c.order[key]] }

// Reset begins the next block.
func (c *lowColumn) Reset() {
	c.keys, c.order = c.keys[:0], c.order[:0]
	c.current++
	if len(c.values) > maxKeptValues || c.current == 0 {
		*c = lowColumn{slots: make(map[string]uint32), current: 1, keys: c.keys, order: c.order}
	}
}

// Type is the column's type in ClickHouse.
func (c *lowColumn) Type() proto.ColumnType { return "LowCardinality(String)" }

// Rows is the number of rows.
func (c *lowColumn) Rows() int { return len(c.keys) }

// EncodeState writes what stands before the column's data.
func (c *lowColumn) EncodeState(b *proto.Buffer) { b.PutInt64(lowCardinalityVersion) }

// EncodeColumn writes the dictionary and the keys, in as few bytes a key as the
// dictionary allows.
func (c *lowColumn) EncodeColumn(b *proto.Buffer) {
	if len(c.keys) == 0 {
		return
	}
	width := 0
	switch {
	case len(c.order) > 1<<16:
		width = 2
	case len(c.order) > 1<<8:
		width = 1
	}
	b.PutInt64(lowCardinalityFlags | int64(width))
	b.PutInt64(int64(len(c.order)))
	for _, slot := range c.order {
		b.PutString(c.values[slot])
	}
	b.PutInt64(int64(len(c.keys)))
	switch width {
	case 0:
		for _, k := range c.keys {
			b.Buf = append(b.Buf, byte(k))
		}
	case 1:
		for _, k := range c.keys {
			b.Buf = append(b.Buf, byte(k), byte(k>>8))
		}
	default:
		for _, k := range c.keys {
			b.Buf = append(b.Buf, byte(k), byte(k>>8), byte(k>>16), byte(k>>24))
		}
	}
}

// WriteColumn is EncodeColumn for a stream.
func (c *lowColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }

// tagColumn is a Map(LowCardinality(String), String) column.
type tagColumn struct {
	ends   proto.ColUInt64
	keys   *lowColumn
	values proto.ColStr
}

func newTagColumn() *tagColumn { return &tagColumn{keys: newLowColumn()} }

func (c *tagColumn) Append(tags []event.Tag) {
	for i := range tags {
		c.keys.Append(tags[i].Key)
		c.values.Append(tags[i].Value)
	}
	c.ends = append(c.ends, uint64(c.values.Rows()))
}

// Reset begins the next block.
func (c *tagColumn) Reset() {
	c.ends.Reset()
	c.keys.Reset()
	c.values.Reset()
}

// Type is the column's type in ClickHouse.
func (c *tagColumn) Type() proto.ColumnType { return "Map(LowCardinality(String), String)" }

// Rows is the number of rows.
func (c *tagColumn) Rows() int { return len(c.ends) }

// EncodeState writes what stands before the column's data.
func (c *tagColumn) EncodeState(b *proto.Buffer) { c.keys.EncodeState(b) }

// EncodeColumn writes the column's data.
func (c *tagColumn) EncodeColumn(b *proto.Buffer) {
	c.ends.EncodeColumn(b)
	c.keys.EncodeColumn(b)
	c.values.EncodeColumn(b)
}

// WriteColumn is EncodeColumn for a stream.
func (c *tagColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
