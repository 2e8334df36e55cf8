package pricing

import (
	"cmp"
	"math/big"
	"slices"
	"strings"
	"time"
)

// GPUKey says what one price of an instance with GPUs is for.
type GPUKey struct {
	Provider, Instance, Region string
	Purchase                   Purchase
}

// Key says what the row is the price of.
func (r *GPURow) Key() GPUKey { return GPUKey{r.Provider, r.Instance, r.Region, r.Purchase} }

// GPUChange is a price of an instance in force in two books that differs in its amount or in
// its number of devices; nil in From is a price that was added, and in To one that was removed.
type GPUChange struct {
	GPUKey
	From, To *GPURow
}

// Percent is the change of what an hour of one device costs, written as RateChange.Percent is.
func (c GPUChange) Percent() string {
	if c.From == nil || c.To == nil || c.From.PerHour == 0 {
		return ""
	}
	return percent(c.From.perDevice(c.To), c.To.perDevice(c.From))
}

// perDevice is the price of an hour of one device, times the devices of both rows.
func (r *GPURow) perDevice(other *GPURow) *big.Int {
	return new(big.Int).Mul(big.NewInt(int64(r.PerHour)), big.NewInt(other.Devices))
}

// GPUsInForce is InForce for the prices of GPU instances.
func (b *Book) GPUsInForce(at time.Time) []GPURow {
	var rows []GPURow
	for _, r := range b.gpus {
		if inForce(r.ValidFrom, r.ValidTo, r.KnownTo, at) {
			rows = append(rows, r)
		}
	}
	return rows
}

// gpuChanges are the prices of instances in force at a moment that differ, in canonical order.
func gpuChanges(a, b *Book, at time.Time) []GPUChange {
	from, to := a.gpusAt(at), b.gpusAt(at)
	var changes []GPUChange
	for key, was := range from {
		is := to[key]
		if is == nil || is.PerHour != was.PerHour || is.Devices != was.Devices {
			changes = append(changes, GPUChange{key, was, is})
		}
	}
	for key, is := range to {
		if from[key] == nil {
			changes = append(changes, GPUChange{key, nil, is})
		}
	}
	slices.SortFunc(changes, func(a, b GPUChange) int { return a.compare(b.GPUKey) })
	return changes
}

// gpusAt are the prices in force; two for one key would overlap, which NewBook refuses.
func (b *Book) gpusAt(at time.Time) map[GPUKey]*GPURow {
	rows := b.GPUsInForce(at)
	set := make(map[GPUKey]*GPURow, len(rows))
	for i := range rows {
		r := &rows[i]
		set[r.Key()] = r
	}
	return set
}

func (k GPUKey) compare(o GPUKey) int {
	return cmp.Or(
		strings.Compare(k.Provider, o.Provider), strings.Compare(k.Instance, o.Instance),
		strings.Compare(k.Region, o.Region), cmp.Compare(k.Purchase, o.Purchase),
	)
}
