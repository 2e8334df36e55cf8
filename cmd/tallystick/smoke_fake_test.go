package main

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tokens"
)

// fakeAPI answers as a server does whose ledgers and reports are right. Tests
// then make them wrong.
type fakeAPI struct {
	want    *smokeWant
	entries map[string][]client.Entry
	verify  map[string]client.Verification
	summary map[string]client.Summary
	hours   map[string]client.TimeSeries
	groups  map[string]map[string]client.Groups // by tenant and first dimension
}

func newFakeAPI(t *testing.T, w *smokeWant) *fakeAPI {
	t.Helper()
	f := &fakeAPI{
		want: w, entries: map[string][]client.Entry{}, verify: map[string]client.Verification{},
		summary: map[string]client.Summary{}, hours: map[string]client.TimeSeries{}, groups: map[string]map[string]client.Groups{},
	}
	ids := make([]string, len(w.events))
	for id, i := range w.byID {
		ids[i] = id
	}
	for _, tenant := range w.tenants {
		f.add(tenant, client.Entry{Kind: "control"})
	}
	for i := range w.events {
		e := &w.events[i]
		tenant, at := w.tenants[e.tenant], time.Unix(e.hour*3600+17, 0).UTC()
		entry := client.Entry{Kind: "usage", EventID: ids[i], OccurredAt: &at, Status: "ok", Tokens: map[string]client.Int{}}
		if e.tokens.Total() == 0 { // of the load's calls, those that reached no model
			entry.Status = "error"
		}
		if e.priced {
			cost := usdText(big.NewInt(e.pico))
			entry.CostUSD = &cost
		}
		for c, n := range e.tokens {
			entry.Tokens[tokens.Class(c).String()] = client.Int(n)
		}
		f.add(tenant, entry)
		if e.conflict {
			f.add(tenant, client.Entry{Kind: "rejected", EventID: ids[i], OccurredAt: &at, RejectReason: "conflict"})
		}
	}
	start, end, err := spanOf(w.Hours)
	if err != nil {
		t.Fatal(err)
	}
	for i, tenant := range w.tenants {
		f.report(tenant, start, end, i == 0)
	}
	return f
}

func (f *fakeAPI) add(tenant string, e client.Entry) {
	e.Seq = client.Int(len(f.entries[tenant]) + 1)
	e.ChainHash = fmt.Sprintf("%s-%d", tenant, e.Seq)
	f.entries[tenant] = append(f.entries[tenant], e)
}

func (f *fakeAPI) head(tenant string) *client.Entry {
	list := f.entries[tenant]
	return &list[len(list)-1]
}

// report fills a tenant's reports. The oracle knows teams and models of all
// tenants together: the first tenant gets them all.
func (f *fakeAPI) report(tenant string, start, end time.Time, withGroups bool) {
	w, h := f.want.Tenants[tenant], f.head(tenant)
	f.verify[tenant] = client.Verification{
		Verdict: "intact", Entries: h.Seq, FromSeq: 1, ToSeq: h.Seq, HeadHash: h.ChainHash,
	}
	sums := client.Totals{CostUSD: w.USD.String(), Requests: client.Int(w.Accepted), Unpriced: client.Int(w.Unpriced), Tokens: map[string]client.Int{}}
	for c, n := range w.Tokens {
		sums.Tokens[tokens.Class(c).String()] = client.Int(n)
	}
	f.summary[tenant] = client.Summary{
		Totals: sums, Coverage: client.Coverage{FromSeq: 1, ToSeq: h.Seq, HeadHash: h.ChainHash, Exact: true},
	}
	var series client.Series
	ts := client.TimeSeries{}
	for at := start; at.Before(end); at = at.Add(time.Hour) {
		cell := w.Hours[at.Format(time.RFC3339)]
		if cell == nil {
			cell = &oracle.Cell{}
		}
		ts.Buckets = append(ts.Buckets, at)
		series.CostUSD = append(series.CostUSD, cell.USD.String())
		series.Requests = append(series.Requests, client.Int(cell.Events))
	}
	ts.Series = []client.Series{series}
	f.hours[tenant] = ts
	f.groups[tenant] = map[string]client.Groups{}
	if withGroups {
		f.groups[tenant]["team"] = groupsOf(f.want.Teams, 1)
		f.groups[tenant]["provider"] = groupsOf(f.want.Models, 2)
	}
}

func groupsOf(cells map[string]*oracle.Cell, dimensions int) (g client.Groups) {
	for name, c := range cells {
		g.Groups = append(g.Groups, client.Group{
			Group:  strings.SplitN(name, "/", dimensions),
			Totals: client.Totals{CostUSD: c.USD.String(), Requests: client.Int(c.Events), Unpriced: client.Int(c.Unpriced)},
		})
	}
	return g
}

func (f *fakeAPI) serve(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q client.Query
		if r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(&q) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if err := json.NewEncoder(w).Encode(f.answer(r, &q)); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func (f *fakeAPI) answer(r *http.Request, q *client.Query) any {
	tenant := r.URL.Query().Get("tenant_id")
	switch r.URL.Path {
	case "/v1/tenants":
		var list []client.Tenant
		for name := range f.verify {
			list = append(list, client.Tenant{TenantID: name})
		}
		return map[string]any{"tenants": list}
	case "/v1/ledger/head":
		return client.Head{TenantID: tenant, Seq: f.head(tenant).Seq, ChainHash: f.head(tenant).ChainHash}
	case "/v1/ledger/entries":
		return f.page(tenant, r.URL.Query().Get("page_token"))
	case "/v1/ledger:verify":
		return f.verify[q.TenantID]
	case "/v1/reports/summary:query":
		return f.summary[q.TenantID]
	case "/v1/reports/timeseries:query":
		return f.hours[q.TenantID]
	default:
		return f.groups[q.TenantID][q.GroupBy[0]]
	}
}

// page is 1,000 entries; the token is where the next page begins.
func (f *fakeAPI) page(tenant, token string) any {
	from, _ := strconv.Atoi(token)
	list := f.entries[tenant]
	to := min(from+client.EntryPage, len(list))
	page := map[string]any{"entries": list[from:to]}
	if to < len(list) {
		page["next_page_token"] = strconv.Itoa(to)
	}
	return page
}
