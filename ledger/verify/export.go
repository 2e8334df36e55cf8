package verify

import "errors"

// The export file of docs/ledger-format.md: a line of magic, a line of JSON, and
// blocks of entries.
const (
	maxHeaderBytes = 64 << 10
	blockHeader    = 4 + 8 + 4 // length, first number, count
	maxBlockBytes  = 16 << 20
	entryTail      = 2*HashSize + 4 // chain, MAC, epoch
)

// ErrNotExport says that a file is no export, or one of another version.
var ErrNotExport = errors.New("verify: not a ledger export of version 1")

// ExportHeader is the second line of an export.
type ExportHeader struct {
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
