package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// mappingSweep is how often versions of mapping rules are looked for that were put
// and, because the process died, not said.
const mappingSweep = 10 * time.Minute

// mappingRules are the rules' store, which says each new version to the ledger.
type mappingRules struct {
	*mapping.Store
	a *app
}

func (a *app) mappingRules() mappingRules { return mappingRules{mapping.NewStore(a.appDB, a.ring), a} }

// Put makes a version and says it. When it cannot be said now, the sweep does.
func (m mappingRules) Put(ctx context.Context, by authn.Principal, id tenant.ID, after int64, text []byte) (mapping.Version, error) {
	v, err := m.Store.Put(ctx, by, id, after, text)
	if err != nil {
		return v, err
	}
	if err := m.say(ctx, id); err != nil {
		m.a.log.WarnContext(ctx, "mapping rules will stand in the ledger later", "tenant", id, "err", err)
		return v, nil
	}
	return m.Get(ctx, id, v.Number)
}

// say writes the control records of a tenant's versions that have none.
func (m mappingRules) say(ctx context.Context, id tenant.ID) error {
	return m.Unsaid(ctx, id, func(v mapping.Version) error {
		return m.a.stageLog.ProduceBatch(ctx, []kafka.Record{{
			Topic: m.a.kafkaCfg.Topics().Events, Partition: id.Partition(m.a.topic.Partitions), Key: []byte(id), TimestampMs: v.CreatedAt.UnixMilli(),
			Value: event.AppendControlRecord(nil, &event.Control{
				Kind: event.ControlMappingRules, Tenant: string(id), Version: strconv.FormatInt(v.Number, 10), Content: []byte(v.Content),
				IssuedAt: v.CreatedAt.UnixNano(),
			}),
		}}, nil)
	})
}

// startMapping says what earlier processes have put and not said.
func (a *app) startMapping() {
	m := a.mappingRules()
	a.start("mapping", func(ctx context.Context) error {
		tick := time.NewTicker(mappingSweep)
		defer tick.Stop()
		for {
			for _, id := range a.ring.Tenants() {
				if err := m.say(ctx, id); err != nil && ctx.Err() == nil {
					a.log.WarnContext(ctx, "mapping rules will stand in the ledger later", "tenant", id, "err", err)
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

const mappingLong = `Mapping rules say whom calls are for where their producers do not: which team's
a credential is, whose a service is. They run at the edge, in their order, and each
version of them is in the tenant's ledger; an entry names the version that ran.

FILE is JSON, "-" for standard input:

  {"rules": [
    {"when": {"credential": "tok_4f…"}, "set": {"team": "search"}},
    {"when": {"service": "billing-*", "tag.region": "eu"}, "set": {"end_customer": "umbrella"}, "override": true}
  ]}

A rule fills in what is empty; with "override" it also replaces what is there. It can
look at team, service, feature, agent, end_customer, environment, provider, model,
operation, region, producer_id, credential and tag.KEY, and set the first six.

Exit codes: 2 usage, 4 authentication, 5 not found, 6 somebody else has put other
rules meanwhile, 7 unavailable.`

// mappingFlags are the flags of the mapping commands.
type mappingFlags struct {
	tenantFlags
	version int64
}

// newMappingCommand is `tallystick mapping`.
func newMappingCommand() *cobra.Command {
	f := &mappingFlags{}
	cmd := &cobra.Command{
		Use: "mapping", Short: "Rules that say whom calls are for", Long: mappingLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	show := f.command("show", "Show the rules in force, or an earlier version", cobra.NoArgs, f.show)
	show.Flags().Int64Var(&f.version, "version", 0, "the `VERSION` (default: the newest)")
	put := f.command("put FILE", "Make the rules of a file the next version", cobra.ExactArgs(1), f.put)
	put.Long = mappingLong
	cmd.AddCommand(show, put, newOwnersCommand())
	return cmd
}

func (f *mappingFlags) get(ctx context.Context, api *ledgerAPI, version int64) (*pb.MappingRules, error) {
	var rules pb.MappingRules
	q := url.Values{"tenant_id": {f.tenant}, "version": {strconv.FormatInt(version, 10)}}
	return &rules, api.call(ctx, "/v1/mapping/rules?"+q.Encode(), nil, &rules)
}

func (f *mappingFlags) show(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	rules, err := f.get(ctx, api, f.version)
	if err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), rules)
}

func (f *mappingFlags) put(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	text, err := readRules(args[0], c.InOrStdin())
	if err != nil {
		return err
	}
	list, err := mapping.Parse(text)
	if err != nil {
		return usageError("%v", err)
	}
	before, err := f.get(ctx, api, 0)
	if err != nil {
		return err
	}
	req := &pb.PutMappingRulesRequest{TenantId: f.tenant, AfterVersion: before.Version}
	for _, r := range list {
		req.Rules = append(req.Rules, &pb.MappingRule{When: r.When, Set: r.Set, Override: r.Override})
	}
	var made pb.MappingRules
	if err := api.call(ctx, "/v1/mapping/rules", req, &made); err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &made)
}

func readRules(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, mapping.MaxBytes+1))
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, usageError("%v", err)
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, mapping.MaxBytes+1))
}

// print shows a version.
func (f *mappingFlags) print(w io.Writer, rules *pb.MappingRules) error {
	if f.json {
		return printJSONLine(w, rules)
	}
	if rules.Version == 0 {
		_, err := fmt.Fprintln(w, "no rules")
		return err
	}
	logged := "not yet in the log"
	if rules.LoggedAt != nil {
		logged = "in the log since " + rules.LoggedAt.AsTime().Format(time.RFC3339)
	}
	fmt.Fprintf(w, "version %d by %s, %s, sha256 %s\n", rules.Version, rules.CreatedBy, logged, rules.Hash)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "RULE\tWHEN\tSET\t")
	for i, r := range rules.Rules {
		word := ""
		if r.Override {
			word = "override"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", i+1, pairsText(r.When), pairsText(r.Set), word)
	}
	return t.Flush()
}

// pairsText is a map on one line, each text quoted as JSON does.
func pairsText(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v, err := json.Marshal(m[k])
		if err != nil {
			panic(err) // a string is always JSON
		}
		parts = append(parts, k+"="+string(v))
	}
	if len(parts) == 0 {
		return "any"
	}
	return strings.Join(parts, " ")
}
