// Package rollup sums usage and money per hour and per value of each dimension.
//
// It is a processor: what it emits for a plan is what the plan's entries add to
// each hour, and the same entries give the same rows in the same order. Beside
// that it keeps the sums of the newest hours, for processors that compare hours
// and for reading. It promises that what it keeps depends only on the entries,
// not on how they were batched, and that its memory is bounded. It never reads
// a clock: the newest hour is the newest that an entry occurred in.
package rollup

import (
	"cmp"
	"math"
	"slices"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// The dimensions. Values are stored in snapshots and never reused.
const (
	Total uint8 = iota // all entries of the tenant
	Team
	Model
	Provider
	Service
	Environment
	Status
	numDimensions
)

var dimensionNames = [numDimensions]string{"", "team", "model", "provider", "service", "environment", "status"}

// Bounds of what is kept.
const (
	// KeepHours is how many hours behind the newest are kept.
	KeepHours = 72
	// MaxCells bounds the sums that are kept of one partition: whole hours are
	// forgotten, oldest first, to stay below. 65,536 take about 14 MiB.
	MaxCells = 1 << 16
)

const nanosPerHour = 3600 * 1_000_000_000

// Sums are what the entries of one hour and one dimension value add up to.
type Sums struct {
	Requests, Failed, Unpriced, Estimated, Corrections int64
	Cost                                               money.Sum
	Tokens                                             tokens.Vector
	GPUMicros                                          int64
}

// key names a cell. The tenant and the value are symbols.
type key struct {
	hour          int32 // hours since 1970, UTC
	tenant, value uint32
	dimension     uint8
}

// combination is what the entries of one hour that agree in every dimension
// add up to: entries are summed once here, and spread over the dimensions once
// a plan.
type combination struct {
	hour    int32
	symbols [numDimensions]uint32 // the tenant in the place of Total
	sums    Sums
}

// Rollup is the processor of one partition. It is not safe for concurrent use.
type Rollup struct {
	combos   map[string]uint32
	list     []combination
	scratch  []byte
	symbols  symbols
	delta    table
	kept     table
	newest   int32 // newest hour of any entry
	floor    int32 // hours up to it are forgotten
	maxCells int
	order    []uint32
	emitted  finding.Rollup
	perHour  map[int32]int
}

// New makes a Rollup.
func New() *Rollup {
	return &Rollup{
		combos: make(map[string]uint32), symbols: newSymbols(), delta: newTable(), kept: newTable(),
		newest: math.MinInt32, floor: math.MinInt32, maxCells: MaxCells, perHour: make(map[int32]int),
	}
}

// Name of the processor.
func (r *Rollup) Name() string { return "rollup" }

// Version of the state and of what is emitted.
//
// Version 2 sums the time of GPUs too.
func (r *Rollup) Version() int { return 2 }

// Apply adds an entry. Only usage and corrections carry anything to sum.
func (r *Rollup) Apply(e *chain.Entry) error {
	if e.Kind != chain.Usage && e.Kind != chain.Correction {
		return nil
	}
	c := r.combination(&e.Event)
	return c.sums.add(e)
}

// add adds one entry.
func (s *Sums) add(e *chain.Entry) error {
	if e.Priced {
		if err := s.Cost.AddPico(e.Cost); err != nil {
			return err
		}
	}
	s.Unpriced += e.AddsUnpriced()
	if e.Kind == chain.Correction {
		// The call itself was counted with the entry that it corrects.
		s.Corrections++
		s.Estimated += e.Corrected.Estimated
		s.GPUMicros += e.Corrected.GPUMicros
		for i, n := range &e.Corrected.Tokens {
			s.Tokens[i] += n
		}
		return nil
	}
	s.Requests++
	s.GPUMicros += e.Event.GPUMicros
	if e.Event.Status != "" && e.Event.Status != event.StatusOK {
		s.Failed++
	}
	if e.Event.Estimated {
		s.Estimated++
	}
	for i, n := range &e.Event.Tokens {
		s.Tokens[i] += n
	}
	return nil
}

// merge adds other sums.
func (s *Sums) merge(o *Sums) error {
	s.Requests += o.Requests
	s.Failed += o.Failed
	s.Unpriced += o.Unpriced
	s.Estimated += o.Estimated
	s.Corrections += o.Corrections
	s.GPUMicros += o.GPUMicros
	for i, n := range &o.Tokens {
		s.Tokens[i] += n
	}
	return s.Cost.Add(o.Cost)
}

// hourOf is the hour of a time in unix nanoseconds, towards the past. Every
// int64 of nanoseconds fits 32 bits of hours.
func hourOf(nanos int64) int32 {
	h := nanos / nanosPerHour
	if nanos%nanosPerHour < 0 {
		h--
	}
	return int32(h)
}

// combination finds or makes the entry's combination.
func (r *Rollup) combination(e *event.Event) *combination {
	hour := hourOf(e.OccurredAt)
	values := valuesOf(e)
	b := append(r.scratch[:0], byte(hour>>24), byte(hour>>16), byte(hour>>8), byte(hour))
	for _, v := range &values {
		b = append(b, byte(len(v)>>8), byte(len(v)))
		b = append(b, v...)
	}
	r.scratch = b
	if i, ok := r.combos[string(b)]; ok {
		return &r.list[i]
	}
	c := combination{hour: hour}
	for d, v := range &values {
		c.symbols[d] = r.symbols.of(v)
	}
	r.combos[string(b)] = uint32(len(r.list))
	r.list = append(r.list, c)
	return &r.list[len(r.list)-1]
}

// valuesOf is the tenant and then the value of each dimension.
func valuesOf(e *event.Event) [numDimensions]string {
	status := e.Status
	if status == "" {
		status = event.StatusOK
	}
	return [numDimensions]string{e.Tenant, e.Team, e.Model, e.Provider, e.Service, e.Environment, status}
}

// Flush emits what was added since the last Flush, sorted by tenant, hour,
// dimension and value, and takes it into what is kept.
func (r *Rollup) Flush(emit func(*finding.Rollup) error) error {
	r.delta.reset()
	for i := range r.list {
		if err := r.spread(&r.list[i]); err != nil {
			return err
		}
	}
	if err := r.emit(emit); err != nil {
		return err
	}
	if err := r.keep(); err != nil {
		return err
	}
	clear(r.combos)
	r.list = r.list[:0]
	if len(r.symbols.names) > 4*r.maxCells {
		r.forget() // most name nothing that is kept
	}
	return nil
}

// spread adds a combination to the cell of each dimension.
func (r *Rollup) spread(c *combination) error {
	k := key{hour: c.hour, tenant: c.symbols[Total]}
	for d := range numDimensions {
		k.dimension, k.value = d, c.symbols[d]
		if d == Total {
			k.value = emptySymbol
		}
		if err := r.delta.of(k).merge(&c.sums); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rollup) emit(emit func(*finding.Rollup) error) error {
	r.order = r.delta.sorted(r.order, &r.symbols)
	for _, i := range r.order {
		k, s := &r.delta.keys[i], &r.delta.cells[i]
		r.emitted = finding.Rollup{
			Tenant: r.symbols.names[k.tenant], Hour: int64(k.hour) * 3600,
			Dimension: dimensionNames[k.dimension], Value: r.symbols.names[k.value],
			Requests: s.Requests, Failed: s.Failed, Unpriced: s.Unpriced, Estimated: s.Estimated, Corrections: s.Corrections,
			Cost: s.Cost, Tokens: s.Tokens, GPUMicros: s.GPUMicros,
		}
		if err := emit(&r.emitted); err != nil {
			return err
		}
	}
	return nil
}

// keep takes the delta into what is kept and forgets what is too old or too
// much. That the outcome depends on the entries alone: an hour is forgotten for
// ever, by floor, and floor is the least one with which the newest hours of all
// entries so far fit the bounds. It only rises, whenever it is computed.
func (r *Rollup) keep() error {
	for i := range r.delta.keys {
		k := r.delta.keys[i]
		r.newest = max(r.newest, k.hour)
		if k.hour <= r.floor {
			continue
		}
		before := len(r.kept.keys)
		if err := r.kept.of(k).merge(&r.delta.cells[i]); err != nil {
			return err
		}
		r.perHour[k.hour] += len(r.kept.keys) - before
	}
	floor := r.floor
	if r.newest >= math.MinInt32+KeepHours {
		floor = max(floor, r.newest-KeepHours-1)
	}
	floor = r.fitting(floor)
	if floor > r.floor {
		r.floor = floor
		r.forget()
	}
	return nil
}

// fitting is the least floor, not below the given one, above which there are
// at most maxCells.
func (r *Rollup) fitting(floor int32) int32 {
	hours := make([]int32, 0, len(r.perHour))
	cells := 0
	for h, n := range r.perHour {
		if h > floor {
			hours, cells = append(hours, h), cells+n
		}
	}
	slices.Sort(hours)
	for _, h := range hours {
		if cells <= r.maxCells {
			break
		}
		floor, cells = h, cells-r.perHour[h]
	}
	return floor
}

// forget drops the hours up to floor and the symbols that nothing names any
// more.
func (r *Rollup) forget() {
	old, kept := r.symbols, newTable()
	r.symbols = newSymbols()
	clear(r.perHour)
	for i, k := range r.kept.keys {
		if k.hour <= r.floor {
			continue
		}
		k.tenant, k.value = r.symbols.of(old.names[k.tenant]), r.symbols.of(old.names[k.value])
		*kept.of(k) = r.kept.cells[i]
		r.perHour[k.hour]++
	}
	r.kept = kept
	r.delta.reset() // its keys name the old symbols
}

// Each calls fn with the sums that are kept, sorted as Flush emits them,
// until fn returns false. The value is only valid during the call.
func (r *Rollup) Each(fn func(*finding.Rollup) bool) {
	for _, i := range r.kept.sorted(nil, &r.symbols) {
		k, s := &r.kept.keys[i], &r.kept.cells[i]
		more := fn(&finding.Rollup{
			Tenant: r.symbols.names[k.tenant], Hour: int64(k.hour) * 3600,
			Dimension: dimensionNames[k.dimension], Value: r.symbols.names[k.value],
			Requests: s.Requests, Failed: s.Failed, Unpriced: s.Unpriced, Estimated: s.Estimated, Corrections: s.Corrections,
			Cost: s.Cost, Tokens: s.Tokens, GPUMicros: s.GPUMicros,
		})
		if !more {
			return
		}
	}
}

// table is cells in dense arrays, without pointers, and an index to them.
type table struct {
	index map[key]uint32
	keys  []key
	cells []Sums
}

func newTable() table { return table{index: make(map[key]uint32)} }

func (t *table) reset() {
	clear(t.index)
	t.keys, t.cells = t.keys[:0], t.cells[:0]
}

// of finds or makes a cell.
func (t *table) of(k key) *Sums {
	i, ok := t.index[k]
	if !ok {
		i = uint32(len(t.keys))
		t.index[k] = i
		t.keys, t.cells = append(t.keys, k), append(t.cells, Sums{})
	}
	return &t.cells[i]
}

// sorted is the order of the cells by tenant, hour, dimension and value, in the
// memory of order.
func (t *table) sorted(order []uint32, names *symbols) []uint32 {
	order = order[:0]
	for i := range t.keys {
		order = append(order, uint32(i))
	}
	slices.SortFunc(order, func(i, j uint32) int {
		a, b := &t.keys[i], &t.keys[j]
		if a.tenant != b.tenant {
			return cmp.Compare(names.names[a.tenant], names.names[b.tenant])
		}
		if c := cmp.Or(cmp.Compare(a.hour, b.hour), cmp.Compare(a.dimension, b.dimension)); c != 0 || a.value == b.value {
			return c
		}
		return cmp.Compare(names.names[a.value], names.names[b.value])
	})
	return order
}

// emptySymbol is the symbol of "".
const emptySymbol = 0

// symbols are strings by number, so that keys hold no pointers.
type symbols struct {
	names []string
	ids   map[string]uint32
}

func newSymbols() symbols {
	return symbols{names: []string{""}, ids: map[string]uint32{"": emptySymbol}}
}

// of is the number of a string; the string is copied when it is new.
func (s *symbols) of(name string) uint32 {
	if i, ok := s.ids[name]; ok {
		return i
	}
	own := string([]byte(name))
	i := uint32(len(s.names))
	s.names = append(s.names, own)
	s.ids[own] = i
	return i
}
