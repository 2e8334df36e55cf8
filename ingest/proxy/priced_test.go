package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// askedPrices notes what was priced; the tiers in it have a price each for a token.
type askedPrices struct {
	rates map[string]money.Pico
	asked []string
}

func (a *askedPrices) Price(provider, model, region, tier string, _ time.Time, used *tokens.Vector) (money.Pico, bool) {
	a.asked = append(a.asked, fmt.Sprintf("%s/%s[%s]/%s", provider, model, region, tier))
	rate, ok := a.rates[tier]
	return rate * money.Pico(used.Total()), ok
}

// reserved is what was set aside for a call, and what it was settled by.
type reserved struct {
	policy
	estimate money.Pico
}

func (r *reserved) Reserve(_ context.Context, _ *proxy.Call, estimate money.Pico) (proxy.Reservation, error) {
	r.estimate = estimate
	return r, nil
}

// A call is reserved for at the price of its region and of the tier that it asks for, and
// settled at that of its region and of the tier that it was given, as the ledger prices it.
func TestPricedByRegionAndTier(t *testing.T) {
	for _, c := range []struct {
		asks, given string
		estimate    money.Pico // per token
		priced      []string   // before the call, and after it
	}{
		{``, ``, 10, []string{"/", "/"}},
		{`,"service_tier":"flex"`, `,"service_tier":"flex"`, 5, []string{"/flex", "/flex"}},
		{`,"service_tier":"flex"`, `,"service_tier":"default"`, 5, []string{"/flex", "/"}},
		{`,"service_tier":"auto"`, `,"service_tier":"priority"`, 10, []string{"/", "/priority"}},
		{`,"service_tier":"priority"`, ``, 10, []string{"/priority", "/", "/"}}, // it has no price
		{`,"service_tier":"batch"`, ``, 10, []string{"/", "/"}},
		{`,"service_tier":{"type":"flex"}`, ``, 10, []string{"/", "/"}}, // no text
	} {
		prices, budgets := &askedPrices{rates: map[string]money.Pico{"": 10, "flex": 5, "batch": 5}}, &reserved{}
		w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(rw, strings.TrimSuffix(chatAnswer, "}")+c.given+"}")
		}, func(p *proxy.Parts, o *proxy.Options) {
			p.Pricer, p.Budgets = prices, budgets
			for i := range o.Providers {
				if o.Providers[i].Name == "openai" {
					o.Providers[i].Region = "eu-west-1"
				}
			}
		})
		resp := w.do(w.request("POST", "/openai/v1/chat/completions", strings.TrimSuffix(chatRequest, "}")+`,"max_tokens":1000`+c.asks+"}"))
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d, %v", c.asks, resp.StatusCode, err)
		}
		ev := w.sink.wait(t)
		var want []string
		for i, tier := range c.priced {
			model := "gpt-4o"
			if i == len(c.priced)-1 {
				model = ev.Model
			}
			want = append(want, fmt.Sprintf("openai/%s[%s]%s", model, ev.Region, tier))
		}
		if ev.Region != "eu-west-1" || ev.ServiceTier != strings.TrimPrefix(c.priced[len(c.priced)-1], "/") || !slices.Equal(prices.asked, want) {
			t.Errorf("asks %q, given %q: region %q, tier %q, priced %q, want %q", c.asks, c.given, ev.Region, ev.ServiceTier, prices.asked, want)
		}
		if n := budgets.estimate / c.estimate; budgets.estimate%c.estimate != 0 || n <= 1000 || n > 1100 {
			t.Errorf("asks %q: %d set aside, want a little more than 1,000 × %d", c.asks, budgets.estimate, c.estimate)
		}
	}
}
