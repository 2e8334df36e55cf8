package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/pricing"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// candidateFlags are the flags of the commands about candidates.
type candidateFlags struct {
	ledgerFlags
	note, reason, state, validFrom, from string
	whole, json                          bool
}

func newPricesProposeCommand() *cobra.Command {
	f := &candidateFlags{}
	cmd := &cobra.Command{
		Use:   "propose FILE",
		Short: "Make a candidate of a price list, for somebody to approve",
		Long: `Make a candidate of a price list in any form, or of a book of ` + "`tallystick prices import`" + `:
the next version of the book in force. Its prices hold from --valid-from on (now);
what was in force before stays for usage from before. A price that the list lacks
stays, too. With --whole the list takes the book's place, history and all.

It prints what the candidate would change, at most 20 prices of models and of GPU
instances each. Nothing is priced by a candidate until it is approved.`,
		Example: "  tallystick prices propose list.json --note 'August list'\n  tallystick prices candidates ID\n  tallystick prices approve ID --yes",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return f.propose(cmd, args[0]) },
	}
	f.bind(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.from, "from", "", "form of the list: book, litellm, genai-prices, models.dev, csv or yaml (default: found out)")
	fs.StringVar(&f.validFrom, "valid-from", "", "`TIME` from which the prices hold (default: now)")
	fs.BoolVar(&f.whole, "whole", false, "put the list in the place of the book in force")
	fs.StringVar(&f.note, "note", "", "what it is, for who approves it")
	return cmd
}

func newPricesCandidatesCommand() *cobra.Command {
	f := &candidateFlags{}
	cmd := &cobra.Command{
		Use:   "candidates [ID]",
		Short: "List candidates, or say what one would change",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return f.show(cmd, args[0])
			}
			return f.list(cmd)
		},
	}
	f.bind(cmd)
	cmd.Flags().StringVar(&f.state, "state", "", "only those proposed, approved, rejected or published")
	return cmd
}

func newPricesDecideCommand(approve bool) *cobra.Command {
	f := &candidateFlags{}
	name, short := "reject", "Reject a candidate"
	if approve {
		name, short = "approve", "Approve a candidate: what reaches the ledger from then on is priced by it"
	}
	cmd := &cobra.Command{
		Use: name + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.decide(cmd, args[0], name) },
	}
	f.bind(cmd)
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the audit log")
	if approve {
		cmd.Flags().BoolVar(&f.yes, "yes", false, "I have seen what it changes (required)")
	}
	return cmd
}

func newPricesHistoryCommand() *cobra.Command {
	f := &candidateFlags{}
	cmd := &cobra.Command{
		Use: "history", Short: "List the price books that were in force, and who approved them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.history(cmd) },
	}
	f.bind(cmd)
	return cmd
}

func (f *candidateFlags) bind(cmd *cobra.Command) {
	f.serverFlags(cmd.Flags())
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON, as -o json does")
	outputFlag(cmd, &f.json)
}

func (f *candidateFlags) propose(cmd *cobra.Command, path string) error {
	form, err := pricing.ParseForm(f.from)
	if err != nil {
		return usageError("--from: %w", err)
	}
	book, report, err := readPrices(form, path, pricing.ImportOptions{})
	if err != nil {
		return usageError("%s: %w", path, err)
	}
	req := &pb.ProposePricesRequest{Whole: f.whole, Note: f.note}
	if f.validFrom != "" {
		from, err := parseMoment(f.validFrom, false)
		if err != nil {
			return usageError("--valid-from: %w", err)
		}
		req.ValidFrom = timestamppb.New(from)
	}
	if req.BookGzip, err = packBook(book); err != nil {
		return err
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	var res pb.ProposePricesResponse
	if err := api.call(cmd.Context(), "/v1/prices/candidates", req, &res); err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if f.json {
		return printJSONLine(w, &res)
	}
	if len(report.Refused) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s of the list refused; `tallystick prices import` prints them\n", countOf(len(report.Refused), "price"))
	}
	_, err = fmt.Fprintf(w, "candidate %s, %s: %d added, %d changed, %d unchanged, %d not in the list\n",
		res.Candidate.CandidateId, res.Candidate.Version, res.Added, res.Changed, res.Unchanged, res.Missing)
	if err != nil {
		return err
	}
	return api.printChanges(cmd.Context(), w, res.Candidate, maxProposed)
}

// maxProposed is how many changes of each kind propose prints; `prices candidates ID` prints all.
const maxProposed = 20

func packBook(book *pricing.Book) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(book.Marshal()); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

func (f *candidateFlags) list(cmd *cobra.Command) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var res pb.ListPriceCandidatesResponse
	if err := api.call(cmd.Context(), "/v1/prices/candidates?"+url.Values{"state": {f.state}}.Encode(), nil, &res); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(cmd.OutOrStdout(), &res)
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "CANDIDATE\tSTATE\tVERSION\tPROPOSED\tBY\tDECIDED BY\tNOTE")
	for _, c := range res.Candidates {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.CandidateId, c.State, c.Version, c.ProposedAt.AsTime().Format(time.RFC3339),
			c.ProposedBy, orDash(c.DecidedBy), c.Note)
	}
	return t.Flush()
}

// show compares a candidate with the book that it was made of, here.
func (f *candidateFlags) show(cmd *cobra.Command, id string) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var c pb.PriceCandidate
	if err := api.call(cmd.Context(), "/v1/prices/candidates/"+url.PathEscape(id), nil, &c); err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if f.json {
		return api.printCandidateJSON(cmd.Context(), w, &c)
	}
	fmt.Fprintf(w, "candidate  %s, %s\nversion    %s\nhash       %s\nproposed   %s by %s\n", c.CandidateId, c.State, c.Version, c.Hash,
		c.ProposedAt.AsTime().Format(time.RFC3339), c.ProposedBy)
	if c.Note != "" {
		fmt.Fprintf(w, "note       %s\n", c.Note)
	}
	if c.DecidedBy != "" {
		fmt.Fprintf(w, "decided    %s by %s %s\n", c.DecidedAt.AsTime().Format(time.RFC3339), c.DecidedBy, c.Reason)
	}
	return api.printChanges(cmd.Context(), w, &c, 0)
}

// printChanges prints what a candidate would change of the book that it was made of; see
// printDiff.
func (c *ledgerAPI) printChanges(ctx context.Context, w io.Writer, candidate *pb.PriceCandidate, most int) error {
	if candidate.BaseHash == "" {
		return nil
	}
	d, err := c.changes(ctx, candidate)
	if err != nil {
		return err
	}
	return printDiff(w, &d, most)
}

// printCandidateJSON prints a candidate, and as "changes" what it would change; null where
// there was no book before.
func (c *ledgerAPI) printCandidateJSON(ctx context.Context, w io.Writer, candidate *pb.PriceCandidate) error {
	var line bytes.Buffer
	if err := printJSONLine(&line, candidate); err != nil {
		return err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(line.Bytes(), &fields); err != nil {
		return err
	}
	fields["changes"] = nil
	if candidate.BaseHash != "" {
		d, err := c.changes(ctx, candidate)
		if err != nil {
			return err
		}
		fields["changes"] = diffForJSON(&d)
	}
	return printIndented(w, fields)
}

// changes compares a candidate with the book that it was made of.
func (c *ledgerAPI) changes(ctx context.Context, candidate *pb.PriceCandidate) (pricing.Diff, error) {
	base, err := c.priceBook(ctx, candidate.BaseHash)
	if err != nil {
		return pricing.Diff{}, err
	}
	book, err := c.priceBook(ctx, candidate.Hash)
	if err != nil {
		return pricing.Diff{}, err
	}
	return pricing.Compare(base, book, inForceBy(book, time.Now())), nil
}

// inForceBy is when all prices of a book are in force that are to be: now, or
// where some begin later, then.
func inForceBy(book *pricing.Book, at time.Time) time.Time {
	later := func(from, knownTo time.Time) {
		if knownTo.IsZero() && from.After(at) {
			at = from
		}
	}
	for _, r := range book.Rows() {
		later(r.ValidFrom, r.KnownTo)
	}
	for _, r := range book.GPURows() {
		later(r.ValidFrom, r.KnownTo)
	}
	return at
}

func (f *candidateFlags) decide(cmd *cobra.Command, id, what string) error {
	if what == "approve" && !f.yes {
		return usageError("`tallystick prices candidates %s` says what it changes: look, and say --yes", id)
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	var c pb.PriceCandidate
	path := "/v1/prices/candidates/" + url.PathEscape(id)
	if err := api.call(cmd.Context(), path+":"+what, &pb.DecidePricesRequest{Reason: f.reason}, &c); err != nil {
		return err
	}
	if what == "approve" {
		if err := api.awaitInForce(cmd.Context(), path, &c); err != nil {
			return err
		}
	}
	if f.json {
		return printJSONLine(cmd.OutOrStdout(), &c)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, %s: %s\n", c.CandidateId, c.Version, c.State)
	return err
}

// publishWait is how long approve waits for the writer to publish and to price by it.
const publishWait = 10 * time.Second

// awaitInForce waits for a moment until an approved candidate is published, and until the
// ledger's writer has read that: who looks for the prices in force next finds these. It
// keeps c up to date.
func (c *ledgerAPI) awaitInForce(ctx context.Context, path string, candidate *pb.PriceCandidate) error {
	for wait := time.Now().Add(publishWait); time.Now().Before(wait); {
		if candidate.State == "published" {
			var books pb.ListPriceBooksResponse
			err := c.call(ctx, "/v1/prices/books", nil, &books)
			if err != nil || slices.ContainsFunc(books.Books, func(b *pb.PriceBook) bool { return b.Hash == candidate.Hash }) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(publishAsk):
		}
		if err := c.call(ctx, path, nil, candidate); err != nil {
			return err
		}
	}
	return nil
}

// publishAsk is how often it is asked about.
const publishAsk = 100 * time.Millisecond

func (f *candidateFlags) history(cmd *cobra.Command) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var res pb.ListPriceBooksResponse
	if err := api.call(cmd.Context(), "/v1/prices/books", nil, &res); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(cmd.OutOrStdout(), &res)
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "PUBLISHED\tVERSION\tHASH\tBYTES\tAPPROVED BY\tCANDIDATE")
	for _, b := range res.Books {
		fmt.Fprintf(t, "%s\t%s\t%.12s…\t%d\t%s\t%s\n", b.IssuedAt.AsTime().Format(time.RFC3339), b.Version, b.Hash, b.Bytes,
			orDash(b.ApprovedBy), orDash(b.CandidateId))
	}
	return t.Flush()
}

// priceBook fetches a book by its hash, "" for the one in force, and checks it.
func (c *ledgerAPI) priceBook(ctx context.Context, hash string) (*pricing.Book, error) {
	path := "/v1/prices/book"
	if hash != "" {
		path = "/v1/prices/books/" + url.PathEscape(hash)
	}
	var m pb.PriceBook
	if err := c.call(ctx, path, nil, &m); err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(m.ContentGzip))
	if err != nil {
		return nil, fmt.Errorf("the server's book: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(r, pricing.MaxBookBytes+1))
	if err != nil {
		return nil, fmt.Errorf("the server's book: %w", err)
	}
	book, err := pricing.ParseBook(content)
	if err != nil {
		return nil, fmt.Errorf("the server's book: %w", err)
	}
	if have := book.Hash(); hash != "" && fmt.Sprintf("%x", have) != hash {
		return nil, broken("the server's book has the hash %x, not %s", have, hash)
	}
	return book, nil
}
