package report

import (
	"cmp"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/money"
)

// Method is how untagged usage is allocated: usage that carries no value of a
// dimension that a report groups by. Without a method it stays a group of its own,
// whose value is "".
type Method string

// The methods of allocation. None changes an entry or the totals of a report.
const (
	NoAllocation Method = ""
	// DefaultOwner shows untagged usage as that of the dimension's default owner
	// at the time of the usage.
	DefaultOwner Method = "default_owner"
	// Proportional divides what untagged usage cost among the tagged groups, as
	// they cost themselves; see [Groups.Divide].
	Proportional Method = "proportional"

	methodNames = "default_owner, proportional"
)

// MaxDivided is the most groups that [Proportional] divides among, and MaxPeriods
// the most times within a window that owners may change.
const (
	MaxDivided = 100_000
	MaxPeriods = 100
)

// allocatable are the dimensions that untagged usage is allocated in: those that
// say whom a call is for. A person is not among them, because nobody is given what
// somebody else may have used.
var allocatable = []string{"team", "service", "feature", "agent", "end_customer", "environment"}

// Allocatable are the dimensions that untagged usage can be allocated in.
func Allocatable() []string { return slices.Clone(allocatable) }

// OwnerPeriod says who owns the untagged usage that occurs from Start on, until
// the period after it starts.
type OwnerPeriod struct {
	Start   time.Time
	Version int64             // of the default owners
	Owners  map[string]string // by dimension; one that is missing has no owner
}

// Allocation is how a report allocates untagged usage.
type Allocation struct {
	Method  Method
	Periods []OwnerPeriod // of DefaultOwner, in order of Start
}

// Within are the periods that touch a span, the first one cut to it, without the
// owners of dimensions that are not grouped by. The error is a *FieldError.
func (a *Allocation) Within(s Span, groupBy []string) ([]OwnerPeriod, error) {
	var periods []OwnerPeriod
	for _, p := range a.Periods {
		if !p.Start.Before(s.End) {
			break
		}
		owners := map[string]string{}
		for _, d := range groupBy {
			if owner := p.Owners[d]; owner != "" {
				owners[d] = owner
			}
		}
		p.Owners = owners
		if !p.Start.After(s.Start) {
			p.Start, periods = s.Start, periods[:0]
		}
		periods = append(periods, p)
	}
	if len(periods) > MaxPeriods {
		return nil, fail("window", "default owners changed more than %d times in it; choose a shorter one", MaxPeriods)
	}
	return periods, nil
}

// Split are the two parts of a group's totals when untagged usage is allocated.
type Split struct {
	Direct    Totals // of what carries the group's values
	Allocated Totals // of the untagged usage that is shown as the group's
}

// Allocated says what was allocated. It is nil in answers to requests that do not
// ask for it.
type Allocated struct {
	Method  Method
	Totals  Totals        // the groups' Split.Allocated add up to it
	Periods []OwnerPeriod // of DefaultOwner: who owned what within the window
}

// checkAllocation refuses what a report cannot allocate.
func checkAllocation(m Method, groupBy []string) error {
	if m == NoAllocation {
		return nil
	}
	if m != DefaultOwner && m != Proportional {
		return fail("allocate", "one of %s", methodNames)
	}
	if !slices.ContainsFunc(groupBy, func(d string) bool { return slices.Contains(allocatable, d) }) {
		return fail("allocate", "group_by must have one of %s: untagged usage is allocated in no other dimension", strings.Join(allocatable, ", "))
	}
	if m == Proportional && len(groupBy) != 1 {
		return fail("group_by", "exactly one dimension when allocate is %s", Proportional)
	}
	return nil
}

// Divide divides the cost, tokens and GPU time of the untagged group among all
// others and keeps the top ones, as without allocation. It expects all groups of
// one dimension.
//
// A group's weight w is its own cost, or 0 where that is negative; W is the sum of
// the weights. Of an amount A, in units of 1e-12 USD, tokens or microseconds, each
// group gets the whole part of A·w/W, and what is left of A, always less than one
// unit per group, goes in single units to the groups with the largest remainders,
// of equal ones to those whose value sorts first: so the parts add up to A, and
// depend neither on the order of groups nor on top. A negative A, from corrections,
// is divided as its magnitude is.
//
// Requests and other counts of entries are not divided, because an entry is whole:
// they stay with the untagged group. Where W is 0 there is nothing to be
// proportional to, and all stays there.
//
// The error is money.ErrOverflow.
func (g *Groups) Divide(top int) error {
	tagged := make([]int, 0, len(g.Groups))
	untagged := -1
	for i := range g.Groups {
		g.Groups[i].Split = &Split{Direct: g.Groups[i].Totals}
		if g.Groups[i].Values[0] == "" {
			untagged = i
			continue
		}
		tagged = append(tagged, i)
	}
	g.Allocation = &Allocated{Method: Proportional}
	if untagged >= 0 {
		slices.SortFunc(tagged, func(a, b int) int { return slices.Compare(g.Groups[a].Values, g.Groups[b].Values) })
		if err := g.divide(&g.Groups[untagged], tagged); err != nil {
			return err
		}
	}
	return g.rank(top)
}

// divide gives the tagged groups, in order of value, what the untagged one has.
func (g *Groups) divide(untagged *Group, tagged []int) error {
	weights, sum := make([]*big.Int, len(tagged)), new(big.Int)
	for i, at := range tagged {
		weights[i] = g.Groups[at].Totals.Cost.Big()
		if weights[i].Sign() < 0 {
			weights[i].SetInt64(0)
		}
		sum.Add(sum, weights[i])
	}
	if sum.Sign() == 0 {
		return nil
	}
	given := &g.Allocation.Totals
	given.Cost, given.GPUMicros, given.Tokens = untagged.Totals.Cost, untagged.Totals.GPUMicros, untagged.Totals.Tokens
	costs := largestRemainder(given.Cost.Big(), weights, sum)
	gpu := largestRemainder(big.NewInt(given.GPUMicros), weights, sum)
	for c := range given.Tokens {
		for i, part := range largestRemainder(big.NewInt(given.Tokens[c]), weights, sum) {
			g.Groups[tagged[i]].Split.Allocated.Tokens[c] = part.Int64()
		}
	}
	for i, at := range tagged {
		group := &g.Groups[at]
		cost, err := money.SumFromBig(costs[i])
		if err != nil {
			return err
		}
		group.Split.Allocated.Cost, group.Split.Allocated.GPUMicros = cost, gpu[i].Int64()
		if err := group.Totals.Add(&group.Split.Allocated); err != nil {
			return err
		}
	}
	left := untagged.Totals
	left.Cost, left.GPUMicros, left.Tokens = money.Sum{}, 0, Totals{}.Tokens
	untagged.Totals, untagged.Split.Direct = left, left
	return nil
}

// largestRemainder divides an amount by weights, whose sum is positive, into parts
// that add up to it.
func largestRemainder(amount *big.Int, weights []*big.Int, sum *big.Int) []*big.Int {
	parts, rests, order := make([]*big.Int, len(weights)), make([]*big.Int, len(weights)), make([]int, len(weights))
	magnitude := new(big.Int).Abs(amount)
	left := new(big.Int).Set(magnitude)
	for i, w := range weights {
		parts[i], rests[i] = new(big.Int).QuoRem(new(big.Int).Mul(magnitude, w), sum, new(big.Int))
		left.Sub(left, parts[i])
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return rests[b].Cmp(rests[a]) })
	one := big.NewInt(1)
	for _, i := range order[:left.Int64()] { // the remainders are less than one unit each
		parts[i].Add(parts[i], one)
	}
	if amount.Sign() < 0 {
		for _, p := range parts {
			p.Neg(p)
		}
	}
	return parts
}

// rank puts the groups in order of cost and those beyond top into one.
func (g *Groups) rank(top int) error {
	slices.SortFunc(g.Groups, func(a, b Group) int {
		return cmp.Or(b.Totals.Cost.Cmp(a.Totals.Cost), slices.Compare(a.Values, b.Values))
	})
	if len(g.Groups) <= top {
		return nil
	}
	other := Group{Other: true, Split: &Split{}}
	for _, group := range g.Groups[top:] {
		if err := other.add(&group); err != nil {
			return err
		}
	}
	g.Groups = append(g.Groups[:top:top], other)
	return nil
}

// add adds another group's totals.
func (g *Group) add(o *Group) error {
	if err := g.Totals.Add(&o.Totals); err != nil {
		return err
	}
	if err := g.Split.Direct.Add(&o.Split.Direct); err != nil {
		return err
	}
	return g.Split.Allocated.Add(&o.Split.Allocated)
}

// AddPart adds totals to the group, as allocated or as its own.
func (g *Group) AddPart(t *Totals, allocated bool) error {
	if g.Split == nil {
		g.Split = &Split{}
	}
	part := &g.Split.Direct
	if allocated {
		part = &g.Split.Allocated
	}
	if err := part.Add(t); err != nil {
		return err
	}
	return g.Totals.Add(t)
}
