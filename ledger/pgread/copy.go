package pgread

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/ledger/verify"
)

// The binary COPY format (PostgreSQL documentation, COPY, "Binary Format"): a
// signature, flags, an extension, then tuples of a 16-bit field count and
// fields of a 32-bit length and that many bytes; a count of -1 ends it.
const (
	copySignature   = "PGCOPY\n\xff\r\n\x00"
	copyHeaderBytes = len(copySignature) + 4 + 4
	columns         = 8
	// postgresEpoch is 2000-01-01 in unix microseconds, the zero of timestamptz.
	postgresEpoch = 946_684_800_000_000
)

var (
	errCopy = errors.New("pgread: not the binary COPY that was asked for")
	errCut  = errors.New("pgread: the binary COPY ended early")
)

// parser is the io.Writer that a COPY flows into. Tuples that lie whole in what
// is written are read in place; only one that is cut is copied.
type parser struct {
	fn     func(*verify.Row) error
	header bool
	ended  bool
	rest   []byte // the beginning of a tuple whose end is to come
	row    verify.Row
	err    error
}

// Write takes the next bytes of the COPY.
func (p *parser) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n := len(b)
	if len(p.rest) > 0 {
		p.rest = append(p.rest, b...)
		b = p.rest
	}
	after, err := p.read(b)
	if err != nil {
		p.err = err
		return 0, err
	}
	p.rest = append(p.rest[:0], after...)
	return n, nil
}

// read reads all whole tuples of b and returns what follows.
func (p *parser) read(b []byte) ([]byte, error) {
	if !p.header {
		if len(b) < copyHeaderBytes {
			return b, nil
		}
		if string(b[:len(copySignature)]) != copySignature || binary.BigEndian.Uint64(b[len(copySignature):]) != 0 {
			return nil, errCopy
		}
		p.header, b = true, b[copyHeaderBytes:]
	}
	for len(b) > 0 {
		after, ok, err := p.tuple(b)
		if err != nil || !ok {
			return b, err
		}
		b = after
	}
	return nil, nil
}

// tuple reads one tuple; ok is false when it does not lie whole in b.
func (p *parser) tuple(b []byte) (after []byte, ok bool, err error) {
	if len(b) < 2 {
		return b, false, nil
	}
	count := int16(binary.BigEndian.Uint16(b))
	b = b[2:]
	if count == -1 {
		p.ended = true
		return b, true, nil
	}
	if count != columns || p.ended {
		return nil, false, errCopy
	}
	var f [columns][]byte
	for i := range f {
		if len(b) < 4 {
			return nil, false, nil
		}
		n := int32(binary.BigEndian.Uint32(b))
		b = b[4:]
		if n < 0 {
			continue // null
		}
		if int64(len(b)) < int64(n) {
			return nil, false, nil
		}
		f[i], b = b[:n:n], b[n:]
	}
	if err := p.fill(&f); err != nil {
		return nil, false, err
	}
	return b, true, p.fn(&p.row)
}

// fill translates the columns of copyRange.
func (p *parser) fill(f *[columns][]byte) error {
	if len(f[0]) != 8 || len(f[1]) != 2 || len(f[2]) != 4 || f[5] == nil || f[6] == nil || f[7] == nil {
		return fmt.Errorf("%w: columns of %d, %d and %d bytes", errCopy, len(f[0]), len(f[1]), len(f[2]))
	}
	p.row = verify.Row{
		Seq: int64(binary.BigEndian.Uint64(f[0])), Projected: true, Kind: int64(int16(binary.BigEndian.Uint16(f[1]))),
		Epoch: int64(int32(binary.BigEndian.Uint32(f[2]))), Canonical: f[5], Chain: f[6], MAC: f[7],
	}
	if len(f[3]) == 8 {
		p.row.HasOccurred, p.row.Occurred = true, int64(binary.BigEndian.Uint64(f[3]))+postgresEpoch
	}
	if f[4] != nil {
		cost, err := money.ParsePgNumeric(f[4])
		p.row.HasCost, p.row.Cost, p.row.CostBad = true, int64(cost), err != nil
	}
	return nil
}
