package analytics_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// progress says how far the ledger is, by the number of questions before.
type progress func(asked int) (newest, stored int64, err error)

type progressReader struct {
	of    progress
	asked int
}

func (p *progressReader) Progress(context.Context, tenant.ID) (newest, stored int64, err error) {
	p.asked++
	return p.of(p.asked - 1)
}

// metered asks a store of two tenants' entries for calls.
func metered(of progress) func(*testing.T, *analytics.Reporter, tenant.ID, ...string) (map[string]int64, error) {
	return func(t *testing.T, r *analytics.Reporter, id tenant.ID, requests ...string) (map[string]int64, error) {
		t.Helper()
		m := analytics.NewMetered(r, &progressReader{of: of})
		stored, err := m.CaughtUp(t.Context(), id)
		if err != nil {
			return nil, err
		}
		return m.Calls(t.Context(), id, stored, requests, march, march.Add(time.Minute))
	}
}

// Only entries of the proxy, of the provider, of the tenant and around the time make a
// call one that was metered.
func TestMeteredCalls(t *testing.T) {
	writer, reader := newStore(t)
	seq := map[string]int64{}
	var entries []*chain.Entry
	add := func(id, request string, change func(*chain.Entry)) {
		seq[id]++
		e := &chain.Entry{Kind: chain.Usage, Seq: seq[id], Position: chain.Position{Offset: int64(len(entries))}, Key: event.KeyOf(fmt.Sprint(len(entries)))}
		e.Event = event.Event{
			ID: fmt.Sprint(len(entries)), Tenant: id, OccurredAt: march.UnixNano(), ReceivedAt: march.UnixNano(), ProducerID: event.ProxyProducer + "1",
			Provider: "bedrock", Model: "m", Status: "ok", ProviderRequestID: request, Tokens: tokens.Vector{1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
		}
		if change != nil {
			change(e)
		}
		entries = append(entries, e)
	}
	add("acme", "both", nil)
	add("bravo", "both", func(e *chain.Entry) { e.Event.Tokens = tokens.Vector{77} })
	add("bravo", "theirs", nil)
	add("acme", "edge of the hour", func(e *chain.Entry) { e.Event.OccurredAt = march.Add(-time.Hour).UnixNano() })
	add("acme", "too long ago", func(e *chain.Entry) { e.Event.OccurredAt = march.Add(-time.Hour - time.Second).UnixNano() })
	add("acme", "too late", func(e *chain.Entry) { e.Event.OccurredAt = march.Add(time.Hour + 2*time.Minute).UnixNano() })
	add("acme", "by the importer", func(e *chain.Entry) { e.Event.ProducerID = "bedrock" })
	add("acme", "by an application", func(e *chain.Entry) { e.Event.ProducerID = "" })
	add("acme", "of another provider", func(e *chain.Entry) { e.Event.Provider = "openai" })
	add("acme", "refused", func(e *chain.Entry) { e.Kind, e.RejectReason = chain.Rejected, chain.RejectConflict })
	add("acme", "it's ünusual', 'x", nil)
	add("acme", "", nil)
	store(t, analytics.NewWriter(writer), "one", 1, entries)

	r := analytics.NewReporter(reader, nil, time.Now)
	all := []string{"", "nobody"}
	for _, e := range entries {
		all = append(all, e.Event.ProviderRequestID)
	}
	for range 500 { // as many as an importer asks for at once
		all = append(all, fmt.Sprintf("6f1c5d5a-2f6e-4f0e-9f43-%012d", len(all)))
	}
	ask := metered(func(int) (int64, int64, error) { return 2, 2, nil })
	for id, want := range map[tenant.ID]map[string]int64{
		"acme": {"both": 55, "edge of the hour": 55, "it's ünusual', 'x": 55}, "bravo": {"both": 77, "theirs": 55}, "charlie": {},
	} {
		if id == "charlie" {
			ask = metered(func(int) (int64, int64, error) { return 0, 0, nil })
		}
		if got, err := ask(t, r, id, all...); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v (%v)", id, got, want, err)
		}
	}
}

// Nothing is answered before all that the ledger has is in the store.
func TestMeteredNeverGuesses(t *testing.T) {
	writer, reader := newStore(t)
	g := newTraffic(3, 1, march, time.Hour)
	store(t, analytics.NewWriter(writer), "one", 1, g.entries(20))
	r, away := analytics.NewReporter(reader, nil, time.Now), errors.New("away")
	for name, c := range map[string]struct {
		of   progress
		want error
	}{
		"at rest":             {func(int) (int64, int64, error) { return 20, 20, nil }, nil},
		"catching up":         {func(n int) (int64, int64, error) { return 20 + int64(n), 17 + int64(n), nil }, nil},
		"behind":              {func(n int) (int64, int64, error) { return 20, 19, nil }, analytics.ErrBehind},
		"without what it had": {func(int) (int64, int64, error) { return 21, 21, nil }, analytics.ErrBehind},
		"cannot be asked":     {func(int) (int64, int64, error) { return 0, 0, away }, away},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := metered(c.of)(t, r, "tenant-0", "x"); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// A store that is away is an error, never "no such call".
func TestMeteredStoreAway(t *testing.T) {
	_, reader := newStore(t)
	r := analytics.NewReporter(reader, nil, time.Now)
	ask := metered(func(int) (int64, int64, error) { return 0, 0, nil })
	if found, err := ask(t, r, "acme", "x"); err != nil || len(found) != 0 {
		t.Fatal(found, err)
	}
	reader.Close()
	if found, err := ask(t, r, "acme", "x"); err == nil {
		t.Errorf("the store is away, and it answers %v", found)
	}
}
