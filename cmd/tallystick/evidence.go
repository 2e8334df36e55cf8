package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/evidence/pgtree"
)

// evidenceMaker is the API's Evidence over Postgres, as postgres.RoleApp.
type evidenceMaker struct{ db *postgres.DB }

var _ api.Evidence = evidenceMaker{}

// Plan plans a package.
func (e evidenceMaker) Plan(ctx context.Context, id tenant.ID, req api.EvidenceRequest) (api.EvidencePackage, error) {
	r := evidence.Request{
		Tenant: string(id), From: req.FromSeq, To: req.ToSeq, Kept: req.Kept, MadeBy: "tallystick " + versionString(), Now: time.Now(),
	}
	if !req.From.IsZero() {
		r.Dates = &evidence.Dates{From: req.From, Before: req.Before, TimeZone: req.TimeZone}
	}
	stores := pgtree.Stores(e.db, id)
	if !req.Audit {
		stores.Audit, stores.AuditTree = nil, nil
	}
	p, err := evidence.New(ctx, stores, r)
	if err != nil {
		return nil, evidenceError(ctx, err)
	}
	return evidencePackage{p}, nil
}

// evidenceError turns what a plan failed by into the API's errors.
func evidenceError(ctx context.Context, err error) error {
	violation := func(field, rule string) error {
		return &api.InvalidError{Violations: []api.Violation{{Field: field, Rule: rule, Message: err.Error()}}}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, evidence.ErrUncovered):
		return violation("to", "uncovered")
	case errors.Is(err, evidence.ErrRange):
		return violation("from", "range")
	case errors.Is(err, evidence.ErrKept):
		return violation("kept", "range")
	case postgres.Permanent(err):
		return err
	default:
		return fmt.Errorf("%w: %w", api.ErrUnavailable, err)
	}
}

type evidencePackage struct{ plan *evidence.Plan }

func (p evidencePackage) Range() (from, to, checkpoint int64) {
	return p.plan.From, p.plan.To, p.plan.Checkpoint.Size
}

func (p evidencePackage) Write(ctx context.Context, w io.Writer) error {
	_, err := p.plan.Write(ctx, w, nil)
	return err
}
