package main

import (
	"time"

	"github.com/tallystick/tallystick/internal/pricing"
)

// jsonDiff is what makes one book of another, for programs.
type jsonDiff struct {
	From    jsonBook        `json:"from"`
	To      jsonBook        `json:"to"`
	At      *string         `json:"at"`
	Rates   []jsonRate      `json:"rates"`
	GPUs    []jsonGPUChange `json:"gpu_prices"`
	Rows    jsonOnly        `json:"rows_with_history"`
	GPURows jsonOnly        `json:"gpu_rows_with_history"`
	Names   jsonOnly        `json:"names"`
}

// jsonRate is a rate that differs, in USD per million tokens; null where a book has none.
type jsonRate struct {
	Change string `json:"change"`
	jsonModel
	Class   string  `json:"class"`
	From    *string `json:"from_usd_per_million_tokens"`
	To      *string `json:"to_usd_per_million_tokens"`
	Percent *string `json:"percent"`
}

// jsonGPUChange is a price of a GPU instance that differs; the percentage is that of one
// device's hour.
type jsonGPUChange struct {
	Change string `json:"change"`
	jsonInstance
	From    *jsonHour `json:"from"`
	To      *jsonHour `json:"to"`
	Percent *string   `json:"percent"`
}

// jsonOnly counts what only one of two books has.
type jsonOnly struct {
	From int `json:"only_in_from"`
	To   int `json:"only_in_to"`
}

func modelForJSON(k *pricing.RateKey) jsonModel {
	return jsonModel{k.Provider, k.Model, k.Region, k.Service.String(), k.Above}
}

func diffForJSON(d *pricing.Diff) *jsonDiff {
	j := &jsonDiff{
		From: jsonBook{Version: d.From.Version}, To: jsonBook{Version: d.To.Version}, At: timeForJSON(d.At), Rates: []jsonRate{}, GPUs: []jsonGPUChange{},
		Rows: jsonOnly{len(d.Removed), len(d.Added)}, GPURows: jsonOnly{len(d.RemovedGPUs), len(d.AddedGPUs)},
		Names: jsonOnly{len(d.RemovedAliases), len(d.AddedAliases)},
	}
	for _, c := range d.Changes {
		j.Rates = append(j.Rates, jsonRate{
			changeKind(c), modelForJSON(&c.RateKey), c.Class.String(), rateForJSON(c.From), rateForJSON(c.To), percentForJSON(c.Percent()),
		})
	}
	for _, c := range d.GPUChanges {
		j.GPUs = append(j.GPUs, jsonGPUChange{
			gpuChangeKind(c), instanceForJSON(c.GPUKey), hourForJSON(c.From), hourForJSON(c.To), percentForJSON(c.Percent()),
		})
	}
	return j
}

// jsonSources is where sources disagree, for programs. Rates are in the order of the sources.
type jsonSources struct {
	At            *string            `json:"at"`
	Sources       []string           `json:"sources"`
	Compared      int                `json:"compared"`
	Disagreements []jsonDisagreement `json:"disagreements"`
}

type jsonDisagreement struct {
	jsonModel
	Class  string    `json:"class"`
	Rates  []*string `json:"usd_per_million_tokens"`
	Spread *string   `json:"spread_percent"`
}

func disagreementsForJSON(at time.Time, names []string, found []pricing.Disagreement, compared int) *jsonSources {
	j := &jsonSources{timeForJSON(at), names, compared, []jsonDisagreement{}}
	for _, d := range found {
		one := jsonDisagreement{modelForJSON(&d.RateKey), d.Class.String(), nil, percentForJSON(d.Spread())}
		for _, r := range d.Rates {
			one.Rates = append(one.Rates, rateForJSON(r))
		}
		j.Disagreements = append(j.Disagreements, one)
	}
	return j
}
