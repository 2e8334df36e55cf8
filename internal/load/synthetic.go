package load

import (
	"math"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// DefaultZipf spreads a synthetic load over its tenants when nothing else is said.
const DefaultZipf = 1.1

// workload is an application of the synthetic load: how its calls look.
type workload struct {
	profile
	model  model
	weight float64
	// Medians and deviations (of the logarithm) of prompt and completion tokens.
	input, inputSigma   float64
	output, outputSigma float64
	cached              float64 // share of calls that read the prompt cache
	cacheWrite          float64 // share of calls that write it (Anthropic)
	reasoning           float64 // mean share of the completion that is reasoning
	batch               float64 // share of calls in the batch tier
	long                float64 // share of calls with more than 200,000 prompt tokens
	stream              float64 // share of calls that stream
	tokensPerSecond     float64
}

func app(team, service, feature, agent, customer string) profile {
	return profile{team: team, service: service, feature: feature, agent: agent, endCustomer: customer, environment: "production", synthetic: true}
}

// workloads are made up; their shapes follow what providers' published traces
// show: short chats, long retrieval prompts with a cached prefix, reasoning
// that outweighs the visible answer.
var workloads = []workload{
	{app("support", "helpdesk", "answer-draft", "", "cust-014"), gpt4oMini, 22, 900, 0.8, 180, 0.6, 0.35, 0, 0, 0, 0, 0.9, 110},
	{app("support", "voice", "call-summary", "", "cust-027"), haiku, 8, 3200, 0.5, 260, 0.4, 0.1, 0.05, 0, 0, 0, 0.2, 130},
	{app("search", "product-search", "query-rewrite", "", ""), gpt4oMini, 18, 240, 0.4, 30, 0.5, 0.5, 0, 0, 0, 0, 0, 150},
	{app("search", "knowledge-base", "summaries", "", ""), gpt4o, 7, 5200, 0.7, 420, 0.5, 0.45, 0, 0, 0, 0, 0.6, 80},
	{app("platform", "code-review", "review-comments", "reviewer", ""), sonnet, 9, 14000, 0.9, 900, 0.7, 0.7, 0.2, 0.25, 0, 0.01, 0.8, 70},
	{app("platform", "incident-bot", "triage", "triage-bot", ""), gpt5, 4, 6000, 0.8, 1400, 0.8, 0.3, 0, 0.7, 0, 0, 0.5, 90},
	{app("data-science", "notebooks", "ad-hoc", "", ""), reasoner, 8, 1100, 1.0, 2200, 0.8, 0.2, 0, 0.6, 0, 0, 0.9, 40},
	{app("legal", "contracts", "clause-extraction", "", "cust-003"), gemini, 3, 60000, 1.0, 1500, 0.6, 0.4, 0, 0.5, 0, 0.03, 0.1, 100},
	{app("marketing", "campaigns", "copy", "", ""), gpt4o, 4, 700, 0.6, 650, 0.5, 0, 0, 0, 0, 0, 0.9, 80},
	{app("finance", "invoices", "matching", "", ""), gpt4oMini, 5, 1800, 0.4, 120, 0.3, 0, 0, 0, 0.9, 0, 0, 110},
	{app("growth", "onboarding", "guide", "guide-bot", "cust-031"), kimi, 4, 2600, 0.7, 380, 0.6, 0.5, 0, 0, 0, 0, 0.9, 60},
	{app("research", "evaluation", "grading", "", ""), o4Mini, 3, 2400, 0.5, 1100, 0.7, 0.25, 0, 0.8, 0, 0, 0, 110},
	{app("research", "evaluation", "baselines", "", ""), deepseek, 3, 1500, 0.7, 500, 0.6, 0.3, 0, 0, 0, 0, 0, 60},
	{app("", "legacy-gateway", "", "", ""), azureGPT4, 2, 1200, 0.7, 240, 0.6, 0, 0, 0, 0, 0, 0.3, 30},
}

// statusShares are the shares of the statuses other than ok: 3 % in all.
var statusShares = []struct {
	status status
	share  float64
}{
	{statusError, 0.010}, {statusRateLimited, 0.006}, {statusTruncated, 0.007},
	{statusCancelled, 0.004}, {statusBlocked, 0.002}, {statusKilled, 0.001},
}

// users is how many people there seem to be; every third call names one.
const users = 400

// slotWidth is the grain of the synthetic load's season; burstSlots slots burst
// together.
const (
	slotWidth  = time.Minute
	burstSlots = 10
)

// synthetic is a source that makes calls up. Everything about the call at a
// position follows from (seed, position) and the slot it falls into.
type synthetic struct {
	seed   uint64
	assign *assigner
	pick   alias
	mods   []model
	profs  []profile
	model  []int32 // of each workload

	n, total int64 // total < 0: without end
	rate     float64
	base     int64 // live: when the first call happens

	origin  int64 // history: when slot 0 begins
	weights []float64
	sum     float64
	slot    int
	before  float64 // weight of the slots before slot
	inSlot  int64   // calls of the slot, and how many of them were given
	given   int64
	burst   burst
}

// burst is a slot's extra load, which one tenant makes.
type burst struct {
	factor float64 // 1 without
	tenant int32
}

func newSynthetic(o *Options) *synthetic {
	s := &synthetic{seed: o.Seed, assign: newAssigner(o), total: o.Events, rate: o.Rate, base: o.Base.UnixNano()}
	index := map[model]int32{}
	weights := make([]float64, len(workloads))
	for i := range workloads {
		w := &workloads[i]
		if _, ok := index[w.model]; !ok {
			index[w.model] = int32(len(s.mods))
			s.mods = append(s.mods, w.model)
		}
		p := w.profile
		p.client = int32(i)
		p.apiKey = newProfile(int32(i)).apiKey
		s.profs = append(s.profs, p)
		s.model = append(s.model, index[w.model])
		weights[i] = w.weight
	}
	s.pick = newAlias(weights)
	if o.Live {
		if s.total == 0 {
			s.total = -1
		}
		return s
	}
	s.rate = 0
	s.plan(o)
	return s
}

// plan spreads the history over slots.
func (s *synthetic) plan(o *Options) {
	slots := max(int(o.History/slotWidth), 1)
	s.origin = s.base - int64(slots)*int64(slotWidth)
	s.weights = make([]float64, slots)
	for i := range s.weights {
		at := time.Unix(0, s.origin+int64(i)*int64(slotWidth)).UTC()
		s.weights[i] = season(at) * s.burstAt(at.UnixNano()).factor
		s.sum += s.weights[i]
	}
	s.slot = -1
}

// season is the relative load of a time: quiet nights and weekends.
func season(at time.Time) float64 {
	hour := float64(at.Hour()) + float64(at.Minute())/60
	w := 0.25 + 0.75*math.Exp(-math.Pow((hour-14)/4.5, 2))
	if d := at.Weekday(); d == time.Saturday || d == time.Sunday {
		w *= 0.35
	}
	return w
}

// burstAt is the burst at a time: 2 % of ten-minute spans have one.
func (s *synthetic) burstAt(at int64) burst {
	d := newDice(s.seed, streamSlot, at/int64(burstSlots*slotWidth))
	if !d.chance(0.02) {
		return burst{factor: 1, tenant: -1}
	}
	return burst{factor: 2 + 4*d.unit(), tenant: int32(d.below(s.assign.n))}
}

func (s *synthetic) models() []model     { return s.mods }
func (s *synthetic) profiles() []profile { return s.profs }
func (s *synthetic) close()              {}

func (s *synthetic) next(c *call) error {
	if s.total >= 0 && s.n >= s.total {
		return errEnd
	}
	d := newDice(s.seed, streamCall, s.n)
	*c = call{position: s.n, tenant: -1}
	if s.rate > 0 {
		c.at = s.base + int64(float64(s.n)/s.rate*1e9)
		s.burst = s.burstAt(c.at)
	} else {
		c.at = s.historyTime(&d)
	}
	c.at -= c.at % 1000
	s.n++
	s.fill(c, &d)
	return nil
}

// historyTime is when the next call of the history happened. Slots get whole
// calls so that their running total follows the running weight.
func (s *synthetic) historyTime(d *dice) int64 {
	for s.given >= s.inSlot && s.slot < len(s.weights)-1 {
		s.slot++
		already := s.upTo(s.before)
		s.before += s.weights[s.slot]
		s.inSlot, s.given = s.upTo(s.before)-already, 0
		s.burst = s.burstAt(s.origin + int64(s.slot)*int64(slotWidth))
	}
	at := (float64(s.given) + d.unit()) / float64(max(s.inSlot, 1))
	s.given++
	return s.origin + int64(s.slot)*int64(slotWidth) + int64(min(at, 0.999999)*float64(slotWidth))
}

// upTo is how many calls belong before a running weight.
func (s *synthetic) upTo(weight float64) int64 {
	return int64(weight / s.sum * float64(s.total))
}

// fill makes the call up.
func (s *synthetic) fill(c *call, d *dice) {
	if s.burst.factor > 1 && d.unit() < 1-1/s.burst.factor {
		c.tenant = s.burst.tenant
	} else {
		c.tenant = s.assign.tenant(c.position, 0)
	}
	// Each tenant has its own mix of the same applications.
	c.profile = (s.pick.pick(d) + 5*c.tenant) % int32(len(workloads))
	c.client, c.model = c.profile, s.model[c.profile]
	w := &workloads[c.profile]
	c.batch, c.stream = d.chance(w.batch), d.chance(w.stream)
	if d.chance(1.0 / 3) {
		c.user = int32(1 + d.below(users))
	}
	c.status = drawStatus(d)
	s.fillTokens(c, w, d)
	s.fillTimes(c, w, d)
}

func drawStatus(d *dice) status {
	u := d.unit()
	for _, x := range statusShares {
		if u -= x.share; u < 0 {
			return x.status
		}
	}
	return statusOK
}

// fillTokens draws disjoint token counts. Calls that reached no model have none.
func (s *synthetic) fillTokens(c *call, w *workload, d *dice) {
	prompt := min(max(d.lognormal(w.input, w.inputSigma), 1), 190_000)
	if d.chance(w.long) {
		prompt = 200_001 + d.below(600_000)
	}
	completion := min(max(d.lognormal(w.output, w.outputSigma), 1), 64_000)
	switch c.status {
	case statusOK:
	case statusTruncated, statusCancelled:
		completion = completion * d.below(100) / 100
	default:
		return
	}
	v := &c.tokens
	v[tokens.Input] = prompt
	if d.chance(w.cached) && !c.batch { // no published batch price for cached tokens
		v[tokens.CacheRead] = prompt * (30 + d.below(65)) / 100
	} else if d.chance(w.cacheWrite) {
		lifetime := tokens.CacheWrite5m
		if w.model.provider == "anthropic" && d.chance(0.2) {
			lifetime = tokens.CacheWrite1h
		}
		v[lifetime] = prompt * (50 + d.below(45)) / 100
	}
	v[tokens.Input] -= v[tokens.CacheRead] + v[tokens.CacheWrite5m] + v[tokens.CacheWrite1h]
	if w.reasoning > 0 {
		share := min(w.reasoning*(0.5+d.unit()), 0.98)
		v[tokens.Reasoning] = int64(float64(completion) * share)
	}
	v[tokens.Output] = completion - v[tokens.Reasoning]
}

// fillTimes draws latencies in microseconds.
func (s *synthetic) fillTimes(c *call, w *workload, d *dice) {
	if c.tokens.Total() == 0 {
		c.latency = d.lognormal(15_000, 0.5)
		return
	}
	first := d.lognormal(350_000, 0.4) + c.tokens.Prompt()*8
	completion := c.tokens[tokens.Output] + c.tokens[tokens.Reasoning]
	c.latency = first + int64(float64(completion)/w.tokensPerSecond*1e6)
	if c.stream {
		c.ttft = first
	}
}
