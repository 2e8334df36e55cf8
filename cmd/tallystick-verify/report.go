package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/tallystick/tallystick/ledger/verify"
)

// jsonReport is the report for programs. Numbers that may exceed 2^53 are
// strings.
type jsonReport struct {
	Verdict     string           `json:"verdict"`
	Tenant      string           `json:"tenant_id"`
	From        int64            `json:"from_seq,string"`
	To          int64            `json:"to_seq,string"`
	Entries     int64            `json:"entries,string"`
	Covered     int64            `json:"checkpoint_size,string"`
	MACsChecked bool             `json:"macs_checked"`
	HeadHash    string           `json:"last_chain_hash"`
	CostUSD     string           `json:"cost_usd"`
	Unpriced    int64            `json:"unpriced,string"`
	Checkpoints []jsonCheckpoint `json:"checkpoints"`
	FirstBad    int64            `json:"first_bad_seq,string"`
	Reason      string           `json:"reason"`
	Detector    string           `json:"detector"`
	Message     string           `json:"message"`
	Warnings    []string         `json:"warnings"`
	Audit       *jsonReport      `json:"audit"`
}

type jsonCheckpoint struct {
	Origin    string   `json:"origin"`
	Size      int64    `json:"size,string"`
	Root      string   `json:"root"`
	Witnesses []string `json:"witnesses"`
}

func toJSON(r *verify.Report) *jsonReport {
	if r == nil {
		return nil
	}
	j := &jsonReport{
		Verdict: string(r.Verdict), Tenant: r.Tenant, From: r.From, To: r.To, Entries: r.Entries, Covered: r.Covered,
		MACsChecked: r.MACsChecked, CostUSD: r.Sums.CostUSD(), Unpriced: r.Sums.Unpriced, Checkpoints: []jsonCheckpoint{},
		FirstBad: r.FirstBad, Reason: string(r.Reason), Detector: string(r.Detector), Message: r.Message,
		Warnings: append([]string{}, r.Warnings...), Audit: toJSON(r.Audit),
	}
	if r.Verdict == verify.Intact {
		j.HeadHash = hex.EncodeToString(r.HeadHash[:])
	}
	for _, c := range r.Checkpoints {
		j.Checkpoints = append(j.Checkpoints, jsonCheckpoint{c.Origin, c.Size, hex.EncodeToString(c.Root[:]), append([]string{}, c.Witnesses...)})
	}
	return j
}

func (o *options) print(w io.Writer, r *verify.Report) error {
	if o.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(toJSON(r))
	}
	p := &printer{w: w}
	switch r.Verdict {
	case verify.Intact:
		p.line("INTACT: entries %d to %d of %s", r.From, r.To, r.Tenant)
	case verify.Broken:
		at := ""
		if r.FirstBad > 0 { // 0: no entry is, but what is beside them
			at = fmt.Sprintf(" at entry %d", r.FirstBad)
		}
		p.line("BROKEN%s of %s: %s (found by: %s)", at, r.Tenant, r.Reason, r.Detector)
		p.line("  %s", r.Message)
	default:
		p.line("CANNOT TELL: %s", r.Message)
	}
	p.details(r)
	for _, warning := range r.Warnings {
		p.line("WARNING: %s", warning)
	}
	return p.err
}

// details says what a verdict rests on.
func (p *printer) details(r *verify.Report) {
	p.line("  entries checked   %d", r.Entries)
	if r.Covered > 0 {
		p.line("  checkpoint        size %d", r.Covered)
	}
	for _, c := range r.Checkpoints {
		if c.Size == r.Covered {
			p.line("                    %s, root %x", c.Origin, c.Root)
			for _, name := range c.Witnesses {
				p.line("                    cosigned by %s", name)
			}
		}
	}
	macs := "not checked (no --mac-keys)"
	if r.MACsChecked {
		macs = "checked"
	}
	p.line("  MACs              %s", macs)
	if r.Verdict != verify.Intact {
		return
	}
	p.line("  cost              USD %s (%d priced, %d unpriced)", r.Sums.CostUSD(), r.Sums.Priced, r.Sums.Unpriced)
	if m := r.Package; m != nil && m.Dates != nil {
		p.line("  occurred on       %s to before %s (%s)", m.Dates.From, m.Dates.Before, m.Dates.TimeZone)
		p.line("  of these          %d entries, USD %s", r.Sums.Dated.Entries, r.Sums.Dated.CostUSD())
	}
	if r.Audit != nil {
		p.line("  audit rows        %d to %d, %s", r.Audit.From, r.Audit.To, r.Audit.Verdict)
	}
	p.line("  last chain hash   %x", r.HeadHash)
}

// printer keeps the first error of writing.
type printer struct {
	w   io.Writer
	err error
}

// line prints one line. Names in it may come from a hostile package: nothing
// that a terminal would obey gets through.
func (p *printer) line(format string, args ...any) {
	if p.err != nil {
		return
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\ufffd'
		}
		return r
	}, fmt.Sprintf(format, args...))
	_, p.err = fmt.Fprintln(p.w, text)
}
