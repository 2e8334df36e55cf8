package evidence

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/tallystick/tallystick/ledger/verify"
)

// The export file of docs/ledger-format.md: a line of magic, a line of JSON, and
// blocks of entries.
const (
	ledgerMagic  = "tallystick ledger export 1\n"
	auditMagic   = "tallystick audit export 1\n"
	hashBytes    = 32
	blockHeader  = 4 + 8 + 4 // length, first number, count
	blockEntries = 4096
	blockBytes   = 1 << 20 // after which a block ends
)

// Header is the second line of an export.
type Header struct {
	Tenant string `json:"tenant"`
	From   int64  `json:"from_seq"`
	To     int64  `json:"to_seq"`
	// AnchorChain and AnchorEpoch are the chain hash and key epoch of entry
	// From-1; empty and 0 when From is 1.
	AnchorChain string `json:"anchor_chain"`
	AnchorEpoch int64  `json:"anchor_epoch"`
	// HeadSeq and HeadChain are the head when the export was made.
	HeadSeq   int64  `json:"head_seq"`
	HeadChain string `json:"head_chain"`
}

// Export writes the range of a ledger to w as an export file and returns what
// it wrote. The range must exist, else ErrRange; nothing is verified. It holds
// one block in memory.
func Export(ctx context.Context, src verify.Source, tenantID string, from, to int64, w io.Writer, progress func(done, total int64)) (Header, error) {
	return export(ctx, src, ledgerMagic, tenantID, from, to, w, progress, nil)
}

// ExportAudit is Export of an audit log.
func ExportAudit(ctx context.Context, src verify.Source, tenantID string, from, to int64, w io.Writer, progress func(done, total int64)) (Header, error) {
	return export(ctx, src, auditMagic, tenantID, from, to, w, progress, nil)
}

// export is Export for either log; look, when set, sees every row that is written.
func export(ctx context.Context, src verify.Source, magic, tenantID string, from, to int64, w io.Writer,
	progress func(done, total int64), look func(*verify.Row) error,
) (Header, error) {
	ends, err := src.Ends(ctx)
	if err != nil {
		return Header{}, err
	}
	h := Header{Tenant: tenantID, From: max(from, 1), To: to, HeadSeq: ends.Seq, HeadChain: hex.EncodeToString(ends.Chain[:])}
	if h.To == 0 || h.To > ends.Seq {
		h.To = ends.Seq
	}
	if !ends.HasHead || h.To < h.From {
		return h, ErrRange
	}
	e := &exporter{w: bufio.NewWriterSize(w, 1<<20), next: h.From, last: h.To, progress: progress, total: h.To - h.From + 1}
	first := h.From
	if h.From > 1 {
		first--
	}
	err = src.Rows(ctx, first, h.To, func(r *verify.Row) error {
		if r.Seq < h.From {
			h.AnchorChain, h.AnchorEpoch = hex.EncodeToString(r.Chain), r.Epoch
			return nil
		}
		if r.Seq == h.From {
			if err := e.header(magic, &h); err != nil {
				return err
			}
		}
		if look != nil {
			if err := look(r); err != nil {
				return err
			}
		}
		return e.add(r)
	})
	if err != nil {
		return h, err
	}
	return h, e.finish()
}

type exporter struct {
	w        *bufio.Writer
	begun    bool
	next     int64
	last     int64
	block    []byte
	first    int64 // number of the block's first entry
	count    uint32
	progress func(done, total int64)
	total    int64
	done     int64
}

func (e *exporter) header(magic string, h *Header) error {
	e.begun = true
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = e.w.WriteString(magic + string(line) + "\n")
	return err
}

func (e *exporter) add(r *verify.Row) error {
	if r.Seq != e.next || len(r.Chain) != hashBytes || len(r.MAC) != hashBytes {
		return fmt.Errorf("%w: %d is not there; the store gives %d", ErrGap, e.next, r.Seq)
	}
	e.next++
	if e.count == 0 {
		e.first = r.Seq
	}
	e.block = binary.AppendUvarint(e.block, uint64(len(r.Canonical)))
	e.block = append(e.block, r.Canonical...)
	e.block = append(append(e.block, r.Chain...), r.MAC...)
	e.block = binary.BigEndian.AppendUint32(e.block, uint32(r.Epoch))
	if e.count++; e.count == blockEntries || len(e.block) >= blockBytes {
		return e.flush()
	}
	return nil
}

func (e *exporter) flush() error {
	var h [blockHeader]byte
	binary.BigEndian.PutUint32(h[:], uint32(len(e.block)))
	binary.BigEndian.PutUint64(h[4:], uint64(e.first))
	binary.BigEndian.PutUint32(h[12:], e.count)
	if _, err := e.w.Write(h[:]); err != nil {
		return err
	}
	_, err := e.w.Write(e.block)
	e.done += int64(e.count)
	e.block, e.count = e.block[:0], 0
	if e.progress != nil {
		e.progress(e.done, e.total)
	}
	return err
}

func (e *exporter) finish() error {
	if e.next != e.last+1 || !e.begun {
		return fmt.Errorf("%w: the store ends at %d of %d", ErrGap, e.next-1, e.last)
	}
	if e.count > 0 {
		if err := e.flush(); err != nil {
			return err
		}
	}
	e.first = e.next
	if err := e.flush(); err != nil { // the end: a block of nothing
		return err
	}
	return e.w.Flush()
}
