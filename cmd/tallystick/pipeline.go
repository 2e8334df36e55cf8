package main

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/processors/plan"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Create makes tenants; it is the API's Tenants.
func (a *app) Create(ctx context.Context, ids []tenant.ID) ([]tenant.ID, error) {
	created, err := a.registrar.CreateTenants(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrUnavailable, err)
	}
	return created, nil
}

// List lists tenants in order of id.
func (a *app) List(_ context.Context, after tenant.ID, limit int) ([]api.TenantInfo, error) {
	ids := a.ring.Tenants()
	slices.Sort(ids)
	i := sort.Search(len(ids), func(i int) bool { return ids[i] > after })
	var out []api.TenantInfo
	for _, id := range ids[i:] {
		if id.IsSystem() {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, api.TenantInfo{ID: id, Partition: id.Partition(a.topic.Partitions)})
	}
	return out, nil
}

// Pipeline says how the hops are; it is the API's Pipeline. Counts of the ledger
// and of ClickHouse are read from there, so they outlive the process; what the
// edge accepted and the rates are of this process.
func (a *app) Pipeline(ctx context.Context) (*pb.Pipeline, error) {
	p := &pb.Pipeline{}
	ends, err := a.admin.EndOffsets(ctx, a.kafkaCfg.Topics().Events)
	if err != nil {
		return nil, fmt.Errorf("%w: kafka: %w", api.ErrUnavailable, err)
	}
	a.addPartitions(p, ends)
	if err := a.addLedger(ctx, p); err != nil {
		return nil, unavailable(err)
	}
	cost, _, unpriced, err := analytics.NewOperator(a.chReader).Cost(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	p.CostUsd, p.Unpriced = cost.String(), unpriced
	if a.edge != nil {
		s := a.edge.Stats()
		p.Accepted, p.Refused = s.Accepted, s.Refused
	}
	a.addRates(p)
	return p, nil
}

// addPartitions tells the place of each partition in each hop.
func (a *app) addPartitions(p *pb.Pipeline, ends []int64) {
	p.Partitions = make([]*pb.Partition, len(ends))
	for i, end := range ends {
		p.Partitions[i] = &pb.Partition{Partition: int32(i), EndOffset: end}
	}
	if a.writer != nil {
		for id, place := range a.writer.Stats().Places() {
			q := p.Partitions[id]
			q.NextOffset, q.Batch, q.PublishedBatch = place.NextOffset, place.Batch, place.PublishedBatch
			p.LedgerLag += max(0, q.EndOffset-q.NextOffset)
			p.PublishLag += place.Unpublished
			if place.Halted != nil {
				p.Halted = append(p.Halted, place.Halted.Error())
			}
		}
	}
	if a.runner != nil {
		for id, place := range a.runner.Stats().Partitions {
			p.Partitions[id].StoredBatch = place.StoredCommit
			if place.Halted != nil {
				p.Halted = append(p.Halted, fmt.Sprintf("processors: partition %d: %v", id, place.Halted))
			}
		}
	}
	p.Halted = append(p.Halted, a.signingFaults()...)
	slices.Sort(p.Halted)
}

// tenantsPerRead bounds the tenants of one transaction's context.
const tenantsPerRead = 1000

// addLedger adds what the ledger holds and what of it is in ClickHouse.
func (a *app) addLedger(ctx context.Context, p *pb.Pipeline) error {
	ids := a.ring.Tenants()
	store := plan.NewStore(a.processorsDB)
	var stored int64
	for chunk := range slices.Chunk(ids, tenantsPerRead) {
		names := make([]string, len(chunk))
		for i, id := range chunk {
			names[i] = string(id)
		}
		t, err := a.store.Totals(ctx, names)
		if err != nil {
			return err
		}
		p.Entries += t.Entries
		p.Duplicates += t.Duplicates
		p.Rejected += t.Conflicts + t.Rejected
		covered, err := store.Covered(ctx, names)
		if err != nil {
			return err
		}
		for i := range covered {
			stored += covered[i].Seq
		}
	}
	p.AnalyticsLag = max(0, p.Entries-stored)
	return nil
}

// rates are the events per second of each hop over the last ten seconds,
// sampled whenever somebody asks.
type rates struct {
	mu      sync.Mutex
	samples []rateSample
}

type rateSample struct {
	at                       time.Time
	ingest, ledger, analytic int64
}

const rateSpan = 10 * time.Second

func (a *app) addRates(p *pb.Pipeline) {
	now := rateSample{at: time.Now(), ingest: p.Accepted, ledger: p.Entries, analytic: p.Entries - p.AnalyticsLag}
	r := &a.rates
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.samples) > 1 && now.at.Sub(r.samples[1].at) >= rateSpan {
		r.samples = r.samples[1:]
	}
	r.samples = append(r.samples, now)
	first := r.samples[0]
	if span := now.at.Sub(first.at).Seconds(); span > 0.1 {
		p.IngestRate = float64(now.ingest-first.ingest) / span
		p.LedgerRate = float64(now.ledger-first.ledger) / span
		p.AnalyticsRate = float64(now.analytic-first.analytic) / span
	}
}
