package verify

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// manifestFormat is the first member of a manifest.
const manifestFormat = "tallystick evidence 1"

// kindNames are the names of the kinds of entries.
var kindNames = [lastKind + 1]string{
	kindUsage: "usage", kindRejected: "rejected", kindCorrection: "correction", kindControl: "control", kindCounters: "counters", 6: "declared_loss",
}

// ManifestInfo is what a package says of itself. Everything in it that can be
// computed from the rest is computed and compared.
type ManifestInfo struct {
	Format   string           `json:"format"`
	Tenant   string           `json:"tenant"`
	From     int64            `json:"from_seq"`
	To       int64            `json:"to_seq"`
	Dates    *Dates           `json:"dates"`
	Count    CountInfo        `json:"totals"`
	Dated    *CountInfo       `json:"dated_totals"`
	Kinds    map[string]int64 `json:"kinds"`
	Occurred Times            `json:"occurred_at"`
	Received Times            `json:"received_at"`
	Anchored CheckpointInfo   `json:"checkpoint"`
	Audit    *AuditInfo       `json:"audit"`
	Files    []FileInfo       `json:"files"`
	MadeAt   string           `json:"made_at"`
	MadeBy   string           `json:"made_by"`
}

// Dates are the days that were asked for.
type Dates struct {
	From     string `json:"from"`   // inclusive, RFC 3339
	Before   string `json:"before"` // exclusive
	TimeZone string `json:"time_zone"`
	Basis    string `json:"basis"`
	Note     string `json:"note"`
}

// CountInfo is a number of entries and what they cost.
type CountInfo struct {
	Entries  int64       `json:"entries"`
	Priced   int64       `json:"priced"`
	Unpriced int64       `json:"unpriced"`
	Money    []MoneyInfo `json:"money"`
}

// MoneyInfo is a sum in one currency.
type MoneyInfo struct {
	Currency string `json:"currency"`
	Cost     string `json:"cost"`
}

// Times are the earliest and the latest time, RFC 3339; "" is none.
type Times struct {
	First string `json:"first"`
	Last  string `json:"last"`
}

// CheckpointInfo names the checkpoint that covers the range.
type CheckpointInfo struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"` // hexadecimal
	File   string `json:"file"`
}

// FileInfo is a member of the package.
type FileInfo struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func parseManifest(b []byte) (*ManifestInfo, error) {
	m := &ManifestInfo{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, breakAt(0, Manifest, "it cannot be read: %v", err)
	}
	if m.Format != manifestFormat {
		return nil, &missing{fmt.Errorf("the manifest is of the form %.40q: use a newer verifier", m.Format)}
	}
	if m.Tenant == "" || m.From < 1 || m.To < m.From {
		return nil, breakAt(0, Manifest, "tenant %.80q, entries %d to %d", m.Tenant, m.From, m.To)
	}
	return m, nil
}

// window are the days as unix nanoseconds.
func (m *ManifestInfo) window() (from, before int64, err error) {
	if m.Dates == nil {
		return 0, 0, nil
	}
	a, err1 := time.Parse(time.RFC3339, m.Dates.From)
	b, err2 := time.Parse(time.RFC3339, m.Dates.Before)
	if err1 != nil || err2 != nil || !a.Before(b) || a.Year() < 1700 || b.Year() > 2200 || m.Dates.Basis != "occurred_at" {
		return 0, 0, breakAt(0, Manifest, "the dates %.40q to %.40q by %.40q", m.Dates.From, m.Dates.Before, m.Dates.Basis)
	}
	return a.UnixNano(), b.UnixNano(), nil
}

// checkFiles holds the manifest's list against the members that were read.
func (m *ManifestInfo) checkFiles(a *archive) error {
	listed := map[string]bool{manifestName: true}
	for _, f := range m.Files {
		member, digest := a.members[f.Name], a.digests[f.Name]
		switch {
		case listed[f.Name]:
			return breakAt(0, Manifest, "it lists %.80q twice", f.Name)
		case member == nil:
			return breakAt(0, Manifest, "it lists %.80q, which is not there", f.Name)
		case member.UncompressedSize64 != uint64(f.Bytes) || hex.EncodeToString(digest[:]) != f.SHA256:
			return breakAt(0, Manifest, "%q is not the file that it lists", f.Name)
		}
		listed[f.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(a.members)) {
		if !listed[name] {
			return breakAt(0, Manifest, "it does not list %q", name)
		}
	}
	return nil
}

// checkSums holds what the manifest says of the entries against them.
func (m *ManifestInfo) checkSums(s *Sums) error {
	kinds := map[string]int64{}
	for k, n := range s.Kinds {
		if n > 0 {
			kinds[kindNames[k]] = n
		}
	}
	dated := CountInfo{}
	if m.Dated != nil {
		dated = *m.Dated
	}
	for _, c := range []struct {
		what      string
		said, are any
		ok        bool
	}{
		{"totals", m.Count, s.Count.info(), m.Count.equal(s.Count.info())},
		{"dated totals", dated, s.Dated.info(), (m.Dated == nil) == (m.Dates == nil) && (m.Dated == nil || dated.equal(s.Dated.info()))},
		{"kinds", m.Kinds, kinds, maps.Equal(m.Kinds, kinds)},
		{"occurred_at", m.Occurred, times(s.FirstOccurred, s.LastOccurred), m.Occurred == times(s.FirstOccurred, s.LastOccurred)},
		{"received_at", m.Received, times(s.FirstReceived, s.LastReceived), m.Received == times(s.FirstReceived, s.LastReceived)},
	} {
		if !c.ok {
			return breakAt(0, Manifest, "its %s are %.300v; the entries come to %.300v", c.what, c.said, c.are)
		}
	}
	return nil
}

func (c *Count) info() CountInfo {
	return CountInfo{c.Entries, c.Priced, c.Unpriced, []MoneyInfo{{"USD", c.CostUSD()}}}
}

func (c CountInfo) equal(o CountInfo) bool {
	return c.Entries == o.Entries && c.Priced == o.Priced && c.Unpriced == o.Unpriced && slices.Equal(c.Money, o.Money)
}

func times(first, last int64) Times { return Times{timeText(first), timeText(last)} }

func timeText(ns int64) string {
	if ns == 0 {
		return ""
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
}
