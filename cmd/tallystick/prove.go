package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// What is proved here is checked here: with the standard implementations of
// notes and trees (golang.org/x/mod/sumdb), which the server does not use.

// proveFlags are those of `ledger prove` and `ledger checkpoint`.
type proveFlags struct {
	*ledgerFlags
	log   string
	size  int64
	vkey  string
	since string
	list  bool
	keys  bool
}

func (f *proveFlags) bind(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.tenant, "tenant", "", "the tenant; may be left out when the token is of one")
	fs.StringVar(&f.log, "log", "ledger", "ledger or audit")
	fs.Int64Var(&f.size, "size", 0, "checkpoint of this size (0: the newest)")
	fs.StringVar(&f.vkey, "key", "", "public `VKEY` of the log, or of any of its earlier keys (default: what the server states, which proves nothing about the server)")
}

// newProveCommand is `tallystick ledger prove`.
func newProveCommand(lf *ledgerFlags) *cobra.Command {
	f := &proveFlags{ledgerFlags: lf}
	cmd := &cobra.Command{
		Use: "prove SEQ", Short: "Prove that an entry is under a signed checkpoint",
		Long: `Fetch an entry, a signed checkpoint and the inclusion proof between them, and check
all three on this machine: the entry's bytes give the leaf, the leaf and the proof
the root, and the root is signed. Exit code 3 when any of it does not fit.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || seq < 1 {
				return usageError("SEQ: a number of 1 or more, got %q", args[0])
			}
			return f.prove(cmd.Context(), cmd.OutOrStdout(), seq)
		},
	}
	f.bind(cmd)
	return cmd
}

// newCheckpointCommand is `tallystick ledger checkpoint`.
func newCheckpointCommand(lf *ledgerFlags) *cobra.Command {
	f := &proveFlags{ledgerFlags: lf}
	cmd := &cobra.Command{
		Use: "checkpoint", Short: "Print a signed checkpoint, and check it",
		Long: `Print a signed checkpoint after its signature was checked on this machine. With
--since, a checkpoint that you kept, also prove that the ledger of today continues
the one of then. Keep what is printed: it is what nobody can talk you out of later.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.list:
				return f.listCheckpoints(cmd.Context(), cmd.OutOrStdout())
			case f.keys:
				return f.listKeys(cmd.Context(), cmd.OutOrStdout())
			}
			return f.checkpoint(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.bind(cmd)
	cmd.Flags().StringVar(&f.since, "since", "", "prove consistency with the checkpoint in `FILE`")
	cmd.Flags().BoolVar(&f.keys, "keys", false, "print the log's public keys, the first one first: what a witness and an auditor are given")
	cmd.Flags().BoolVar(&f.list, "list", false, "list all checkpoints")
	return cmd
}

// query is the query string of a request about the log.
func (f *proveFlags) query(more url.Values) string {
	q := url.Values{"log": {f.log}}
	if f.tenant == "system/0" {
		q.Set("installation", "true")
	} else if f.tenant != "" {
		q.Set("tenant_id", f.tenant)
	}
	for k, v := range more {
		q[k] = v
	}
	return "?" + q.Encode()
}

func broken(format string, args ...any) error {
	return &exitError{exitIntegrity, fmt.Errorf(format, args...)}
}

// tree is what a checked checkpoint says.
type tree struct {
	size int64
	root tlog.Hash
	text string
}

// checked opens a signed note with the keys of the log and reads it.
func (f *proveFlags) checked(ctx context.Context, api *ledgerAPI, signed string) (t tree, keys string, err error) {
	verifiers, keys, err := f.verifiers(ctx, api)
	if err != nil {
		return t, "", err
	}
	n, err := note.Open([]byte(signed), note.VerifierList(verifiers...))
	if err != nil {
		return t, "", broken("the checkpoint is not signed by the log's key: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[0] != verifiers[0].Name() {
		return t, "", broken("the checkpoint is not one of %s", verifiers[0].Name())
	}
	t.text = n.Text
	if t.size, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return t, "", broken("the checkpoint has no size")
	}
	if t.root, err = tlog.ParseHash(lines[2]); err != nil {
		return t, "", broken("the checkpoint has no root")
	}
	return t, keys, nil
}

// verifiers follows the stated keys from the one that is trusted.
func (f *proveFlags) verifiers(ctx context.Context, api *ledgerAPI) (list []note.Verifier, what string, err error) {
	var m pb.ListSigningKeysResponse
	if err := api.call(ctx, "/v1/ledger/keys"+f.query(nil), nil, &m); err != nil {
		return nil, "", err
	}
	trusted, what := f.vkey, "the key that you gave"
	if trusted == "" {
		if len(m.Keys) == 0 {
			return nil, "", &exitError{exitUnknown, errors.New("the server states no key; give --key")}
		}
		trusted, what = m.Keys[0].Vkey, "the key that the server states"
	}
	v, err := note.NewVerifier(trusted)
	if err != nil {
		return nil, "", usageError("--key: %w", err)
	}
	list = append(list, v)
	for _, k := range m.Keys {
		last := list[len(list)-1]
		n, err := note.Open([]byte(k.Statement), note.VerifierList(last))
		if err != nil {
			continue // not signed by the key we hold: nothing leads there
		}
		lines := strings.Split(n.Text, "\n")
		if len(lines) != 5 || lines[0] != "tallystick signing key 1" || lines[1] != v.Name() {
			return nil, "", broken("the statement of key epoch %d is not one", k.Epoch)
		}
		next, err := note.NewVerifier(lines[3])
		if err != nil || next.Name() != v.Name() {
			return nil, "", broken("the statement of key epoch %d names no key of the log", k.Epoch)
		}
		if next.KeyHash() != last.KeyHash() {
			list = append(list, next)
		}
	}
	return list, what, nil
}

func (f *proveFlags) prove(ctx context.Context, w io.Writer, seq int64) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var p pb.InclusionProof
	if err := api.call(ctx, fmt.Sprintf("/v1/ledger/entries/%d/proof", seq)+f.query(url.Values{"size": {strconv.FormatInt(f.size, 10)}}), nil, &p); err != nil {
		return err
	}
	if p.Checkpoint == nil {
		return &exitError{exitNotFound, fmt.Errorf("no checkpoint of size %d was signed; leave --size out for the newest", p.Size)}
	}
	t, keys, err := f.checked(ctx, api, p.Checkpoint.Note)
	if err != nil {
		return err
	}
	leaf, what, err := f.leaf(ctx, api, seq, p.LeafHash)
	if err != nil {
		return err
	}
	hashes, err := parseHashes(p.Hashes)
	if err != nil {
		return err
	}
	if err := tlog.CheckRecord(hashes, t.size, t.root, seq-1, leaf); err != nil {
		return broken("entry %d is not proved to be under the checkpoint: %w", seq, err)
	}
	fmt.Fprintf(w, "entry %d is in the tree of %d that is signed (%d hashes, %s; %s)\n\n%s", seq, t.size, len(hashes), what, keys, p.Checkpoint.Note)
	return nil
}

// leaf is the leaf hash of the entry's own bytes; of an audit event, that which
// the server gives.
func (f *proveFlags) leaf(ctx context.Context, api *ledgerAPI, seq int64, claimed string) (leaf tlog.Hash, what string, err error) {
	if f.log == "audit" || f.tenant == "system/0" {
		list, err := parseHashes([]string{claimed})
		if err != nil {
			return leaf, "", err
		}
		return list[0], "leaf hash as the server gives it", nil
	}
	var e pb.Entry
	if err := api.call(ctx, fmt.Sprintf("/v1/ledger/entries/%d", seq)+"?"+url.Values{"tenant_id": {f.tenant}}.Encode(), nil, &e); err != nil {
		return leaf, "", err
	}
	leaf = tlog.RecordHash(e.Canonical)
	if hex.EncodeToString(leaf[:]) != claimed {
		return leaf, "", broken("entry %d: its bytes have the leaf hash %x, the proof is of %s", seq, leaf[:], claimed)
	}
	return leaf, fmt.Sprintf("%d bytes of entry hashed here", len(e.Canonical)), nil
}

func parseHashes(list []string) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(list))
	for i, s := range list {
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != tlog.HashSize {
			return nil, broken("a hash of the proof is none: %.80q", s)
		}
		hashes[i] = tlog.Hash(b)
	}
	return hashes, nil
}

func (f *proveFlags) checkpoint(ctx context.Context, w, stderr io.Writer) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var cp pb.Checkpoint
	if err := api.call(ctx, "/v1/ledger/checkpoint"+f.query(url.Values{"size": {strconv.FormatInt(f.size, 10)}}), nil, &cp); err != nil {
		return err
	}
	t, keys, err := f.checked(ctx, api, cp.Note)
	if err != nil {
		return err
	}
	said := fmt.Sprintf("signature checked with %s; %d cosignatures of witnesses, not checked here", keys, len(cp.Cosignatures))
	if f.since != "" {
		older, err := f.consistent(ctx, api, t)
		if err != nil {
			return err
		}
		said += fmt.Sprintf("; it continues the checkpoint of size %d in %s", older.size, f.since)
	}
	fmt.Fprintln(stderr, said)
	fmt.Fprint(w, cp.Note+strings.Join(cp.Cosignatures, ""))
	return nil
}

// consistent proves that the newer tree continues the one in the file.
func (f *proveFlags) consistent(ctx context.Context, api *ledgerAPI, newer tree) (older tree, err error) {
	b, err := os.ReadFile(f.since)
	if err != nil {
		return older, usageError("--since: %w", err)
	}
	if _, err := verify.OpenCheckpoint(b, nil, nil); errors.Is(err, verify.ErrNotCheckpoint) {
		return older, usageError("--since %s: %w", f.since, err)
	}
	if older, _, err = f.checked(ctx, api, string(b)); err != nil {
		return older, fmt.Errorf("--since %s: %w", f.since, err)
	}
	if older.size > newer.size {
		return older, broken("the checkpoint in %s has size %d, the newest %d: entries are gone", f.since, older.size, newer.size)
	}
	var p pb.ConsistencyProof
	q := url.Values{"from": {strconv.FormatInt(older.size, 10)}, "to": {strconv.FormatInt(newer.size, 10)}}
	if err := api.call(ctx, "/v1/ledger/consistency"+f.query(q), nil, &p); err != nil {
		return older, err
	}
	hashes, err := parseHashes(p.Hashes)
	if err != nil {
		return older, err
	}
	if err := tlog.CheckTree(hashes, newer.size, newer.root, older.size, older.root); err != nil {
		return older, broken("the tree of %d does not continue the one of %d: %w", newer.size, older.size, err)
	}
	return older, nil
}

func (f *proveFlags) listKeys(ctx context.Context, w io.Writer) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	verifiers, _, err := f.verifiers(ctx, api)
	if err != nil {
		return err
	}
	var m pb.ListSigningKeysResponse
	if err := api.call(ctx, "/v1/ledger/keys"+f.query(nil), nil, &m); err != nil {
		return err
	}
	if len(verifiers) != len(m.Keys) {
		return broken("the statements of %d keys lead to %d of them", len(m.Keys), len(verifiers))
	}
	for _, k := range m.Keys {
		fmt.Fprintln(w, k.Vkey)
	}
	return nil
}

func (f *proveFlags) listCheckpoints(ctx context.Context, w io.Writer) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "SIZE\tSIGNED AT\tROOT\tCOSIGNATURES")
	for token := ""; ; {
		var page pb.ListCheckpointsResponse
		if err := api.call(ctx, "/v1/ledger/checkpoints"+f.query(url.Values{"page_size": {"1000"}, "page_token": {token}}), nil, &page); err != nil {
			return err
		}
		for _, c := range page.Checkpoints {
			fmt.Fprintf(t, "%d\t%s\t%s\t%d\n", c.Size, c.SignedAt.AsTime().Format(time.RFC3339), c.RootHash, len(c.Cosignatures))
		}
		if token = page.NextPageToken; token == "" {
			return t.Flush()
		}
	}
}
