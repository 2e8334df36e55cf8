package pricing

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/money"
)

// GPURuleVersion numbers the rules by which the time of a GPU is priced; see Book.PriceGPU.
// Tokens stay under RuleVersion.
const GPURuleVersion = 2

// MaxDevices is the greatest GPURow.Devices.
const MaxDevices = 1 << 16

// microsPerHour is the unit of a GPURow's price in the unit of GPUUsage.Micros.
const microsPerHour = 3_600_000_000

// Purchase is how an instance was bought, which decides its price. The zero value is none.
type Purchase uint8

// The ways to buy an instance.
const (
	OnDemand Purchase = iota + 1
	Spot
	Reserved

	numPurchases
)

var purchaseNames = [numPurchases]string{"", "on_demand", "spot", "reserved"}

// String is the name in books, row ids and events.
func (p Purchase) String() string {
	if p < numPurchases {
		return purchaseNames[p]
	}
	return "unknown"
}

// ParsePurchase reads such a name; "" is OnDemand, the price of who has no contract.
func ParsePurchase(name string) (Purchase, bool) {
	if name == "" {
		return OnDemand, true
	}
	i := slices.Index(purchaseNames[:], name)
	return Purchase(max(i, 0)), i > 0
}

// GPURow is the price of one hour of an instance with GPUs, in one region or everywhere, over
// one span of time.
type GPURow struct {
	// Provider and Instance are lower case; Region is "" for every region without its own row.
	Provider, Instance, Region string
	Purchase                   Purchase
	// GPU names the accelerator, for people; it may be "".
	GPU string
	// PerHour is the price of the whole instance, Devices how many devices it shows to who is
	// on it, 1 to MaxDevices: an hour of one device costs PerHour / Devices, exactly. An
	// instance with a part of a device shows one.
	PerHour money.Pico
	Devices int64
	// The times are those of Row.
	ValidFrom, ValidTo, KnownFrom, KnownTo time.Time
	// Source says where the price comes from.
	Source string
}

// GPUUsage is what PriceGPU needs to know.
type GPUUsage struct {
	Provider, Instance, Region string
	// Purchase as in an event; see ParsePurchase.
	Purchase string
	// Micros is the time of devices in microseconds of a whole device.
	Micros int64
	// At and KnownAt are those of Usage.
	At, KnownAt int64
}

// PriceGPU returns what the time of a GPU costs by this book: Micros × PerHour / (Devices ×
// 3,600,000,000), an exact rational of 128 bits rounded half-even once to 1e-12 USD. The row
// is that of provider, instance and purchase (without ASCII case) in the region, else of every
// region, valid and known as rule 3 of the package comment says. There is no fall-back from
// one way of buying to another. Result.Components stay 0: time is no class of tokens.
func (b *Book) PriceGPU(u *GPUUsage) Result {
	if u.Micros < 0 {
		return unpriced(ReasonNegativeTokens, 0)
	}
	row, reason := b.findGPU(u)
	if row == nil {
		return unpriced(reason, 0)
	}
	r := Result{Row: row.id()}
	cost, err := row.cost(u.Micros)
	if err != nil {
		r.Reason = Reason{Code: ReasonOverflow}
		return r
	}
	r.Cost, r.Priced = cost, true
	return r
}

// cost is the price of a time on one device. The divisor is below 2^48.
func (r *GPURow) cost(micros int64) (money.Pico, error) {
	hi, lo := bits.Mul64(uint64(micros), uint64(r.PerHour))
	return money.RoundHalfEven(hi, lo, uint64(r.Devices)*microsPerHour)
}

type gpuKey struct {
	provider, instance string
	purchase           Purchase
}

func (r *GPURow) key() gpuKey { return gpuKey{r.Provider, r.Instance, r.Purchase} }

// findGPU returns the row that prices u, or nil and the reason.
func (b *Book) findGPU(u *GPUUsage) (*GPURow, ReasonCode) {
	purchase, ok := ParsePurchase(u.Purchase)
	if !ok {
		return nil, ReasonPurchase
	}
	provider, instance := strings.ToLower(u.Provider), strings.ToLower(u.Instance)
	if !b.index.gpuInstances[[2]string{provider, instance}] {
		return nil, ReasonUnknownModel
	}
	rows := b.index.gpus[gpuKey{provider, instance, purchase}]
	if len(rows) == 0 {
		return nil, ReasonPurchase
	}
	knownAt := u.KnownAt
	if knownAt == Latest {
		knownAt = maxInt64 - 1
	}
	reason := ReasonRegion
	for _, region := range []string{strings.ToLower(u.Region), ""} {
		for _, r := range rows {
			switch {
			case r.Region != region:
			case u.At < r.ValidFrom.UnixNano() || u.At >= endNano(r.ValidTo):
				reason = max(reason, ReasonNotValid)
			case knownAt < r.KnownFrom.UnixNano() || knownAt >= endNano(r.KnownTo):
				reason = max(reason, ReasonNotKnown)
			default:
				return r, ReasonNone
			}
		}
	}
	return nil, reason
}

// GPURows returns a copy of the prices of GPU instances in canonical order.
func (b *Book) GPURows() []GPURow { return slices.Clone(b.gpus) }

// GPURow returns the row that an id names; ok is false when the book has none.
func (b *Book) GPURow(id RowID) (row GPURow, ok bool) {
	for i := range b.gpus {
		if b.gpus[i].id() == id {
			return b.gpus[i], true
		}
	}
	return GPURow{}, false
}

// WithGPUs returns the book with these prices of GPU instances in the place of those that it
// has. Errors: ErrRow, ErrOverlap, ErrFormat.
func (b *Book) WithGPUs(h Header, gpus []GPURow) (*Book, error) {
	if h.Version == b.header.Version {
		return nil, fmt.Errorf("%w: other prices need a version of their own", ErrFormat)
	}
	return newBook(h, b.rows, b.aliases, gpus)
}

// id names the row as RowID says, with the way of buying as the service.
func (r *GPURow) id() RowID {
	s := Row{Provider: r.Provider, Model: r.Instance, Region: r.Region, ValidFrom: r.ValidFrom, KnownFrom: r.KnownFrom}
	return RowID(rowPrefix(&s) + "/" + r.Purchase.String())
}

// check tests one row.
func (r *GPURow) check() error {
	fail := func(rule string) error { return fmt.Errorf("%w: %q/%q: %s", ErrRow, r.Provider, r.Instance, rule) }
	switch {
	case !validProvider(r.Provider):
		return fail("provider is not a name")
	case !validName(r.Instance):
		return fail("instance is not a name")
	case r.Region != "" && !validName(r.Region):
		return fail("region is not a name")
	case r.Purchase == 0 || r.Purchase >= numPurchases:
		return fail("it is bought in no known way")
	case !validText(r.GPU) || !validText(r.Source):
		return fail("GPU or source is not plain text")
	case r.PerHour < 0 || r.Devices < 1 || r.Devices > MaxDevices:
		return fail("negative price, or no number of devices")
	case !validSpan(r.ValidFrom, r.ValidTo) || !validSpan(r.KnownFrom, r.KnownTo):
		return fail("valid or known time is empty or not in whole seconds of 1970–2261")
	}
	return nil
}

func compareGPURows(a, b GPURow) int {
	return cmp.Or(a.Key().compare(b.Key()), a.ValidFrom.Compare(b.ValidFrom), a.KnownFrom.Compare(b.KnownFrom))
}

func sameGPU(a, b *GPURow) bool {
	return a.Key() == b.Key()
}

// buildGPUs checks, orders and indexes the rows of GPU instances.
func (b *Book) buildGPUs() error {
	for i := range b.gpus {
		if err := b.gpus[i].check(); err != nil {
			return err
		}
	}
	slices.SortFunc(b.gpus, compareGPURows)
	b.index.gpus, b.index.gpuInstances = make(map[gpuKey][]*GPURow), make(map[[2]string]bool)
	ids := make(map[RowID]bool, len(b.gpus))
	for i := range b.gpus {
		r := &b.gpus[i]
		for j := i - 1; j >= 0 && sameGPU(&b.gpus[j], r); j-- {
			o := &b.gpus[j]
			if i-j > maxVersions {
				return fmt.Errorf("%w: %q/%q: more than %d rows", ErrRow, r.Provider, r.Instance, maxVersions)
			}
			if spansMeet(o.ValidFrom, o.ValidTo, r.ValidFrom, r.ValidTo) && spansMeet(o.KnownFrom, o.KnownTo, r.KnownFrom, r.KnownTo) {
				return fmt.Errorf("%w: %q/%q bought %s", ErrOverlap, r.Provider, r.Instance, r.Purchase)
			}
		}
		if ids[r.id()] {
			return fmt.Errorf("%w: the id %q is taken twice", ErrRow, r.id())
		}
		ids[r.id()] = true
		b.index.gpus[r.key()] = append(b.index.gpus[r.key()], r)
		b.index.gpuInstances[[2]string{r.Provider, r.Instance}] = true
	}
	return nil
}

// appendGPURow writes the row's line of the book; see gpuBookFormat.
func appendGPURow(dst []byte, r *GPURow) []byte {
	dst = appendString(append(dst, `{"provider":`...), r.Provider)
	dst = appendField(dst, "instance", r.Instance)
	dst = appendOptional(dst, "region", r.Region)
	dst = appendField(dst, "purchase", r.Purchase.String())
	dst = appendOptional(dst, "gpu", r.GPU)
	dst = appendTime(dst, "valid_from", r.ValidFrom)
	dst = appendTime(dst, "valid_to", r.ValidTo)
	dst = appendTime(dst, "known_from", r.KnownFrom)
	dst = appendTime(dst, "known_to", r.KnownTo)
	dst = appendOptional(dst, "source", r.Source)
	dst = strconv.AppendInt(append(dst, `,"devices":`...), r.Devices, 10)
	dst = appendField(dst, "usd_e12_per_hour", strconv.FormatInt(int64(r.PerHour), 10))
	return append(dst, "}\n"...)
}

type gpuLine struct {
	Provider  string    `json:"provider"`
	Instance  string    `json:"instance"`
	Region    string    `json:"region"`
	Purchase  string    `json:"purchase"`
	GPU       string    `json:"gpu"`
	ValidFrom time.Time `json:"valid_from"`
	ValidTo   time.Time `json:"valid_to"`
	KnownFrom time.Time `json:"known_from"`
	KnownTo   time.Time `json:"known_to"`
	Source    string    `json:"source"`
	Devices   int64     `json:"devices"`
	PerHour   string    `json:"usd_e12_per_hour"`
}

func parseGPURows(lines [][]byte) ([]GPURow, error) {
	rows := make([]GPURow, 0, len(lines))
	for i, line := range lines {
		var l gpuLine
		if err := readLine(line, &l); err != nil {
			return nil, fmt.Errorf("%w: GPU row %d: %w", ErrFormat, i+1, err)
		}
		perHour, err := strconv.ParseInt(l.PerHour, 10, 64)
		purchase, ok := ParsePurchase(l.Purchase)
		if err != nil || !ok {
			return nil, fmt.Errorf("%w: GPU row %d: price or purchase", ErrFormat, i+1)
		}
		rows = append(rows, GPURow{
			Provider: l.Provider, Instance: l.Instance, Region: l.Region, Purchase: purchase, GPU: l.GPU,
			PerHour: money.Pico(perHour), Devices: l.Devices, Source: l.Source,
			ValidFrom: l.ValidFrom, ValidTo: l.ValidTo, KnownFrom: l.KnownFrom, KnownTo: l.KnownTo,
		})
	}
	return rows, nil
}

// GPURowsOf makes rows of a list of prices: as known from a time on, and valid from when the
// list was made, or from that time where it does not say. left counts the lines that no row
// can be made of: a currency that is not USD (none is converted), and a number of GPUs that
// the list leaves open or that is above one and not whole. source is theirs.
func GPURowsOf(prices []GPUPrice, known time.Time, source string) (rows []GPURow, left int) {
	for _, p := range prices {
		devices, ok := devicesOf(p.GPUs)
		purchase, named := ParsePurchase(p.Kind)
		if !ok || !named || p.Currency != "USD" {
			left++
			continue
		}
		from := p.AsOf.UTC().Truncate(time.Second)
		if p.AsOf.IsZero() || from.After(known) {
			from = known
		}
		rows = append(rows, GPURow{
			Provider: strings.ToLower(p.Cloud), Instance: strings.ToLower(p.Instance), Region: strings.ToLower(p.Region),
			Purchase: purchase, GPU: p.GPU, PerHour: p.PerHour, Devices: devices, ValidFrom: from, KnownFrom: known, Source: source,
		})
	}
	return rows, left
}

// devicesOf is how many devices an instance with this many GPUs shows.
func devicesOf(gpus string) (int64, bool) {
	mantissa, exponent, err := parseDecimal(gpus)
	if err != nil || mantissa == 0 {
		return 0, false
	}
	if n, ok := scaleUp(mantissa, exponent); ok {
		return n, n <= MaxDevices
	}
	whole, _, _ := strings.Cut(gpus, ".")
	return 1, strings.Trim(whole, "0") == ""
}
