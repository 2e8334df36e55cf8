package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"
)

const exportLong = `Write a tenant's ledger to a file that can be verified anywhere.

By default the file is a plain export (docs/ledger-format.md), which ` + "`ledger verify --file`" + `
and docs/verify.py check. With --evidence it is an evidence package: a ZIP file with the
entries, signed checkpoints, proofs, audit rows and sums, which an auditor checks offline with
tallystick-verify and public keys only.

--from and --to are numbers of entries; of a package they may be dates too (2026-11-01, or RFC
3339), which means the days on which usage occurred, in UTC unless --time-zone says otherwise. A
date as --to is the whole day. Entries stand in order of arrival: a package of days is the
smallest range that holds all entries of them, and its manifest has the sums of the days alone.

The file appears under its name when it is whole, or not at all.`

// exportFlags are those of `ledger export` alone.
type exportFlags struct {
	*ledgerFlags
	from, to, zone, format string
	evidence               bool
	kept                   []int64
}

func newLedgerExportCommand(f *ledgerFlags) *cobra.Command {
	x := &exportFlags{ledgerFlags: f}
	cmd := &cobra.Command{
		Use: "export", Short: "Write a tenant's ledger to a file that can be verified anywhere", Long: exportLong,
		Example: `  tallystick ledger export --tenant acme -o acme.tsx
  tallystick ledger export --tenant acme --evidence --from 2026-11-01 --to 2026-11-30 -o november.zip`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return x.export(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (required)")
	fs.StringVar(&x.from, "from", "", "first entry, or day (default: the first there is)")
	fs.StringVar(&x.to, "to", "", "last entry, or day (default: the last there is; of a package, under a checkpoint)")
	fs.StringVar(&x.zone, "time-zone", "", "time zone of dates (default UTC)")
	fs.BoolVar(&x.evidence, "evidence", false, "write an evidence package; the same as --format zip")
	fs.StringVar(&x.format, "format", "", "tsx (a plain export, the default) or zip (an evidence package)")
	fs.Int64SliceVar(&x.kept, "kept", nil, "`SIZES` of checkpoints that the auditor has: the package gets proofs to them")
	fs.StringVarP(&f.outFile, "output", "o", "", "write to `FILE` (required)")
	fs.BoolVar(&f.yes, "yes", false, "replace a file that is there")
	return cmd
}

func (x *exportFlags) export(ctx context.Context, stderr io.Writer) error {
	switch {
	case x.tenant == "" || x.outFile == "":
		return usageError("--tenant and --output are needed")
	case x.format != "" && x.format != "tsx" && x.format != "zip":
		return usageError("--format: tsx or zip")
	case x.evidence && x.format == "tsx":
		return usageError("--evidence is --format zip")
	}
	zip := x.evidence || x.format == "zip"
	if !zip && (x.zone != "" || len(x.kept) > 0) {
		return usageError("--time-zone and --kept go with --evidence")
	}
	if _, err := os.Lstat(x.outFile); !errors.Is(err, fs.ErrNotExist) && !x.yes {
		return &exitError{exitConflict, fmt.Errorf("%s is there already; --yes replaces it", x.outFile)}
	}
	var what string
	err := createWhole(x.outFile, func(out *os.File) (err error) {
		if zip {
			what, err = x.writePackage(ctx, out, stderr)
		} else {
			what, err = x.writeExport(ctx, out, stderr)
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: %s\n", x.outFile, what)
	return nil
}

// writeExport writes a plain export, made by the server or here.
func (x *exportFlags) writeExport(ctx context.Context, out *os.File, stderr io.Writer) (string, error) {
	from, err1 := parseSeq(x.from)
	to, err2 := parseSeq(x.to)
	if err := errors.Join(err1, err2); err != nil || to > 0 && to < from {
		return "", usageError("--from and --to of a plain export: numbers of entries, a range; dates go with --evidence")
	}
	bar := &verifyProgress{w: stderr, tenant: x.tenant}
	defer bar.finish()
	if x.dsnFile != "" {
		return x.makeExport(ctx, out, from, to, bar)
	}
	c, err := x.api()
	if err != nil {
		return "", err
	}
	if err := c.export(ctx, x.tenant, from, to, &packageMeter{out: out, progress: bar.update}); err != nil {
		return "", err
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h, err := verify.ReadExportHeader(out)
	return exportText(h.From, h.To, h.Tenant, h.HeadSeq, h.HeadChain), err
}

func exportText(from, to int64, id string, head int64, chain string) string {
	return fmt.Sprintf("entries %d to %d of %s; head %d %s", from, to, id, head, chain)
}

// makeExport makes the export out of the database, without the server.
func (x *exportFlags) makeExport(ctx context.Context, out io.Writer, from, to int64, bar *verifyProgress) (string, error) {
	x.workers = 1
	d, err := x.direct(ctx)
	if err != nil {
		return "", err
	}
	defer d.close()
	h, err := evidence.Export(ctx, d.source(x.tenant), x.tenant, from, to, out, bar.update)
	if errors.Is(err, evidence.ErrRange) {
		err = &exitError{exitNotFound, fmt.Errorf("there are no such entries of %s", x.tenant)}
	}
	return exportText(h.From, h.To, h.Tenant, h.HeadSeq, h.HeadChain), err
}

func parseSeq(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil && n < 0 {
		err = strconv.ErrRange
	}
	return n, err
}

// writePackage writes an evidence package, made by the server or here.
func (x *exportFlags) writePackage(ctx context.Context, out io.Writer, stderr io.Writer) (string, error) {
	bar := &verifyProgress{w: stderr, tenant: x.tenant}
	defer bar.finish()
	if x.dsnFile != "" {
		return x.makePackage(ctx, out, bar)
	}
	c, err := x.api()
	if err != nil {
		return "", err
	}
	meter := &packageMeter{out: out, progress: bar.update}
	from, to, size, err := c.evidence(ctx, x, meter)
	if err != nil {
		return "", err
	}
	return packageText(from, to, size, x.tenant), nil
}

func packageText(from, to, size int64, id string) string {
	return fmt.Sprintf("evidence of entries %d to %d of %s, under the checkpoint of size %d", from, to, id, size)
}

// makePackage makes the package out of the database, without the server.
func (x *exportFlags) makePackage(ctx context.Context, out io.Writer, bar *verifyProgress) (string, error) {
	req, err := api.ParseEvidenceRange(x.from, x.to, x.zone)
	if err != nil {
		return "", usageError("%w", err)
	}
	x.workers = 2
	d, err := x.direct(ctx)
	if err != nil {
		return "", err
	}
	defer d.close()
	req.Kept, req.Audit = x.kept, true
	p, err := evidenceMaker{d.db}.Plan(ctx, tenant.ID(x.tenant), req)
	var invalid *api.InvalidError
	switch {
	case errors.As(err, &invalid):
		return "", &exitError{exitNotFound, err}
	case errors.Is(err, api.ErrUnavailable):
		return "", &exitError{exitUnavailable, err}
	case err != nil:
		return "", err
	}
	plan := p.(evidencePackage).plan
	if _, err := plan.Write(ctx, out, bar.update); err != nil {
		return "", err
	}
	return packageText(plan.From, plan.To, plan.Checkpoint.Size, x.tenant), nil
}

// packageMeter passes a package or an export on and counts the entries that went by, for the
// bar. It looks at block headers only, and gives up at what it does not know:
// then there is no bar, and the file is what it is.
type packageMeter struct {
	out         io.Writer
	progress    func(done, total int64)
	first, last int64 // of the range
	skip        int64 // bytes up to the next header
	head        []byte
	state       meterState
}

type meterState uint8

const (
	meterMember  meterState = iota // a local header of the archive
	meterSkip                      // the rest of a member's name, then its content
	meterLines                     // the two lines of an export
	meterBlocks                    // headers of blocks
	meterStopped                   // the entries are through, or not understood
)

const (
	zipLocalHeader = 30
	blockHeader    = 16
)

func (m *packageMeter) Write(b []byte) (int, error) {
	n, err := m.out.Write(b)
	m.look(b[:n])
	return n, err
}

// look follows the bytes. The entries are the second member: the first one is
// passed over byte by byte, because its size stands behind it.
func (m *packageMeter) look(b []byte) {
	for len(b) > 0 && m.state != meterStopped {
		if m.skip > 0 {
			n := min(m.skip, int64(len(b)))
			m.skip, b = m.skip-n, b[n:]
			continue
		}
		m.head, b = append(m.head, b[0]), b[1:]
		m.step()
	}
}

// magicLine begins the entries.
const magicLine = "tallystick ledger export 1\n"

func (m *packageMeter) step() {
	switch m.state {
	case meterMember, meterSkip: // wait for the export's first line
		if len(m.head) > len(magicLine) {
			m.head = m.head[1:]
		}
		if string(m.head) == magicLine {
			m.head, m.state = m.head[:0], meterLines
		}
	case meterLines:
		if m.head[len(m.head)-1] == '\n' {
			m.head, m.state = m.head[:0], meterBlocks
		}
	case meterBlocks:
		if len(m.head) == blockHeader {
			m.block(int64(binary.BigEndian.Uint32(m.head)), int64(binary.BigEndian.Uint64(m.head[4:])), int64(binary.BigEndian.Uint32(m.head[12:])))
			m.head = m.head[:0]
		}
	}
}

func (m *packageMeter) block(size, first, count int64) {
	if size == 0 {
		m.state = meterStopped
		return
	}
	m.skip = size
	if m.last >= m.first && m.first > 0 {
		m.progress(min(first+count, m.last+1)-m.first, m.last-m.first+1)
	}
}
