package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// print says how the entry came by its price.
func (x *explanation) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	x.printHead(t)
	switch {
	case !x.net.Priced:
		fmt.Fprintf(t, "unpriced\t%s\n", x.entry.UnpricedReason)
		x.printOutcome(t, "")
	case x.gpu != nil:
		x.printGPU(t)
		x.printOutcome(t, "")
	default:
		if err := t.Flush(); err != nil {
			return err
		}
		x.printClasses(t)
	}
	return t.Flush()
}

// printHead says what the entry is, and which price it has.
func (x *explanation) printHead(w io.Writer) {
	e := x.entry
	fmt.Fprintf(w, "entry\t%d of %s\n", e.Seq, e.Event.Tenant)
	if x.before != nil {
		fmt.Fprintf(w, "corrects\t%d, event %q%s\n", e.Corrected.Seq, e.Event.Corrects, because(e.Event.CorrectionReason))
	}
	fmt.Fprintf(w, "usage\t%q of %q at %s, received %s\n", e.Event.Model, e.Event.Provider, nanoTime(e.Event.OccurredAt), nanoTime(e.Event.ReceivedAt))
	if x.book != nil {
		fmt.Fprintf(w, "book\t%s, SHA-256 %x\n", x.book.Version(), x.book.Hash())
	}
	if x.net.Priced {
		fmt.Fprintf(w, "row\t%s\n", x.result.Row)
	}
	if x.source != "" {
		fmt.Fprintf(w, "source\t%s\n", x.source)
	}
}

// because puts a producer's reason behind what it is the reason of.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return fmt.Sprintf(", reason %q", reason)
}

// printGPU says how the time of a GPU came by its price.
func (x *explanation) printGPU(w io.Writer) {
	ev, row := &x.entry.Event, x.gpu
	if ev.DerivedFrom != "" {
		fmt.Fprintf(w, "derived from\t%s\n", ev.DerivedFrom)
	}
	fmt.Fprintf(w, "time\t%d µs of a whole device, %s\n", ev.GPUMicros, ev.GPUState)
	fmt.Fprintf(w, "instance\t%s USD per hour, bought %s, %d devices\n", row.PerHour, row.Purchase, row.Devices)
	fmt.Fprintf(w, "sum\t%d µs × %s USD / (3,600,000,000 µs × %d) = %s USD\n", ev.GPUMicros, row.PerHour, row.Devices, x.net.Cost)
}

// printClasses prints what each class of tokens costs, and what they come to.
func (x *explanation) printClasses(w io.Writer) {
	fmt.Fprintln(w, "CLASS\tTOKENS\tUSD PER 1,000,000\tUSD")
	for _, p := range x.parts {
		mark := ""
		if p.derived {
			mark = " (derived)"
		}
		fmt.Fprintf(w, "%s\t%d\t%s%s\t%s\n", p.class, p.tokens, perMillion(p.rate), mark, p.cost)
	}
	fmt.Fprintf(w, "sum\t\t\t%s\nledger\t\t\t%s\n", x.net.Cost, x.net.Cost)
	x.printOutcome(w, "\t\t")
}

// printOutcome says what a correction changes, and what the provider says; blank are the columns between name and value.
func (x *explanation) printOutcome(w io.Writer, blank string) {
	if x.before != nil {
		x.printCorrected(w, blank)
	}
	x.printProvider(w, blank)
}

// printCorrected says what a correction changes.
func (x *explanation) printCorrected(w io.Writer, blank string) {
	was := "by an earlier correction"
	if x.direct {
		was = fmt.Sprintf("by entry %d", x.before.Seq)
	}
	fmt.Fprintf(w, "before\t%s%s, %s\n", blank, costOf(x.before), was)
	fmt.Fprintf(w, "now\t%s%s\n", blank, costOf(&x.net))
	fmt.Fprintf(w, "delta\t%s%s\n", blank, signed(x.entry.Cost.String()))
	if used := x.usedMore(); used != "" {
		fmt.Fprintf(w, "usage delta\t%s%s\n", blank, used)
	}
}

// printProvider compares what the provider says that the usage costs with the ledger.
func (x *explanation) printProvider(w io.Writer, blank string) {
	p := x.provider
	if p == nil {
		return
	}
	says := "the same"
	switch {
	case !x.net.Priced:
		says = "which the ledger has no price to compare with"
	case p.over > 0:
		says = p.over.String() + " more than the ledger"
	case p.over < 0:
		says = strings.TrimPrefix(p.over.String(), "-") + " less than the ledger"
	}
	if p.seq != x.entry.Seq {
		says += fmt.Sprintf(" (entry %d)", p.seq)
	}
	fmt.Fprintf(w, "provider\t%s%s, %s\n", blank, p.cost, says)
}

// costOf is what usage comes to, or that it has no price.
func costOf(n *chain.Net) string {
	if !n.Priced {
		return "unpriced"
	}
	return n.Cost.String()
}

// usedMore is what a correction adds to the usage; "" when only its price changed.
func (x *explanation) usedMore() string {
	var parts []string
	for c, n := range x.entry.Corrected.Tokens {
		if n != 0 {
			parts = append(parts, fmt.Sprintf("%s %+d", tokens.Class(c), n))
		}
	}
	if n := x.entry.Corrected.GPUMicros; n != 0 {
		parts = append(parts, fmt.Sprintf("%+d µs", n))
	}
	return strings.Join(parts, ", ")
}

// signed puts a plus before an amount that has no minus.
func signed(amount string) string {
	if strings.HasPrefix(amount, "-") {
		return amount
	}
	return "+" + amount
}

func nanoTime(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
