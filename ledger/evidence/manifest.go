package evidence

import (
	"encoding/hex"
	"time"
)

// Manifest is manifest.json: what a package says of itself.
type Manifest struct {
	Format     string           `json:"format"`
	Tenant     string           `json:"tenant"`
	From       int64            `json:"from_seq"`
	To         int64            `json:"to_seq"`
	Dates      *ManifestDates   `json:"dates"`
	Totals     Count            `json:"totals"`
	Dated      *Count           `json:"dated_totals"`
	Kinds      map[string]int64 `json:"kinds"`
	Occurred   Times            `json:"occurred_at"`
	Received   Times            `json:"received_at"`
	Checkpoint CheckpointRef    `json:"checkpoint"`
	Audit      *AuditRef        `json:"audit"`
	Files      []File           `json:"files"`
	MadeAt     string           `json:"made_at"`
	MadeBy     string           `json:"made_by"`
}

// ManifestDates are the days that were asked for.
type ManifestDates struct {
	From     string `json:"from"`
	Before   string `json:"before"`
	TimeZone string `json:"time_zone"`
	Basis    string `json:"basis"`
	Note     string `json:"note"`
}

// Count is a number of entries and what they cost.
type Count struct {
	Entries  int64   `json:"entries"`
	Priced   int64   `json:"priced"`
	Unpriced int64   `json:"unpriced"`
	Money    []Money `json:"money"`
}

// Money is a sum in one currency, a decimal with twelve places.
type Money struct {
	Currency string `json:"currency"`
	Cost     string `json:"cost"`
}

// Times are the earliest and the latest time, RFC 3339 in UTC; "" is none.
type Times struct {
	First string `json:"first"`
	Last  string `json:"last"`
}

// CheckpointRef names a checkpoint and its file.
type CheckpointRef struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"` // hexadecimal
	File   string `json:"file"`
}

// AuditRef says which audit rows the package holds.
type AuditRef struct {
	From       int64         `json:"from_seq"`
	To         int64         `json:"to_seq"`
	Checkpoint CheckpointRef `json:"checkpoint"`
	// Uncovered is how many rows of the time are under no checkpoint yet.
	Uncovered int64 `json:"uncovered"`
}

// File is a member of the package.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

const datesNote = "the smallest contiguous range of entries with every entry that occurred in [from, before); " +
	"entries stand in order of arrival, so others may lie between; dated_totals counts those that occurred in it"

// manifest is the manifest as far as it is known before the entries are read.
func (p *Plan) manifest() *Manifest {
	m := &Manifest{
		Format: "tallystick evidence 1", Tenant: p.req.Tenant, From: p.From, To: p.To, Kinds: map[string]int64{},
		Checkpoint: p.Checkpoint.ref(ledgerLog), MadeAt: p.req.Now.UTC().Format(time.RFC3339), MadeBy: p.req.MadeBy,
	}
	if d := p.req.Dates; d != nil {
		m.Dates = &ManifestDates{
			From: d.From.Format(time.RFC3339), Before: d.Before.Format(time.RFC3339), TimeZone: d.TimeZone, Basis: "occurred_at", Note: datesNote,
		}
		if p.note != "" {
			m.Dates.Note += "; " + p.note
		}
	}
	return m
}

func (c *Checkpoint) ref(log string) CheckpointRef {
	return CheckpointRef{c.Origin, c.Size, hex.EncodeToString(c.Root[:]), noteName(log, c.Size)}
}

func (b bounds) times() Times { return Times{timeText(b.first), timeText(b.last)} }

func timeText(ns int64) string {
	if ns == 0 {
		return ""
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
}
