package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const subjectLong = `Persons and confidential tags: look behind a pseudonym, find and erase a
person, and say which tags are sealed.

An entry names a person by a pseudonym; who it is stands sealed beside the
ledger and can be erased there. Each command that shows something sealed needs
a token with the scope decrypt and is audited before it shows anything; each
that changes something needs admin.

IDENTITY is what producers send as "user", to the letter. "-" reads it from
standard input, where no list of processes and no shell history shows it.

Exit codes: 2 usage, 4 authentication, 5 not found or destroyed, 7 unavailable.`

// subjectFlags are the flags of all `subject` commands.
type subjectFlags struct {
	tenantFlags
	reason string
	set    []string
	none   bool
}

// newSubjectCommand is `tallystick subject`.
func newSubjectCommand() *cobra.Command {
	f := &subjectFlags{}
	cmd := &cobra.Command{
		Use: "subject", Short: "Look behind pseudonyms, erase persons, seal tags", Long: subjectLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	show := f.command("show PSEUDONYM", "Show who a pseudonym is", cobra.ExactArgs(1), f.show)
	find := f.command("find IDENTITY", "Compute the pseudonym of a person", cobra.ExactArgs(1), f.find)
	erase := f.command("erase PSEUDONYM", "Erase who a pseudonym is, for good", cobra.ExactArgs(1), f.erase)
	readmit := f.command("readmit PSEUDONYM", "Let the identity of an erased person be kept again", cobra.ExactArgs(1), f.readmit)
	open := f.command("entry SEQ", "Show the sealed tags of an entry", cobra.ExactArgs(1), f.entry)
	tags := f.command("tags", "Show or set which tag keys are confidential", cobra.NoArgs, f.tags)
	for _, c := range []*cobra.Command{erase, readmit} {
		c.Flags().StringVar(&f.reason, "reason", "", "why, for the audit log; no names (required)")
	}
	erase.Flags().BoolVar(&f.yes, "yes", false, "it cannot be undone, and I mean it (required)")
	tags.Flags().StringSliceVar(&f.set, "set", nil, "seal tags with these `KEYS` from now on")
	tags.Flags().BoolVar(&f.none, "none", false, "seal no tags from now on")
	cmd.AddCommand(show, find, erase, readmit, open, tags)
	return cmd
}

func (f *subjectFlags) show(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var s pb.Subject
	q := url.Values{"tenant_id": {f.tenant}}
	if err := api.call(ctx, "/v1/subjects/"+url.PathEscape(args[0])+"?"+q.Encode(), nil, &s); err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &s)
}

func (f *subjectFlags) find(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	identity := args[0]
	if identity == "-" {
		line, err := bufio.NewReader(c.InOrStdin()).ReadString('\n')
		if err != nil && line == "" {
			return usageError("no identity on standard input: %w", err)
		}
		identity = strings.TrimRight(line, "\r\n")
	}
	var s pb.Subject
	if err := api.call(ctx, "/v1/subjects:find", &pb.FindSubjectRequest{TenantId: f.tenant, Identity: identity}, &s); err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &s)
}

func (f *subjectFlags) erase(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	if !f.yes {
		return usageError("erasing cannot be undone: say --yes")
	}
	var s pb.Subject
	err := api.call(ctx, "/v1/subjects/"+url.PathEscape(args[0])+":erase",
		&pb.EraseSubjectRequest{TenantId: f.tenant, Reason: f.reason}, &s)
	if err != nil {
		return err
	}
	if err := f.print(c.OutOrStdout(), &s); err != nil || f.json {
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), `Erased here. Kafka forgets what was sealed within its retention, at the latest 30
days after the person's last event (%s if there is none after this one), and
backups when they are rotated. Entries keep the pseudonym: they still verify.
`, s.ForgottenBy.AsTime().UTC().Format("2006-01-02"))
	return err
}

func (f *subjectFlags) readmit(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var s pb.Subject
	err := api.call(ctx, "/v1/subjects/"+url.PathEscape(args[0])+":readmit",
		&pb.ReadmitSubjectRequest{TenantId: f.tenant, Reason: f.reason}, &s)
	if err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &s)
}

func (f *subjectFlags) entry(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var e pb.OpenedEntry
	err := api.call(ctx, "/v1/ledger/entries/"+url.PathEscape(args[0])+":open", &pb.OpenEntryRequest{TenantId: f.tenant}, &e)
	if err != nil {
		return err
	}
	w := c.OutOrStdout()
	if f.json {
		return printJSONLine(w, &e)
	}
	fmt.Fprintf(w, "entry %d of %s, event %s: %s\n", e.Seq, e.TenantId, e.EventId, countOf(len(e.Tags), "sealed tag"))
	keys := make([]string, 0, len(e.Tags))
	for k := range e.Tags {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(w, "  %s = %s\n", k, e.Tags[k])
	}
	return nil
}

func (f *subjectFlags) tags(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var body proto.Message
	path := "/v1/confidential-tags"
	switch {
	case f.none && len(f.set) > 0:
		return usageError("--set or --none, not both")
	case c.Flags().Changed("set") && strings.Join(f.set, "") == "":
		return usageError("--set names no key; --none seals no tags from now on")
	case f.none, len(f.set) > 0:
		body = &pb.SetConfidentialTagsRequest{TenantId: f.tenant, TagKeys: f.set}
	default:
		path += "?" + url.Values{"tenant_id": {f.tenant}}.Encode()
	}
	var t pb.ConfidentialTags
	if err := api.call(ctx, path, body, &t); err != nil {
		return err
	}
	w := c.OutOrStdout()
	if f.json {
		return printJSONLine(w, &t)
	}
	fmt.Fprintf(w, "confidential tags of %s: %s\n", t.TenantId, orNone(strings.Join(t.TagKeys, ", ")))
	if t.EffectiveAt != nil {
		fmt.Fprintf(w, "every edge seals by it from %s on\n", t.EffectiveAt.AsTime().UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return nil
}

func (f *subjectFlags) print(w io.Writer, s *pb.Subject) error {
	if f.json {
		return printJSONLine(w, s)
	}
	fmt.Fprintf(w, "%s of %s: %s\n", s.Pseudonym, s.TenantId, s.State)
	if s.Identity != nil {
		fmt.Fprintf(w, "  identity    %s\n", *s.Identity)
	}
	if s.FirstSeen != "" {
		fmt.Fprintf(w, "  first seen  %s\n  last seen   %s\n", s.FirstSeen, s.LastSeen)
	}
	if s.ErasedAt != nil {
		fmt.Fprintf(w, "  erased      %s\n", s.ErasedAt.AsTime().UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return nil
}

// countOf says how many there are of something whose plural ends with an s.
func countOf(n int, of string) string {
	if n != 1 {
		of += "s"
	}
	return fmt.Sprintf("%d %s", n, of)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
