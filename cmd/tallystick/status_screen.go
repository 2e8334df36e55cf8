package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/tallystick/tallystick/internal/client"
)

const (
	screenInterval = time.Second
	lineInterval   = 10 * time.Second
	// plainWidth is the width of what is no terminal: lines are never cut.
	plainWidth = 1 << 10
)

// palette holds the escape sequences of a terminal; the zero palette has none.
type palette struct{ dim, bold, good, bad, reset string }

// newPalette has no colours where NO_COLOR is set (no-color.org).
func newPalette() palette {
	if os.Getenv("NO_COLOR") != "" {
		return palette{}
	}
	return palette{dim: "\x1b[2m", bold: "\x1b[1m", good: "\x1b[32m", bad: "\x1b[31m", reset: "\x1b[0m"}
}

func (p palette) paint(colour, text string) string {
	if colour == "" {
		return text
	}
	return colour + text + p.reset
}

// terminalWidth is the width of a terminal; live is false for anything else.
func terminalWidth(w io.Writer) (width int, live bool) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return plainWidth, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		width = 80
	}
	return width, true
}

// screen draws a block of lines again and again in the same place.
type screen struct {
	w      io.Writer
	colour palette
	drawn  int // lines of the block that stand there
}

func newScreen(w io.Writer) *screen { return &screen{w: w, colour: newPalette()} }

const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	clearLine  = "\x1b[K"
	clearBelow = "\x1b[J"
)

// draw puts the lines where those before stood.
func (s *screen) draw(lines []string) error {
	var b strings.Builder
	b.WriteString(hideCursor)
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", s.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + clearLine + "\n")
	}
	b.WriteString(clearBelow)
	s.drawn = len(lines)
	_, err := io.WriteString(s.w, b.String())
	return err
}

// close leaves the terminal as it was.
func (s *screen) close() { _, _ = io.WriteString(s.w, showCursor) }

// watchStatus draws the status every second until ctx ends. extra, if set, gives
// further lines. A server that goes away is shown as such and waited for.
func watchStatus(ctx context.Context, source *statusSource, s *screen, extra func(palette) []string) error {
	defer s.close()
	tick := time.NewTicker(screenInterval)
	defer tick.Stop()
	var last []string
	for {
		st, err := source.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		width, _ := terminalWidth(s.w)
		if err == nil {
			last = st.lines(s.colour, width)
		}
		lines := last
		if extra != nil {
			lines = append(lines[:len(lines):len(lines)], extra(s.colour)...)
		}
		if err != nil {
			lines = append(lines[:len(lines):len(lines)], s.colour.paint(s.colour.bad, cut(err.Error(), width)))
		}
		if err := s.draw(lines); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// logStatus writes one line every ten seconds until ctx ends.
func logStatus(ctx context.Context, source *statusSource, w io.Writer, extra func() string) {
	tick := time.NewTicker(lineInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		st, err := source.read(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			_, _ = fmt.Fprintf(w, "status: error=%q%s\n", err, extra())
		default:
			_, _ = fmt.Fprintln(w, st.line()+extra())
		}
	}
}

// line is the status in one line of key=value.
func (st *status) line() string {
	p := st.Pipeline
	head := "none"
	if st.Head != nil {
		head = fmt.Sprintf("%s/%d/%s", st.Head.TenantID, st.Head.Seq, shortHash(st.Head.ChainHash))
	}
	engines := "ok"
	for _, d := range st.Engines {
		if d.State != "ok" {
			engines = d.Name + "_" + d.State
		}
	}
	line := fmt.Sprintf("status: ingest_per_s=%.1f ledger_per_s=%.1f clickhouse_per_s=%.1f ledger_lag=%d publish_lag=%d clickhouse_lag=%d entries=%d cost_usd=%s head=%s engines=%s",
		p.IngestRate, p.LedgerRate, p.AnalyticsRate, p.LedgerLag, p.PublishLag, p.AnalyticsLag, p.Entries, p.CostUSD, head, engines)
	if len(p.Halted) > 0 {
		line += fmt.Sprintf(" halted=%q", strings.Join(p.Halted, "; "))
	}
	return line
}

// lines is the status for a terminal of the given width.
func (st *status) lines(c palette, width int) []string {
	p := st.Pipeline
	row := func(name, format string, args ...any) string {
		return c.paint(c.dim, fmt.Sprintf("  %-13s", name)) + cut(fmt.Sprintf(format, args...), width-15)
	}
	head := "none yet"
	if st.Head != nil {
		head = fmt.Sprintf("%s  entry %s  %s", st.Head.TenantID, group(int64(st.Head.Seq)), shortHash(st.Head.ChainHash))
	}
	lines := []string{
		"",
		row("events/s", "ingest %s   ledger %s   ClickHouse %s", rate(p.IngestRate), rate(p.LedgerRate), rate(p.AnalyticsRate)),
		row("lag", "ledger %s   publish %s   ClickHouse %s", group(int64(p.LedgerLag)), group(int64(p.PublishLag)), group(int64(p.AnalyticsLag))),
		row("entries", "%s   (%s duplicates, %s rejected, %s unpriced)", group(int64(p.Entries)), group(int64(p.Duplicates)), group(int64(p.Rejected)), group(int64(p.Unpriced))),
		row("ledger head", "%s", head),
		c.paint(c.dim, fmt.Sprintf("  %-13s", "cost so far")) + c.paint(c.bold, cut(groupDecimal(p.CostUSD)+" USD", width-15)),
		c.paint(c.dim, fmt.Sprintf("  %-13s", "engines")) + health(c, st.Engines),
	}
	for _, h := range p.Halted {
		lines = append(lines, c.paint(c.bad, cut("  halted       "+h, width)))
	}
	return lines
}

// health names what the server needs and whether it answers.
func health(c palette, deps []client.Dependency) string {
	parts := make([]string, len(deps))
	for i, d := range deps {
		colour := c.good
		if d.State != "ok" {
			colour = c.bad
		}
		parts[i] = d.Name + " " + c.paint(colour, d.State)
	}
	return strings.Join(parts, "   ")
}

func rate(perSecond float64) string { return strconv.FormatFloat(perSecond, 'f', 1, 64) }

// shortHash is enough of a hash to compare by eye.
func shortHash(hash string) string { return hash[:min(len(hash), 16)] }

// group writes thousands apart: 1,234,567.
func group(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// groupDecimal writes the thousands of a decimal number apart.
func groupDecimal(text string) string {
	whole, rest, found := strings.Cut(text, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return text
	}
	if found {
		rest = "." + rest
	}
	return group(n) + rest
}

// cut shortens a text to a number of characters.
func cut(text string, width int) string {
	text = strings.ReplaceAll(text, "\n", " ")
	if width < 1 || utf8.RuneCountInString(text) <= width {
		return text
	}
	runes := []rune(text)
	return string(runes[:width-1]) + "…"
}
