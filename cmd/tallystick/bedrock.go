package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/bedrock"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const bedrockLong = `Amazon Bedrock's model invocation logs, read where they lie: in a bucket of the
customer's (by listing, or by its notifications in a queue), in a log group of
CloudWatch Logs, or in a directory. Prompts and answers are only streamed
through: of them survives a digest under a key of the tenant, and nothing else.

A connection in AWS names a role that the customer opens for us; its trust policy
has to ask for the external id that connect prints. The role needs s3:ListBucket
and s3:GetObject, or logs:GetLogEvents, and for a queue sqs:ReceiveMessage and
sqs:DeleteMessage. No credential is stored.

Exit codes: 2 usage, 4 authentication, 5 not found, 6 conflict, 7 unavailable.`

// bedrockFlags are the flags of the bedrock commands.
type bedrockFlags struct {
	tenantFlags
	ask pb.CreateConnectionRequest
}

// newBedrockCommand is `tallystick bedrock`.
func newBedrockCommand() *cobra.Command {
	f := &bedrockFlags{}
	cmd := &cobra.Command{
		Use: "bedrock", Short: "Read Amazon Bedrock's invocation logs", Long: bedrockLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	connect := f.command("connect NAME", "Connect to where logs lie", cobra.ExactArgs(1), f.connect)
	fs := connect.Flags()
	fs.StringVar(&f.ask.Source, "source", "s3", "s3, sqs, cloudwatch or directory")
	fs.StringVar(&f.ask.Bucket, "bucket", "", "the `BUCKET` (s3, sqs)")
	fs.StringVar(&f.ask.Prefix, "prefix", "", "what keys begin with, or the directory's path below the operator's")
	fs.StringVar(&f.ask.QueueUrl, "queue-url", "", "the queue's `URL` (sqs)")
	fs.StringVar(&f.ask.LogGroup, "log-group", "", "the log `GROUP` (cloudwatch)")
	fs.StringVar(&f.ask.Region, "region", "", "the AWS `REGION`")
	fs.StringVar(&f.ask.RoleArn, "role-arn", "", "the `ARN` of the role to assume")
	imports := f.command("import PATH…", "Read log files of this machine, once", cobra.MinimumNArgs(1), f.imports)
	imports.Long = `Send log files, or all below a folder, to the server, which reads them as it does
a bucket's. They may be compressed by gzip or zstd and of any size. To import the
same file under the same path again changes nothing: its records have the same ids.`
	imports.Example = "  tallystick bedrock import --tenant acme ./AWSLogs"
	cmd.AddCommand(connect,
		f.command("list", "List connections, and how far they are", cobra.NoArgs, f.list),
		f.command("pause CONNECTION_ID", "Stop reading", cobra.ExactArgs(1), f.pause(false)),
		f.command("resume CONNECTION_ID", "Go on reading where it stopped", cobra.ExactArgs(1), f.pause(true)),
		f.command("remove CONNECTION_ID", "End a connection for ever", cobra.ExactArgs(1), f.remove),
		f.command("metadata [on|off]", "Show or set whether events say who called, and what for", cobra.MaximumNArgs(1), f.metadata),
		imports)
	return cmd
}

func (f *bedrockFlags) connect(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	f.ask.TenantId, f.ask.Name = f.tenant, args[0]
	var made pb.Connection
	if err := api.call(ctx, "/v1/connections", &f.ask, &made); err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &made)
}

func (f *bedrockFlags) list(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var all []*pb.Connection
	for token := ""; ; {
		var page pb.ListConnectionsResponse
		q := url.Values{"tenant_id": {f.tenant}, "page_size": {"1000"}, "page_token": {token}}
		if err := api.call(ctx, "/v1/connections?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		all = append(all, page.Connections...)
		if token = page.NextPageToken; token == "" {
			return f.print(c.OutOrStdout(), all...)
		}
	}
}

func (f *bedrockFlags) pause(resume bool) apiCall {
	return func(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
		req := &pb.PauseConnectionRequest{TenantId: f.tenant, Resume: resume}
		return api.call(ctx, "/v1/connections/"+url.PathEscape(args[0])+":pause", req, &pb.PauseConnectionResponse{})
	}
}

func (f *bedrockFlags) remove(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	req := &pb.RemoveConnectionRequest{TenantId: f.tenant}
	if err := api.call(ctx, "/v1/connections/"+url.PathEscape(args[0])+":remove", req, &pb.RemoveConnectionResponse{}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "%s is removed; what it brought stays in the ledger\n", args[0])
	return err
}

func (f *bedrockFlags) metadata(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var now pb.BedrockSettings
	var err error
	switch {
	case len(args) == 0:
		err = api.call(ctx, "/v1/bedrock/settings?"+url.Values{"tenant_id": {f.tenant}}.Encode(), nil, &now)
	case args[0] != "on" && args[0] != "off":
		return usageError("on or off")
	default:
		err = api.call(ctx, "/v1/bedrock/settings", &pb.SetBedrockSettingsRequest{TenantId: f.tenant, RequestMetadata: args[0] == "on"}, &now)
	}
	if err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &now)
	}
	word := "off"
	if now.RequestMetadata {
		word = "on"
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), "request metadata:", word)
	return err
}

// print shows connections.
func (f *bedrockFlags) print(w io.Writer, list ...*pb.Connection) error {
	if f.json {
		for _, m := range list {
			if err := printJSONLine(w, m); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "CONNECTION\tNAME\tFROM\tEXTERNAL ID\tRECORDS\tACCEPTED\tMETERED\tLAST READ\tSTATE")
	for _, m := range list {
		from := m.Source + " " + m.Bucket + m.LogGroup
		if m.Prefix != "" {
			from += "/" + m.Prefix
		}
		read, state := "never", "reading"
		if m.SucceededAt != nil {
			read = m.SucceededAt.AsTime().Format(time.RFC3339)
		}
		switch {
		case m.Paused:
			state = "paused"
		case m.Failure != "":
			state = fmt.Sprintf("failed %d times: %s", m.Failures, m.Failure)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", m.ConnectionId, m.Name, from, m.ExternalId, m.Records, m.Accepted, m.Metered, read, state)
	}
	return t.Flush()
}

// logFile is a file to import: where it is, and what it is called there.
type logFile struct {
	path, name string
	size       int64
}

// logFiles lists the files at and below the paths, without hidden ones and
// without the folders data, which hold what records refer to.
func logFiles(paths []string) (list []logFile, total int64, err error) {
	for _, root := range paths {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case p != root && (strings.HasPrefix(d.Name(), ".") || d.IsDir() && d.Name() == "data"):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case !d.Type().IsRegular():
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			name, err := filepath.Rel(filepath.Dir(filepath.Clean(root)), p)
			if err != nil {
				return err
			}
			list = append(list, logFile{p, filepath.ToSlash(name), info.Size()})
			total += info.Size()
			return nil
		})
		if err != nil {
			return nil, 0, usageError("%w", err)
		}
	}
	return list, total, nil
}

// imports sends files, one after the other, and says what became of them.
func (f *bedrockFlags) imports(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	files, total, err := logFiles(args)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return usageError("there is no file at %s", strings.Join(args, ", "))
	}
	bar := newEmitProgress(c.ErrOrStderr(), "import (bytes)", total)
	defer bar.finish()
	var sum bedrock.Report
	damaged := 0
	var sent int64
	for _, file := range files {
		r, err := f.send(ctx, api, file, func(n int64) { bar.update(0, sent+n) })
		if err != nil {
			return err
		}
		sent += file.size
		bar.update(0, sent)
		sum.Add(&r)
		if r.Damaged {
			damaged++
		}
	}
	bar.finish()
	if f.json {
		return json.NewEncoder(c.OutOrStdout()).Encode(sum)
	}
	return printLogImport(c.OutOrStdout(), len(files), damaged, &sum)
}

// send sends one file.
func (f *bedrockFlags) send(ctx context.Context, api *ledgerAPI, file logFile, progress func(int64)) (r bedrock.Report, err error) {
	in, err := os.Open(file.path)
	if err != nil {
		return r, err
	}
	defer in.Close() //nolint:errcheck // only read
	h := http.Header{bedrock.ObjectHeader: {url.PathEscape(file.name)}}
	if f.tenant != "" {
		h.Set(ingest.TenantHeader, f.tenant)
	}
	if err := api.Upload(ctx, bedrock.UploadPath, h, &countedReader{in, 0, progress}, file.size, &r); err != nil {
		return r, fmt.Errorf("%s: %w", file.path, answered(err))
	}
	return r, nil
}

// countedReader tells how much was read.
type countedReader struct {
	r    io.Reader
	n    int64
	tell func(int64)
}

func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}

// printLogImport is the summary of an import.
func printLogImport(w io.Writer, files, damaged int, r *bedrock.Report) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "files\t%d\t\n", files)
	if damaged > 0 {
		fmt.Fprintf(t, "files cut off or damaged\t%d\t\n", damaged)
	}
	fmt.Fprintf(t, "records\t%d\t\n", r.Records)
	for _, status := range slices.Sorted(maps.Keys(r.Statuses)) {
		fmt.Fprintf(t, "  %s\t%d\t\n", status, r.Statuses[status])
	}
	fmt.Fprintf(t, "accepted\t%d\tdurable; those that the ledger has already are dropped there\n", r.Accepted)
	if r.Metered > 0 {
		fmt.Fprintf(t, "metered\t%d\tby the proxy: its entries of these calls stand, and no second ones are made\n", r.Metered)
	}
	if r.Differing > 0 {
		fmt.Fprintf(t, "  differing\t%d\tstate other tokens than the proxy's entries\n", r.Differing)
	}
	for _, reason := range slices.Sorted(maps.Keys(r.Refused)) {
		fmt.Fprintf(t, "refused, %s\t%d\t\n", reason, r.Refused[reason])
	}
	if r.Malformed > 0 {
		fmt.Fprintf(t, "no records\t%d\tlines that are no log record\n", r.Malformed)
	}
	if r.Estimated > 0 {
		fmt.Fprintf(t, "estimated\t%d\twithout usage: counted from the size of the text\n", r.Estimated)
	}
	for _, class := range slices.Sorted(maps.Keys(r.Tokens)) {
		fmt.Fprintf(t, "tokens, %s\t%d\t\n", class, r.Tokens[class])
	}
	return t.Flush()
}
