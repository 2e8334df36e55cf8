package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/mapping"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const ownersLong = `Default owners are whom reports show untagged usage as, when they are asked to
(tallystick cost --allocate default_owner): one for each of team, service, feature,
agent, end_customer and environment. They change no entry and no total.

"put" makes the next version, with all owners in it, in force from --from on: a
date in UTC or an RFC 3339 time, also in the past; without it from the hour that is
running. Usage goes to who was the owner when it occurred. At any time the newest
version counts of those that are in force from then or before.

Exit codes: 2 usage, 4 authentication, 5 not found, 6 somebody else has put other
owners meanwhile, 7 unavailable.`

// ownersFlags are the flags of the commands of default owners.
type ownersFlags struct {
	tenantFlags
	version int64
	from    string
}

// newOwnersCommand is `tallystick mapping owners`.
func newOwnersCommand() *cobra.Command {
	f := &ownersFlags{}
	cmd := &cobra.Command{
		Use: "owners", Short: "Default owners of untagged usage", Long: ownersLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	show := f.command("show", "Show the newest default owners, or an earlier version", cobra.NoArgs, f.show)
	show.Flags().Int64Var(&f.version, "version", 0, "the `VERSION` (default: the newest)")
	put := f.command("put DIMENSION=OWNER...", "Make these the default owners, and no others", cobra.MinimumNArgs(1), f.put)
	none := f.command("clear", "Have no default owners any more", cobra.NoArgs, f.put)
	for _, c := range []*cobra.Command{put, none} {
		c.Long = ownersLong
		c.Flags().StringVar(&f.from, "from", "", "since when, a date in UTC or a `TIME` (default: the hour that is running)")
	}
	cmd.AddCommand(show, put, none)
	return cmd
}

func (f *ownersFlags) get(ctx context.Context, api *ledgerAPI, version int64) (*pb.DefaultOwners, error) {
	var owners pb.DefaultOwners
	q := url.Values{"tenant_id": {f.tenant}, "version": {strconv.FormatInt(version, 10)}}
	return &owners, api.call(ctx, "/v1/mapping/default-owners?"+q.Encode(), nil, &owners)
}

func (f *ownersFlags) show(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	owners, err := f.get(ctx, api, f.version)
	if err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), owners)
}

func (f *ownersFlags) put(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	req := &pb.PutDefaultOwnersRequest{TenantId: f.tenant, Owners: map[string]string{}}
	if err := f.read(req, args); err != nil {
		return err
	}
	before, err := f.get(ctx, api, 0)
	if err != nil {
		return err
	}
	req.AfterVersion = before.Version
	var made pb.DefaultOwners
	if err := api.call(ctx, "/v1/mapping/default-owners", req, &made); err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &made)
}

// read fills the request from the command line.
func (f *ownersFlags) read(req *pb.PutDefaultOwnersRequest, args []string) error {
	for _, arg := range args {
		name, owner, ok := strings.Cut(arg, "=")
		if !ok {
			return usageError("%q is not DIMENSION=OWNER", arg)
		}
		if _, twice := req.Owners[name]; twice {
			return usageError("%s stands twice", name)
		}
		req.Owners[name] = owner
	}
	if err := mapping.CheckOwners(req.Owners); err != nil {
		return usageError("%v", err)
	}
	if f.from == "" {
		return nil
	}
	from, err := parseMoment(f.from, false)
	if err != nil {
		return usageError("--from: %v", err)
	}
	req.EffectiveFrom = timestamppb.New(from)
	return nil
}

// print shows a version.
func (f *ownersFlags) print(w io.Writer, owners *pb.DefaultOwners) error {
	if f.json {
		return printJSONLine(w, owners)
	}
	if owners.Version == 0 {
		_, err := fmt.Fprintln(w, "no default owners")
		return err
	}
	fmt.Fprintf(w, "version %d by %s, in force from %s\n", owners.Version, owners.CreatedBy, owners.EffectiveFrom.AsTime().Format(time.RFC3339))
	if len(owners.Owners) == 0 {
		_, err := fmt.Fprintln(w, "no default owners")
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(owners.Owners)) {
		if _, err := fmt.Fprintf(w, "%s=%s\n", name, owners.Owners[name]); err != nil {
			return err
		}
	}
	return nil
}
