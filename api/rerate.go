package api

import (
	"context"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Rerates keeps jobs that price entries anew; the ledger stage works on them.
// Errors: ErrNotFound, ErrUnavailable.
type Rerates interface {
	// Start asks for a job over usage that occurred in [from, to), or gives the
	// one that the tenant has running. row is the audit row of a start, complete
	// but for resource and outcome: without it nothing is started.
	Start(ctx context.Context, row audit.Event, ask RerateAsk) (job *pb.RerateJob, started bool, err error)
	// Job gives a job, or the tenant's newest when id is "".
	Job(ctx context.Context, id tenant.ID, jobID string) (*pb.RerateJob, error)
}

// RerateAsk is what a job is to do.
type RerateAsk struct {
	From, To time.Time
	DryRun   bool
	// Candidate is the id of a price candidate; "" is the book in force.
	Candidate string
	PriceAt   time.Time // zero is each usage's own time
}

// priceService serves tallystick.v1.PriceService.
type priceService struct {
	pb.UnimplementedPriceServiceServer
	s *Server
}

// StartRerate has a tenant's usage of a time range priced anew.
func (s *priceService) StartRerate(ctx context.Context, req *pb.StartRerateRequest) (*pb.StartRerateResponse, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	for name, t := range map[string]*timestamppb.Timestamp{"from": req.From, "to": req.To} {
		if !t.IsValid() || t.AsTime().Year() < 1970 || t.AsTime().Year() > 2261 {
			return nil, invalid(name, "required", "must be a time between 1970 and 2262")
		}
	}
	if !req.From.AsTime().Before(req.To.AsTime()) {
		return nil, invalid("to", "range", "must be after from")
	}
	ask := RerateAsk{From: req.From.AsTime(), To: req.To.AsTime(), DryRun: req.DryRun, Candidate: req.CandidateId}
	if req.PriceAt != nil {
		if !req.PriceAt.IsValid() || req.PriceAt.AsTime().Year() < 1970 || req.PriceAt.AsTime().Year() > 2261 {
			return nil, invalid("price_at", "range", "must be a time between 1970 and 2262")
		}
		ask.PriceAt = req.PriceAt.AsTime()
	}
	if (ask.Candidate != "" || !ask.PriceAt.IsZero()) && !ask.DryRun {
		return nil, invalid("dry_run", "required", "must be true with candidate_id or price_at")
	}
	if ask.Candidate != "" {
		if err := s.simulatable(ctx, ask.Candidate); err != nil {
			return nil, err
		}
	}
	row := s.s.event(ctx, nil)
	row.Tenant, row.Action = id, "prices.rerate"
	job, started, err := s.s.deps.Rerates.Start(ctx, row, ask)
	if err != nil {
		return nil, err
	}
	return &pb.StartRerateResponse{Job: job, Started: started}, nil
}

// GetRerate says how far a job is.
func (s *priceService) GetRerate(ctx context.Context, req *pb.GetRerateRequest) (*pb.RerateJob, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if _, err := uuid.Parse(req.JobId); req.JobId != "" && err != nil {
		return nil, invalid("job_id", "syntax", "must be a UUID")
	}
	return s.s.deps.Rerates.Job(ctx, id, req.JobId)
}

func (s *priceService) enter(ctx context.Context, tenantID string) (tenant.ID, error) {
	if s.s.deps.Rerates == nil {
		return "", errUnimplemented
	}
	return tenantOf(ctx, tenantID)
}

// PostgresRerates is the Rerates over Postgres, as the role postgres.RoleApp.
type PostgresRerates struct {
	db   *postgres.DB
	keys audit.Keys
}

var _ Rerates = (*PostgresRerates)(nil)

// NewPostgresRerates makes one. The caller closes db.
func NewPostgresRerates(db *postgres.DB, keys audit.Keys) *PostgresRerates {
	return &PostgresRerates{db, keys}
}

// Start inserts a job unless one is running.
func (p *PostgresRerates) Start(ctx context.Context, row audit.Event, ask RerateAsk) (job *pb.RerateJob, started bool, err error) {
	err = p.db.InTenantsWrite(ctx, []string{string(row.Tenant)}, func(tx postgres.Tx) error {
		id := uuid.NewString()
		tag, err := tx.Exec(ctx, `
			insert into ledger.rerate (tenant_id, job_id, from_time, to_time, dry_run, asked_by, candidate_id, price_at)
			values ($1, $2, $3, $4, $5, left($6, 200), nullif($7, '')::uuid, $8)
			on conflict (tenant_id) where state = 'running' do nothing`,
			string(row.Tenant), id, ask.From, ask.To, ask.DryRun, row.Actor, ask.Candidate, nullTime(ask.PriceAt))
		if err != nil {
			return err
		}
		if started = tag.RowsAffected() == 1; !started {
			job, err = readRerate(ctx, tx, row.Tenant, "")
			return err
		}
		if job, err = readRerate(ctx, tx, row.Tenant, id); err != nil {
			return err
		}
		row.Resource, row.Outcome = "rerate/"+id, audit.OK
		return audit.Append(ctx, tx, p.keys, row)
	})
	return job, started, classifyStore(ctx, "start a re-rate job", err)
}

// nullTime is nil for no time.
func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Job reads a job.
func (p *PostgresRerates) Job(ctx context.Context, id tenant.ID, jobID string) (job *pb.RerateJob, err error) {
	err = p.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		job, err = readRerate(ctx, tx, id, jobID)
		return err
	})
	return job, classifyStore(ctx, "read a re-rate job", err)
}

// readRerate reads a job of the tenant, or its newest when jobID is "".
func readRerate(ctx context.Context, tx postgres.Tx, id tenant.ID, jobID string) (*pb.RerateJob, error) {
	job := &pb.RerateJob{TenantId: string(id)}
	var from, to, asked time.Time
	var finished, priceAt *time.Time
	err := tx.QueryRow(ctx, `
		select job_id::text, from_time, to_time, dry_run, state, failure, asked_at, finished_at, cursor_seq, last_seq, looked_at, changed,
		  difference::text, coalesce(candidate_id::text, ''), price_at, cost_before::text
		from ledger.rerate where tenant_id = $1 and ($2 = '' or job_id::text = $2) order by asked_at desc limit 1`, string(id), jobID).
		Scan(&job.JobId, &from, &to, &job.DryRun, &job.State, &job.Failure, &asked, &finished, &job.CursorSeq, &job.LastSeq,
			&job.LookedAt, &job.Changed, &job.DifferenceUsd, &job.CandidateId, &priceAt, &job.CostBeforeUsd)
	if err != nil {
		return nil, err
	}
	job.From, job.To, job.AskedAt = timestamppb.New(from), timestamppb.New(to), timestamppb.New(asked)
	if finished != nil {
		job.FinishedAt = timestamppb.New(*finished)
	}
	if priceAt != nil {
		job.PriceAt = timestamppb.New(*priceAt)
	}
	return job, nil
}

// correction is what an entry corrects, nil when it corrects nothing.
func correction(e *chain.Entry) *pb.Correction {
	if e.Kind != chain.Correction {
		return nil
	}
	d := &e.Corrected
	m := &pb.Correction{Seq: d.Seq, EventId: e.Event.Corrects, Reason: e.Event.CorrectionReason, TokenDeltas: make(map[string]int64), GpuUsDelta: d.GPUMicros}
	if d.Priced {
		cost := d.NetCost.String()
		m.NetCostUsd = &cost
	}
	for c, n := range d.Tokens {
		if n != 0 {
			m.TokenDeltas[tokens.Class(c).String()] = n
		}
	}
	return m
}
