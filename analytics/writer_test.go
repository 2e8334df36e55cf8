package analytics_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

var march = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// store stores all entries as one plan of one commit.
func store(t testing.TB, w *analytics.Writer, plan string, commit int64, entries []*chain.Entry) {
	t.Helper()
	fill(t, w, commit, entries)
	if err := w.Store(t.Context(), plan, []analytics.Range{{Partition: 0, From: commit, To: commit}}); err != nil {
		t.Fatal(err)
	}
}

func fill(t testing.TB, w *analytics.Writer, commit int64, entries []*chain.Entry) {
	t.Helper()
	w.Reset()
	for _, e := range entries {
		if err := w.Append(e, commit); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWriterColumns reads back every column of one entry of each kind.
func TestWriterColumns(t *testing.T) {
	writer, reader := newStore(t)
	at := time.Date(2026, 3, 29, 1, 30, 0, 123456789, time.UTC)
	usage := &chain.Entry{Kind: chain.Usage, Seq: 1, Position: chain.Position{Partition: 2, Offset: 5}, Key: event.KeyOf("a"), Priced: true, Cost: money.Max, PriceRow: "r"}
	usage.Event = event.Event{
		ID: "a", Tenant: "acme", OccurredAt: at.UnixNano(), ReceivedAt: at.Add(time.Second).UnixNano(), ProducerID: "p", Provider: "openai", Model: "m",
		Operation: "chat", Region: "eu", ServiceTier: "standard", Status: "ok", Team: "t", Service: "s", Feature: "f", Agent: "g", Environment: "e",
		UserPseudonym: "u", EndCustomer: "c", Tags: []event.Tag{{Key: "k", Value: "v"}, {Key: "l", Value: ""}},
		LatencyMicros: 1, TTFTMicros: 2, Streamed: true, Estimated: true, ContentMAC: [32]byte{9}, HasContentMAC: true,
	}
	for c := range usage.Event.Tokens {
		usage.Event.Tokens[c] = event.MaxTokens - int64(c)
	}
	correction := usage.Clone()
	correction.Kind, correction.Seq, correction.Cost, correction.Event.Tags = chain.Correction, 2, money.Min, nil
	correction.Corrected = chain.Corrected{Seq: 1, Unpriced: 1, Estimated: -1, Tokens: tokens.Vector{-event.MaxTokens, 9: event.MaxTokens}}
	unpriced := usage.Clone()
	unpriced.Seq, unpriced.Priced, unpriced.Cost, unpriced.UnpricedReason = 3, false, 0, "unknown_model"
	conflict := &chain.Entry{Kind: chain.Rejected, Seq: 4, RejectReason: chain.RejectConflict, Key: event.Key{1}}
	conflict.Event = event.Event{ID: "a", Tenant: "acme", ReceivedAt: at.UnixNano(), ContentMAC: [32]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, HasContentMAC: true}
	undecodable := &chain.Entry{Kind: chain.Rejected, Seq: 1, RejectReason: chain.RejectUndecodable}
	undecodable.Event.Tenant = "system/2"
	counters := &chain.Entry{Kind: chain.Counters, Seq: 5, EdgeID: "edge", EdgeEpoch: 7, Accepted: 8, Refused: 9}
	counters.Event.Tenant, counters.Event.ProducerID = "acme", "p"
	store(t, analytics.NewWriter(writer), "plan", 3, []*chain.Entry{usage, correction, unpriced, conflict, undecodable, counters})

	key := event.KeyOf("a")
	common := `2 3 1774747800123456 1774747801123456 ` + hex.EncodeToString(key[:]) +
		` 0 p openai m chat eu standard ok t s f g e u c`
	numbers := `1 2 true true 1000000000000 999999999999 999999999998 999999999997 999999999996 999999999995 999999999994 999999999993 999999999992 999999999991  [] 0 0 0 0 0`
	blanks := strings.Repeat(" ", 14)
	zeros := ` 0 0 false false 0 0 0 0 0 0 0 0 0 0`
	want := []string{
		"acme 1 usage " + common + ` {'k':'v','l':''} 9223372.036854775807 [] [r] ` + numbers,
		"acme 2 correction " + common + ` {} -9223372.036854775808 [] [r] 1 2 true false -1000000000000 0 0 0 0 0 0 0 0 1000000000000  [] 0 0 0 1 -1`,
		"acme 3 usage " + common + ` {'k':'v','l':''} null [unknown_model] [r] ` + numbers,
		"acme 4 rejected 0 3 1774747800123456 1774747800123456 " + hex.EncodeToString(key[:]) + " 72623859790382856" + blanks + " {} null [] []" + zeros + " conflict [] 0 0 0 0 0",
		"acme 5 counters 0 3 0 0 " + fmt.Sprintf("%032x", 0) + " 0 p" + blanks + "{} null [] []" + zeros + "  [edge] 7 8 9 0 0",
		"system/2 1 rejected 0 3 0 0 " + fmt.Sprintf("%032x", 0) + " 0" + blanks + " {} null [] []" + zeros + " undecodable [] 0 0 0 0 0",
	}
	rows, err := reader.Query(t.Context(), `SELECT concatWithSeparator(' ', tenant_id, seq, kind, ledger_partition, ledger_commit,
		toUnixTimestamp64Micro(occurred_at), toUnixTimestamp64Micro(received_at), lower(hex(event_key)), content, producer_id, provider, model, operation,
		region, service_tier, status, team, service, feature, agent, environment, user_pseudonym, end_customer, toString(tags),
		ifNull(toString(cost), 'null'), concat('[', unpriced_reason, ']'), concat('[', price_row, ']'), latency_us, ttft_us, streamed, estimated, input, cache_read,
		cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output, image_input, image_output, reject_reason, concat('[', edge_id, ']'),
		edge_epoch, accepted, refused, unpriced_delta, estimated_delta) FROM entry ORDER BY tenant_id, seq`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for i := 0; rows.Next(); i++ {
		var got string
		if err := rows.Scan(&got); err != nil {
			t.Fatal(err)
		}
		if i >= len(want) || got != want[i] {
			t.Errorf("row %d:\n got %s\nwant %s", i, got, want[min(i, len(want)-1)])
		}
	}
}

// TestWriterRepeats stores plans again, and again from another writer, and
// finds everything once, in the targets of views too.
func TestWriterRepeats(t *testing.T) {
	writer, reader := newStore(t)
	w := analytics.NewWriter(writer)
	g := newTraffic(1, 5, march, 72*time.Hour)
	const plans, each = 5, 1000
	for p := range int64(plans) {
		entries := g.entries(each)
		fill(t, w, p+1, entries)
		rollup := finding.Rollup{Tenant: "tenant-1", Hour: march.Unix(), Dimension: "team", Value: "a", Requests: 1, Cost: money.SumOf(5), Tokens: tokens.Vector{7}, GPUMicros: 1000}
		if err := w.AppendRollup(&rollup); err != nil {
			t.Fatal(err)
		}
		ranges := []analytics.Range{{Partition: 0, From: p + 1, To: p + 1}, {Partition: 4, From: 10 * (p + 1), To: 10*(p+1) + 3}}
		for range 3 {
			if err := w.Store(t.Context(), fmt.Sprint("plan-", p), ranges); err != nil {
				t.Fatal(err)
			}
		}
		store(t, analytics.NewWriter(writer), fmt.Sprint("plan-", p), p+1, entries)
	}
	if n := count(t, reader, "SELECT count() FROM entry"); n != plans*each {
		t.Errorf("%d entries", n)
	}
	checkView(t, reader)
	if n := count(t, reader, "SELECT toUInt64(sum(sum_requests) * 100 + sum(sum_input) + sum(sum_gpu_us)) FROM rollup_hour"); n != plans*100+7*plans+plans*1000 {
		t.Errorf("rollups %d", n)
	}
	largest, err := w.Largest(t.Context())
	if want := map[int32]int64{0: 5, 4: 53}; err != nil || !maps.Equal(largest, filterPartitions(largest, want)) {
		t.Errorf("largest %v, %v; want %v", largest, err, want)
	}
}

// filterPartitions are the partitions of the ranges with their wanted numbers
// and the others, which tenants' rows name, as they are.
func filterPartitions(got, want map[int32]int64) map[int32]int64 {
	all := maps.Clone(got)
	maps.Copy(all, want)
	return all
}

// checkView compares the view's target with the table it is made of.
func checkView(t testing.TB, db *clickhouse.DB) {
	t.Helper()
	const sums = `SELECT concatWithSeparator(' ', toString(sum(c)), sum(r), sum(f), sum(u), sum(e), sum(k), sum(i), sum(o)) FROM `
	const base = sums + `(SELECT ifNull(cost, toDecimal128(0, 12)) AS c, kind = 'usage' AS r, r AND status != 'ok' AS f, toInt64(r AND cost IS NULL) + unpriced_delta AS u,
		toInt64(estimated) + estimated_delta AS e, NOT r AS k, input AS i, image_output AS o FROM entry WHERE kind IN ('usage', 'correction'))`
	const view = sums + `(SELECT sum_cost AS c, sum_requests AS r, sum_failed AS f, sum_unpriced AS u, sum_estimated AS e, sum_corrections AS k,
		sum_input AS i, sum_image_output AS o FROM usage_hour)`
	var a, b string
	if err := db.QueryRow(t.Context(), base).Scan(&a); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(t.Context(), view).Scan(&b); err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("entries %s, view %s", a, b)
	}
}

func TestWriterRefuses(t *testing.T) {
	writer, reader := newStore(t)
	w := analytics.NewWriter(writer)
	for name, call := range map[string]func() error{
		"no id":    func() error { return w.Store(t.Context(), "", []analytics.Range{{From: 1, To: 1}}) },
		"no range": func() error { return w.Store(t.Context(), "p", nil) },
		"backward": func() error { return w.Store(t.Context(), "p", []analytics.Range{{From: 2, To: 1}}) },
		"zero":     func() error { return w.Store(t.Context(), "p", []analytics.Range{{From: 0, To: 1}}) },
	} {
		if err := call(); !errors.Is(err, analytics.ErrPlan) || w.Transient(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := count(t, reader, "SELECT count() FROM announced"); n != 0 {
		t.Errorf("%d announcements", n)
	}
}

// TestAppendAllocatesNothing fills a block of new entries a second time: the
// columns have grown, and what entries say has been seen.
func TestAppendAllocatesNothing(t *testing.T) {
	w := analytics.NewWriter(nil)
	load := newWorkload(1, 20, march, 100)
	fill(t, w, 1, load.entries(10_000))
	entries := load.entries(5_000)
	allocated := testing.AllocsPerRun(1, func() { fill(t, w, 2, entries) })
	if allocated > 50 {
		t.Errorf("%.0f allocations for %d entries", allocated, len(entries))
	}
}
