package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/evidence/pgtree"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// maxVerifyWorkers bounds how many connections one verification takes.
const maxVerifyWorkers = 4

// ledgerVerifier is the API's Verifier: it checks a tenant's chain in Postgres
// with the MAC keys of the ring, and its tree against the checkpoints that were
// published.
type ledgerVerifier struct {
	db    *postgres.DB // as postgres.RoleApp
	ring  *keyring.Ring
	notes *publishedNotes // nil: no checkpoints are looked at
}

var _ api.Verifier = ledgerVerifier{}

// options are those of every verification out of Postgres.
func (v ledgerVerifier) options(ctx context.Context, id tenant.ID) (verify.Options, error) {
	o := verify.Options{Tenant: string(id), Keys: ringKeys(v.ring, id), Tree: true}
	if v.notes == nil {
		return o, nil
	}
	var err error
	if o.Published, err = v.notes.of(ctx, id); err != nil {
		return o, fmt.Errorf("the published checkpoints: %w", err)
	}
	o.Stored = pgtree.New(v.db, checkpoint.LedgerLog, id).Node
	return o, nil
}

// Verify checks the entries that the request names.
func (v ledgerVerifier) Verify(ctx context.Context, id tenant.ID, req *pb.VerifyLedgerRequest) (*pb.VerifyLedgerResponse, error) {
	o, err := v.options(ctx, id)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil { // evidence that cannot be had is a verdict
		return &pb.VerifyLedgerResponse{Verdict: string(verify.Unknown), FromSeq: req.FromSeq, ToSeq: req.ToSeq, Message: err.Error()}, nil
	}
	o.From, o.To, o.Workers = req.FromSeq, req.ToSeq, min(runtime.GOMAXPROCS(0), maxVerifyWorkers)
	if len(req.Tree) > 0 {
		if o.LeftEdge, err = verify.ParseTree(req.Tree); err != nil {
			return nil, &api.InvalidError{Violations: []api.Violation{{Field: "tree", Rule: "syntax", Message: "must be hashes in hexadecimal"}}}
		}
	}
	r, err := verify.Verify(ctx, pgread.New(v.db, id), o)
	if errors.Is(err, verify.ErrRange) {
		return nil, &api.InvalidError{Violations: []api.Violation{{Field: "from_seq", Rule: "range", Message: "lies beyond the end of the ledger"}}}
	}
	if err != nil {
		return nil, err
	}
	return reportMessage(&r), nil
}

func reportMessage(r *verify.Report) *pb.VerifyLedgerResponse {
	m := &pb.VerifyLedgerResponse{
		Verdict: string(r.Verdict), Entries: r.Entries, FromSeq: r.From, ToSeq: r.To, CheckpointSize: r.Covered,
		FirstBadSeq: r.FirstBad, Reason: string(r.Reason), Detector: string(r.Detector), Message: r.Message,
	}
	if r.Verdict == verify.Intact {
		m.HeadHash = hex.EncodeToString(r.HeadHash[:])
		for _, h := range r.Tree {
			m.Tree = append(m.Tree, hex.EncodeToString(h[:]))
		}
	}
	return m
}

// ringKeys are a tenant's MAC keys out of a keyring.
func ringKeys(ring *keyring.Ring, id tenant.ID) verify.Keys {
	return func(epoch uint32) ([32]byte, error) { return ring.ExportMACKey(id, epoch) }
}
