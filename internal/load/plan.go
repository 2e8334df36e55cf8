package load

import (
	"slices"

	"github.com/tallystick/tallystick/internal/oracle"
)

// tiers by call.batch.
const (
	tierStandard = iota
	tierBatch
	numTiers
)

var tierNames = [numTiers]string{"", "batch"}

// plan is everything about a load that is fixed before the first event.
type plan struct {
	seed     uint64
	epoch    int64 // producer_epoch
	format   Format
	faults   Faults
	assign   *assigner
	tally    *oracle.Tally
	models   []plannedModel
	profiles []plannedProfile
	unpriced []int32 // positions of the unpriced models
}

// plannedModel is a model with what is needed per event about it.
type plannedModel struct {
	model
	price  [numTiers]*oracle.Model
	number int32  // in the tally
	head   []byte // encoded provider, model, operation
}

// plannedProfile is a profile with its encoding.
type plannedProfile struct {
	profile
	team int32 // in the tally
	tail []byte
	// producer is the position of its producer, below producersPerTenant.
	producer int64
}

// producersPerTenant is how many proxy instances each tenant seems to run.
const producersPerTenant = 2

var producerNames = [producersPerTenant]string{"emit-proxy-a", "emit-proxy-b"}

func newPlan(o *Options, models []model, profiles []profile) *plan {
	p := &plan{
		seed: o.Seed, epoch: o.Base.UnixMilli(), format: o.Format, faults: o.Faults, assign: newAssigner(o),
	}
	p.tally = oracle.NewTally(p.assign.tenants)
	prices := oracle.Published()
	for _, m := range append(slices.Clone(models), noSuch, noProvider) {
		pm := plannedModel{model: m, number: p.tally.Model(m.provider + "/" + m.name)}
		for tier := range pm.price {
			pm.price[tier] = prices.Lookup(m.provider, m.name, tierNames[tier])
		}
		pm.head = encodeHead(o.Format, &m)
		p.models = append(p.models, pm)
	}
	n := int32(len(p.models))
	p.unpriced = []int32{n - 2, n - 1}
	for i := range profiles {
		pp := plannedProfile{profile: profiles[i], team: p.tally.Team(profiles[i].team), producer: int64(i) % producersPerTenant}
		pp.tail = encodeTail(o.Format, &profiles[i])
		p.profiles = append(p.profiles, pp)
	}
	return p
}

// outcome is what must become of a call that is accepted, in its tenant.
func (p *plan) outcome(e *emission) oracle.Outcome {
	m := &p.models[e.model]
	tier := tierStandard
	if e.batch {
		tier = tierBatch
	}
	out := oracle.Outcome{
		Tenant: e.tenant, Model: m.number, Team: p.profiles[e.profile].team,
		Hour: e.at / 3_600_000_000_000, Tokens: e.tokens,
	}
	out.CostPico, out.Priced = m.price[tier].Cost(&e.tokens, 0)
	switch e.status {
	case statusError, statusRateLimited, statusBlocked, statusKilled:
		out.Free = e.tokens.Total() == 0
	}
	return out
}
