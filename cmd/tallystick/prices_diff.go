package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/pricing"
)

// diffFlags are the flags of `prices diff`.
type diffFlags struct {
	ledgerFlags
	at      string
	sources bool
	json    bool
}

func newPricesDiffCommand() *cobra.Command {
	f := &diffFlags{}
	cmd := &cobra.Command{
		Use:   "diff BOOK BOOK… [--at TIME] [--sources]",
		Short: "Compare price books: what is added, removed and changed, in percent",
		Long: `Compare two price books: the prices in force at a time that one has and the other
has not, and those that differ, in USD per million tokens and in percent; and those of
GPU instances, in USD per hour, with the percentage of one device's hour. A book is
a file of ` + "`tallystick prices import`" + `, "builtin", or "in-force", the server's.

With --sources the books are equals: only prices that two or more of them state, and
not alike, are printed. A source that is silent does not disagree.`,
		Example: "  tallystick prices diff in-force candidate.jsonl\n  tallystick prices diff --sources litellm.jsonl genai.jsonl modelsdev.jsonl",
		Args:    cobra.MinimumNArgs(2),
		RunE:    func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.at, "at", "", "`TIME` of the usage (default: now)")
	outputFlag(cmd, &f.json)
	fs.BoolVar(&f.sources, "sources", false, "report where sources disagree")
	return cmd
}

func (f *diffFlags) run(cmd *cobra.Command, names []string) error {
	when, err := momentFlag("at", f.at)
	if err != nil {
		return err
	}
	if len(names) > 2 && !f.sources {
		return usageError("two books are compared; more with --sources")
	}
	books := make([]*pricing.Book, len(names))
	for i, name := range names {
		if books[i], err = f.book(cmd.Context(), name); err != nil {
			return err
		}
	}
	w := cmd.OutOrStdout()
	if f.sources {
		found, compared := pricing.Disagreements(when, books...)
		if f.json {
			return printIndented(w, disagreementsForJSON(when, names, found, compared))
		}
		return printDisagreements(w, names, found, compared)
	}
	d := pricing.Compare(books[0], books[1], when)
	if f.json {
		return printIndented(w, diffForJSON(&d))
	}
	return printDiff(w, &d, 0)
}

// printDiff prints what makes one book of another, at most so many changes of each kind; 0
// prints all.
func printDiff(w io.Writer, d *pricing.Diff, most int) error {
	if d.Empty() {
		_, err := fmt.Fprintf(w, "%s and %s say the same\n", d.From.Version, d.To.Version)
		return err
	}
	if err := printRateChanges(w, d.Changes, most); err != nil {
		return err
	}
	if err := printGPUChanges(w, d.GPUChanges, most); err != nil {
		return err
	}
	return printDiffCounts(w, d)
}

func printRateChanges(w io.Writer, changes []pricing.RateChange, most int) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(changes) > 0 {
		fmt.Fprintln(t, "CHANGE\tMODEL\tTIER\tCLASS\tFROM\tTO\tPERCENT")
	}
	shown, more := firstOf(changes, most)
	for _, c := range shown {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", changeKind(c), modelName(c.RateKey), tierName(c.RateKey), c.Class, perMillion(c.From), perMillion(c.To), orDash(c.Percent()))
	}
	fmt.Fprint(t, more)
	return t.Flush()
}

// firstOf is at most so many of the changes, 0 all, and a line about the others.
func firstOf[C any](changes []C, most int) (shown []C, more string) {
	if most == 0 || len(changes) <= most {
		return changes, ""
	}
	return changes[:most], fmt.Sprintf("… and %d more\n", len(changes)-most)
}

// printDiffCounts says how many prices are added, removed and changed, and how many rows are
// of one book alone; of GPU instances where anything differs.
func printDiffCounts(w io.Writer, d *pricing.Diff) error {
	counts := map[string]int{}
	for _, c := range d.Changes {
		counts[changeKind(c)]++
	}
	at := d.At.UTC().Format(time.RFC3339)
	_, err := fmt.Fprintf(w, "rates at %s: %d added, %d removed, %d changed; rows with their history: %d only in %s, %d only in %s; names: %d and %d\n",
		at, counts["added"]+counts["new model"], counts["removed"]+counts["model gone"], counts["changed"],
		len(d.Removed), d.From.Version, len(d.Added), d.To.Version, len(d.RemovedAliases), len(d.AddedAliases))
	if err != nil || len(d.RemovedGPUs)+len(d.AddedGPUs) == 0 {
		return err
	}
	clear(counts)
	for _, c := range d.GPUChanges {
		counts[gpuChangeKind(c)]++
	}
	_, err = fmt.Fprintf(w, "GPU prices at %s: %d added, %d removed, %d changed; rows with their history: %d only in %s, %d only in %s\n",
		at, counts["added"], counts["removed"], counts["changed"], len(d.RemovedGPUs), d.From.Version, len(d.AddedGPUs), d.To.Version)
	return err
}

func changeKind(c pricing.RateChange) string {
	switch {
	case c.From == pricing.NoRate && c.WholeModel:
		return "new model"
	case c.From == pricing.NoRate:
		return "added"
	case c.To == pricing.NoRate && c.WholeModel:
		return "model gone"
	case c.To == pricing.NoRate:
		return "removed"
	}
	return "changed"
}

func modelName(k pricing.RateKey) string {
	name := k.Provider + "/" + k.Model
	if k.Region != "" {
		name += "[" + k.Region + "]"
	}
	return name
}

func tierName(k pricing.RateKey) string {
	if k.Above == 0 {
		return k.Service.String()
	}
	return fmt.Sprintf("%s>%d", k.Service, k.Above)
}

func printDisagreements(w io.Writer, names []string, found []pricing.Disagreement, compared int) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(found) > 0 {
		fmt.Fprintf(t, "MODEL\tTIER\tCLASS\t%s\tSPREAD\n", strings.Join(names, "\t"))
	}
	for _, d := range found {
		var rates []string
		for _, r := range d.Rates {
			rates = append(rates, perMillion(r))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", modelName(d.RateKey), tierName(d.RateKey), d.Class, strings.Join(rates, "\t"), orDash(d.Spread()))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d rates are stated by two sources or more, and %d not alike\n", compared, len(found))
	return err
}
