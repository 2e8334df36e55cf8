package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const auditLong = `The audit log: who did what, from where, and how it ended, in a chain per tenant
that nobody can quietly change (docs/ledger-format.md, "Audit log").

tail needs a token with the scope audit, export also export; verify recomputes
the chain with code of its own, of a running server or of an exported file.

Exit codes: 2 usage, 3 broken, 4 authentication, 5 nothing there, 6 the file is
there already, 7 unavailable, 8 cannot tell.`

// followInterval is how often `audit tail --follow` looks for new events.
const followInterval = time.Second

// auditFlags are the flags of the audit commands.
type auditFlags struct {
	ledgerFlags
	installation bool
	follow       bool
	json         bool
}

// newAuditCommand is `tallystick audit`.
func newAuditCommand() *cobra.Command {
	f := &auditFlags{}
	cmd := &cobra.Command{
		Use: "audit", Short: "Read, export and verify the audit log", Long: auditLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	tail := f.command("tail", "Print the newest events", func(ctx context.Context, c *cobra.Command) error { return f.tail(ctx, c.OutOrStdout()) })
	export := f.command("export", "Write a log to a file that verifies anywhere", func(ctx context.Context, c *cobra.Command) error { return f.export(ctx, c.ErrOrStderr()) })
	check := f.command("verify", "Recompute a log's chain", func(ctx context.Context, c *cobra.Command) error { return f.verify(ctx, c.OutOrStdout()) })
	tail.Flags().IntVar(&f.limit, "limit", 20, "so many at first")
	tail.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on as events happen")
	tail.Flags().BoolVar(&f.json, "json", false, "one JSON object a line")
	export.Flags().StringVarP(&f.outFile, "output", "o", "", "write to `FILE` (required)")
	export.Flags().BoolVar(&f.yes, "yes", false, "replace a file that is there")
	for _, c := range []*cobra.Command{export, check} {
		c.Flags().Int64Var(&f.from, "from", 0, "first event (0: the first there is)")
		c.Flags().Int64Var(&f.to, "to", 0, "last event (0: the last there is)")
	}
	check.Flags().StringVar(&f.file, "file", "", "check an exported `FILE`, without a server")
	cmd.AddCommand(tail, export, check)
	return cmd
}

func (f *auditFlags) command(use, short string, run func(context.Context, *cobra.Command) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cmd) },
	}
	f.serverFlags(cmd.Flags())
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "the tenant; may be left out when the token is of one")
	cmd.Flags().BoolVar(&f.installation, "installation", false, "the log of what belongs to no tenant")
	return cmd
}

// of names the log in a query.
func (f *auditFlags) of() url.Values {
	if f.installation {
		return url.Values{"installation": {"true"}}
	}
	return url.Values{"tenant_id": {f.tenant}}
}

func (f *auditFlags) tail(ctx context.Context, w io.Writer) error {
	if f.limit < 1 || f.limit > auditPage {
		return usageError("--limit: 1 to %d", auditPage)
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	src := auditAPI{api, f.of()}
	var newest []*pb.AuditEvent
	err = api.auditEvents(ctx, src.query(0, f.limit, true), func(p *pb.ListAuditEventsResponse) (bool, error) {
		newest = p.Events
		return false, nil
	})
	if err != nil {
		return err
	}
	slices.Reverse(newest)
	next := int64(1)
	show := func(events []*pb.AuditEvent) error {
		for _, e := range events {
			if err := f.printEvent(w, e); err != nil {
				return err
			}
			next = e.Seq + 1
		}
		return nil
	}
	if err := show(newest); err != nil || !f.follow {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followInterval):
		}
		err := api.auditEvents(ctx, src.query(next, auditPage, false), func(p *pb.ListAuditEventsResponse) (bool, error) { return true, show(p.Events) })
		if err != nil {
			return err
		}
	}
}

func (f *auditFlags) printEvent(w io.Writer, e *pb.AuditEvent) error {
	if f.json {
		return printJSONLine(w, e)
	}
	var b strings.Builder
	at := "?"
	if e.At != nil {
		at = e.At.AsTime().Format(time.RFC3339)
	}
	fmt.Fprintf(&b, "%d  %s  %-9s %s", e.Seq, at, e.Outcome, e.Action)
	for _, part := range []struct{ name, text string }{
		{"of", e.Resource}, {"by", e.Actor}, {"from", e.Addr}, {"with", e.Client}, {"because", e.Reason},
	} {
		if part.text != "" {
			fmt.Fprintf(&b, "  %s %s", part.name, part.text)
		}
	}
	if e.Count > 1 {
		fmt.Fprintf(&b, "  %d times until %s", e.Count, e.Until.AsTime().Format(time.RFC3339))
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// export writes a file that appears under its name when it is whole and checked.
func (f *auditFlags) export(ctx context.Context, stderr io.Writer) error {
	switch {
	case f.outFile == "":
		return usageError("--output is needed")
	case f.from < 0 || f.to < 0 || f.to > 0 && f.to < f.from:
		return usageError("--from and --to: not a range")
	}
	if _, err := os.Lstat(f.outFile); !errors.Is(err, fs.ErrNotExist) && !f.yes {
		return &exitError{exitConflict, fmt.Errorf("%s is there already; --yes replaces it", f.outFile)}
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	q := f.of()
	q.Set("from_seq", strconv.FormatInt(f.from, 10))
	q.Set("to_seq", strconv.FormatInt(f.to, 10))
	var report verify.Report
	err = createWhole(f.outFile, func(out *os.File) error {
		if err := answered(api.Download(ctx, "/v1/audit:export", q, func(http.Header) io.Writer { return out })); err != nil {
			return err
		}
		if report, err = f.checkFile(ctx, out.Name()); err != nil {
			return err
		}
		if report.Verdict != verify.Intact {
			return &exitError{exitIntegrity, fmt.Errorf("what the server sent is %s at %d: %s", report.Verdict, report.FirstBad, report.Message)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "%s: events %d to %d of %s\n", f.outFile, report.From, report.To, report.Tenant)
	return err
}

func (f *auditFlags) checkFile(ctx context.Context, path string) (verify.Report, error) {
	in, err := os.Open(path)
	if err != nil {
		return verify.Report{}, &exitError{exitNotFound, err}
	}
	defer in.Close()
	report, err := verify.File(ctx, in, verify.Options{Tenant: f.tenant}.OfAudit())
	if errors.Is(err, verify.ErrNotExport) {
		err = &exitError{exitUsage, err}
	}
	return report, err
}

// verify recomputes a chain. MACs are checked by the server's own tools, which
// have the keys; that the log was not cut short is what its checkpoints show.
func (f *auditFlags) verify(ctx context.Context, w io.Writer) (err error) {
	var report verify.Report
	if f.file != "" {
		report, err = f.checkFile(ctx, f.file)
	} else {
		var api *ledgerAPI
		if api, err = f.api(); err != nil {
			return err
		}
		report, err = f.verifyServer(ctx, api)
	}
	if err != nil {
		return err
	}
	switch report.Verdict {
	case verify.Broken:
		return &exitError{exitIntegrity, fmt.Errorf("the audit log of %s is broken at %d: %s: %s", report.Tenant, report.FirstBad, report.Reason, report.Message)}
	case verify.Unknown:
		return &exitError{exitUnknown, fmt.Errorf("the audit log of %s: cannot tell: %s", report.Tenant, report.Message)}
	}
	_, err = fmt.Fprintf(w, "intact: %d events, %d to %d, of %s; the last chain hash is %x\n", report.Entries, report.From, report.To, report.Tenant, report.HeadHash)
	return err
}

// verifyServer checks what the server has. Rows name their tenant, which a token
// of one tenant need not.
func (f *auditFlags) verifyServer(ctx context.Context, api *ledgerAPI) (verify.Report, error) {
	src := auditAPI{api, f.of()}
	var page pb.ListAuditEventsResponse
	if err := api.call(ctx, "/v1/audit?"+src.query(0, 1, true).Encode(), nil, &page); err != nil {
		return verify.Report{}, err
	}
	if len(page.Events) == 0 {
		return verify.Report{}, &exitError{exitNotFound, errors.New("the audit log is empty")}
	}
	return verify.Verify(ctx, src, verify.Options{Tenant: page.Events[0].TenantId, From: f.from, To: f.to}.OfAudit())
}
