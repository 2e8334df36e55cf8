package load

import "fmt"

// tenantNames are made up.
var tenantNames = [...]string{
	"northwind-bank", "harbor-health", "lumen-retail", "quarry-logistics", "sable-media", "tern-insurance",
	"umber-energy", "vireo-games", "willow-legal", "xenia-travel", "yarrow-foods", "zephyr-mobility",
	"alder-robotics", "bramble-labs", "cinder-security", "dapple-design", "ember-telecom", "fathom-marine",
	"garnet-realty", "hazel-education", "ibis-pharma", "juniper-farms", "kestrel-air", "larch-capital",
}

// tenantID is the id of tenant i: a made-up name, or prefix and number.
func tenantID(prefix string, i int) string {
	if prefix != "" {
		return fmt.Sprintf("%s-%04d", prefix, i+1)
	}
	name := tenantNames[i%len(tenantNames)]
	if i < len(tenantNames) {
		return name
	}
	return fmt.Sprintf("%s-%d", name, i/len(tenantNames)+1)
}

// TenantIDs are the ids of a load's tenants; the hot one is the first.
func TenantIDs(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = tenantID(prefix, i)
	}
	return ids
}

// assigner decides which tenant a call belongs to.
type assigner struct {
	seed    uint64
	n       int64
	hot     float64
	byRank  *alias // Zipf, nil without
	offHot  int64  // 1 when the first tenant gets only its share
	tenants []string
}

func newAssigner(o *Options) *assigner {
	a := &assigner{seed: o.Seed, n: int64(o.Tenants), hot: o.HotShare, tenants: TenantIDs(o.TenantPrefix, o.Tenants)}
	if o.HotShare > 0 && o.Tenants > 1 {
		a.offHot = 1
	}
	if o.Zipf > 0 {
		ranks := newAlias(zipf(int(a.n-a.offHot), o.Zipf))
		a.byRank = &ranks
	}
	return a
}

// tenant of the call at a position, made by a client.
func (a *assigner) tenant(position int64, client int32) int32 {
	if a.hot > 0 || a.byRank != nil {
		d := newDice(a.seed, streamTenant, position)
		if d.chance(a.hot) {
			return 0
		}
		if a.byRank != nil {
			return a.byRank.pick(&d) + int32(a.offHot)
		}
	}
	d := newDice(0, streamClient, int64(client)) // by client only: the same for every seed
	return int32(d.below(a.n-a.offHot) + a.offHot)
}
