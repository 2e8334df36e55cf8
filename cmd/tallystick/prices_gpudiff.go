package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
)

// printGPUChanges prints the prices of GPU instances that differ, as printDiff says.
func printGPUChanges(w io.Writer, changes []pricing.GPUChange, most int) error {
	if len(changes) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHANGE\tINSTANCE\tREGION\tPURCHASE\tDEVICES\tFROM PER HOUR\tTO PER HOUR\tPERCENT")
	shown, more := firstOf(changes, most)
	for _, c := range shown {
		fmt.Fprintf(t, "%s\t%s/%s\t%s\t%s\t%s\t%s\t%s\t%s\n", gpuChangeKind(c), c.Provider, c.Instance, orDash(c.Region), c.Purchase,
			changedDevices(c), rowPerHour(c.From), rowPerHour(c.To), orDash(c.Percent()))
	}
	fmt.Fprint(t, more)
	return t.Flush()
}

func gpuChangeKind(c pricing.GPUChange) string {
	switch {
	case c.From == nil:
		return "added"
	case c.To == nil:
		return "removed"
	}
	return "changed"
}

// changedDevices is how many devices the instance shows, before and after where that differs.
func changedDevices(c pricing.GPUChange) string {
	if c.From != nil && c.To != nil && c.From.Devices != c.To.Devices {
		return fmt.Sprintf("%d to %d", c.From.Devices, c.To.Devices)
	}
	return fmt.Sprint(cmp.Or(c.To, c.From).Devices)
}

func rowPerHour(r *pricing.GPURow) string {
	if r == nil {
		return "-"
	}
	return shortUSD(r.PerHour)
}

// shortUSD writes an amount without trailing zeros.
func shortUSD(p money.Pico) string {
	return strings.TrimSuffix(strings.TrimRight(p.String(), "0"), ".")
}
