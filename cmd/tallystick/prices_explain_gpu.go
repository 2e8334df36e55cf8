package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/ledger/chain"
)

// explainGPU prints how the time of a GPU came by its price.
func explainGPU(t *tabwriter.Writer, e *chain.Entry, book *pricing.Book, id pricing.RowID) error {
	row, ok := book.GPURow(id)
	if !ok {
		return fmt.Errorf("%w: the book has no row %q", errUnexplained, id)
	}
	ev := &e.Event
	fmt.Fprintf(t, "row\t%s\n", id)
	if row.Source != "" {
		fmt.Fprintf(t, "source\t%s\n", row.Source)
	}
	if ev.DerivedFrom != "" {
		fmt.Fprintf(t, "derived from\t%s\n", ev.DerivedFrom)
	}
	fmt.Fprintf(t, "time\t%d µs of a whole device, %s\n", ev.GPUMicros, ev.GPUState)
	fmt.Fprintf(t, "instance\t%s USD per hour, bought %s, %d devices\n", row.PerHour, row.Purchase, row.Devices)
	fmt.Fprintf(t, "sum\t%d µs × %s USD / (3,600,000,000 µs × %d) = %s USD\n", ev.GPUMicros, row.PerHour, row.Devices, e.Cost)
	return t.Flush()
}
