package main

import (
	"context"
	"encoding/hex"
	"errors"
	"runtime"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// maxVerifyWorkers bounds how many connections one verification takes.
const maxVerifyWorkers = 4

// ledgerVerifier is the API's Verifier: it checks a tenant's chain in Postgres
// with the MAC keys of the ring.
type ledgerVerifier struct {
	db   *postgres.DB // as postgres.RoleApp
	ring *keyring.Ring
}

var _ api.Verifier = ledgerVerifier{}

// Verify checks the entries from to to.
func (v ledgerVerifier) Verify(ctx context.Context, id tenant.ID, from, to int64) (*pb.VerifyLedgerResponse, error) {
	r, err := verify.Verify(ctx, pgread.New(v.db, id), verify.Options{
		Tenant: string(id), From: from, To: to, Workers: min(runtime.GOMAXPROCS(0), maxVerifyWorkers), Keys: ringKeys(v.ring, id),
	})
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
		Verdict: string(r.Verdict), Entries: r.Entries, FromSeq: r.From, ToSeq: r.To,
		FirstBadSeq: r.FirstBad, Reason: string(r.Reason), Message: r.Message,
	}
	if r.Verdict == verify.Intact {
		m.HeadHash = hex.EncodeToString(r.HeadHash[:])
	}
	return m
}

// ringKeys are a tenant's MAC keys out of a keyring.
func ringKeys(ring *keyring.Ring, id tenant.ID) verify.Keys {
	return func(epoch uint32) ([32]byte, error) { return ring.ExportMACKey(id, epoch) }
}
