package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// tailOf is Kafka's tail as a test wants it to be.
type tailOf struct {
	ledger.Tail
	first map[int32]int64               // what `events` holds begins here
	alter func(v []byte) ([]byte, bool) // of `entries`; false drops the record
}

func (t *tailOf) Held(ctx context.Context, partition int32) (first, end int64, err error) {
	first, end, err = t.Tail.Held(ctx, partition)
	return max(first, t.first[partition]), end, err
}

func (t *tailOf) Published(ctx context.Context, partition int32, fn func([]kafka.Record, bool) error) error {
	return t.Tail.Published(ctx, partition, func(recs []kafka.Record, whole bool) error {
		var kept []kafka.Record
		for _, r := range recs {
			ok := true
			if t.alter != nil {
				r.Value, ok = t.alter(r.Value)
			}
			if ok {
				kept = append(kept, r)
			}
		}
		return fn(kept, whole)
	})
}

// everything is the ledger in the store as text, but for when things were done
// and for commits that made no entry.
func (d *drill) everything() map[string]string {
	d.t.Helper()
	found := make(map[string]string)
	for name, sql := range map[string]string{
		"heads": `select string_agg(concat_ws('/', tenant_id, seq, chain, key_epoch, price_book, received_at), E'\n' order by tenant_id) from ledger.head`,
		"entries": `select string_agg(concat_ws('/', tenant_id, seq, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac), E'\n' order by tenant_id, seq)
			from ledger.entry`,
		"keys": `select string_agg(concat_ws('/', tenant_id, key, content, seq), E'\n' order by tenant_id, key) from ledger.event_key`,
		"batches": `select string_agg(concat_ws('/', partition, batch, t, f, c), E'\n' order by partition, batch, t)
			from ledger.batch, unnest(tenants, first_seqs, counts) u(t, f, c) where c > 0`,
		"offsets":     `select string_agg(concat_ws('/', partition, next_offset, published_batch = last_batch), E'\n' order by partition) from ledger.partition`,
		"controls":    `select string_agg(concat_ws('/', partition, kafka_offset, kind, version, content_hash, content, issued_at), E'\n' order by partition, kafka_offset) from ledger.control`,
		"counters":    `select string_agg(concat_ws('/', tenant_id, producer_id, duplicates, conflicts, rejected), E'\n' order by tenant_id, producer_id) from ledger.counter`,
		"persons":     `select string_agg(concat_ws('/', tenant_id, pseudonym, identity, first_seen, last_seen), E'\n' order by tenant_id, pseudonym) from ledger.subject`,
		"corrections": `select string_agg(concat_ws('/', tenant_id, corrects, seq), E'\n' order by tenant_id, corrects, seq) from ledger.correction`,
		"checkpoints": `select string_agg(note, '' order by tenant_id, size) from ledger.checkpoint where log = 'ledger'
			and (tenant_id, size) in (select tenant_id, max(size) from ledger.checkpoint where log = 'ledger' group by tenant_id)`,
	} {
		var text *string
		d.scan(sql, &text)
		if text != nil {
			found[name] = *text
		}
	}
	return found
}

func (d *drill) same(want map[string]string) {
	d.t.Helper()
	for name, got := range d.everything() {
		if got != want[name] {
			d.t.Errorf("%s are\n%.2000s\nbefore the restore\n%.2000s", name, got, want[name])
		}
	}
}

// life puts one of everything into the log.
func (d *drill) life(from int) {
	person := func(n int, sealed string) []byte {
		e := event.Event{
			ID: fmt.Sprintf("person-%d", n), Tenant: "acme", OccurredAt: 1_760_000_000_000_000_000, ReceivedAt: 1_760_000_000_000_000_000, ProducerID: "p2",
			Provider: "openai", Model: "gpt-4o", Status: "ok", ServiceTier: "standard", ContentMAC: [32]byte{1}, HasContentMAC: true,
			UserPseudonym: fmt.Sprintf("%032x", n/2),
		}
		producer, span := e.AppendProducerMarked(nil)
		return event.AppendUsageRecordOf(nil, &e, producer, span, []byte(sealed))
	}
	d.usage(from, from+200)
	d.put("acme", usage("acme", from+3, nil), usage("acme", from+3, nil), []byte("garbage"))
	d.put("acme", usage("acme", from+4, func(e *event.Event) { e.Tokens[tokens.Output] = 998 })) // a conflict
	d.put("acme", usage("bravo", from+5, nil), usage("bravo", from+3, nil))
	d.put("acme", person(from, "sealed z"), person(from+1, "sealed a"))
	d.put("acme", usage("acme", from+2000, func(e *event.Event) {
		e.Corrects, e.CorrectionReason = fmt.Sprintf("event-%d", from+6), "provider"
	}))
	d.put("bravo", usage("bravo", from, nil)) // a duplicate of what every third is
	d.usage(from+200, from+300)
}

// TestRecoveryImportsEntries restores an older copy of a ledger that has one of
// everything: the very same rows come back, batches included.
func TestRecoveryImportsEntries(t *testing.T) {
	d := newDrill(t)
	d.life(0)
	d.clean(false)
	d.backup()
	d.newTenant("charlie")
	d.control(event.ControlPriceBook, pricing.Builtin().Version(), pricing.Builtin().Marshal())
	d.put("acme", event.AppendControlRecord(nil, &event.Control{Kind: event.ControlKeyEpoch, Tenant: "acme", Version: "2", IssuedAt: 1_760_000_000_000_000_002}))
	d.life(3000)
	d.put("charlie", usage("charlie", 1, nil))
	d.clean(false)
	d.usage(6000, 6010)
	d.clean(false)
	want := d.everything()
	for name, text := range want {
		if text == "" {
			t.Errorf("there are no %s", name)
		}
	}

	d.restore()
	if published := d.clean(true); published != 0 {
		t.Errorf("%d records were published again", published)
	}
	d.same(want)
	d.life(9000)
	d.clean(false) // a normal life again
}

// TestRecoveryWithoutEvents loses records of `events` that `entries` covers.
func TestRecoveryWithoutEvents(t *testing.T) {
	d := newDrill(t)
	d.control(event.ControlPriceBook, pricing.Builtin().Version(), pricing.Builtin().Marshal())
	d.usage(0, 100)
	d.clean(false)
	d.backup()
	d.usage(100, 300)
	d.clean(false)
	want := d.everything()
	d.usage(300, 310)
	d.restore()
	lost := map[int32]int64{0: 1 << 40, 1: 1 << 40} // all that was read once
	d.tail = func(tail ledger.Tail) ledger.Tail { return &tailOf{Tail: tail, first: lost} }
	d.clean(true)
	got := d.everything()
	for _, name := range []string{"entries", "keys", "batches"} {
		have := make(map[string]bool)
		for _, line := range strings.Split(got[name], "\n") {
			have[line] = true
		}
		for _, line := range strings.Split(want[name], "\n") {
			if !have[line] {
				t.Errorf("of %s, %s is gone", name, line)
			}
		}
	}
}

// TestRecoveryWithoutAPriceBook loses the record that brought it.
func TestRecoveryWithoutAPriceBook(t *testing.T) {
	d := newDrill(t)
	d.usage(0, 20)
	d.clean(false)
	d.backup()
	d.control(event.ControlPriceBook, pricing.Builtin().Version(), pricing.Builtin().Marshal())
	d.usage(20, 40)
	d.clean(false)
	d.restore()
	d.tail = func(tail ledger.Tail) ledger.Tail {
		return &tailOf{Tail: tail, first: map[int32]int64{0: 1 << 40, 1: 1 << 40}}
	}
	if published, halted := d.run(true); !errors.Is(halted, ledger.ErrMissingRange) || !strings.Contains(halted.Error(), "price book") || published != 0 {
		t.Errorf("%v, %d published", halted, published)
	}
}

// TestRecoveryOfAPartlyPublishedBatch makes a batch again whose last frames the
// writer never published.
func TestRecoveryOfAPartlyPublishedBatch(t *testing.T) {
	d := newDrill(t)
	neighbour := "bravo" // of acme's partition
	if tenant.ID("acme").Partition(testPartitions) != tenant.ID("bravo").Partition(testPartitions) {
		neighbour = "charlie"
	}
	d.newTenant("charlie")
	d.usage(0, 10)
	d.clean(false)
	d.backup()
	for n := range 400 {
		d.put("acme", usage("acme", 10+n, nil))
		d.put(neighbour, usage(neighbour, 1000+n, nil))
	}
	d.clean(false)
	want := d.everything()
	partition := tenant.ID("acme").Partition(testPartitions)
	var last int64
	d.scan(fmt.Sprintf(`select max(batch) from ledger.batch where partition = %d and cardinality(tenants) > 1`, partition), &last)
	cut := false
	d.restore()
	d.tail = func(tail ledger.Tail) ledger.Tail {
		return &tailOf{Tail: tail, alter: func(v []byte) ([]byte, bool) {
			var f chain.Frame
			if err := f.Decode(v); err != nil || f.Partition != partition || f.Batch < last || f.Batch == last && f.Index == 0 {
				return v, true
			}
			cut = true
			return nil, false
		}}
	}
	d.clean(true)
	if !cut {
		t.Fatal("nothing was cut off")
	}
	got := d.everything()
	if got["entries"] != want["entries"] || got["heads"] != want["heads"] || got["checkpoints"] != want["checkpoints"] {
		t.Error("the ledger is another one than before")
	}
	upTo := func(batches string) (out []string) {
		for _, line := range strings.Split(batches, "\n") {
			var p int32
			var n int64
			if _, err := fmt.Sscanf(line, "%d/%d/", &p, &n); err == nil && p == partition && n <= last {
				out = append(out, line)
			}
		}
		return out
	}
	if a, b := upTo(got["batches"]), upTo(want["batches"]); strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Errorf("batches up to %d are\n%v\nbefore\n%v", last, a, b)
	}
}

// TestRecoveryTrustsNoFrame alters what is in `entries`.
func TestRecoveryTrustsNoFrame(t *testing.T) {
	d := newDrill(t)
	d.usage(0, 100)
	d.clean(false)
	d.backup()
	d.usage(100, 400)
	d.clean(false)
	want := d.everything()
	var restored int64
	d.restore()
	d.scan(`select max(batch) from ledger.batch`, &restored)
	n := 0
	for _, c := range []struct {
		name  string
		alter func(f *chain.Frame, v []byte) ([]byte, bool)
		want  error
		text  string
	}{
		{"MAC", func(_ *chain.Frame, v []byte) ([]byte, bool) { return flipped(v, len(v)-5), true }, ledger.ErrForked, "its MAC is not of the tenant's key"},
		{"chain hash", func(_ *chain.Frame, v []byte) ([]byte, bool) { return flipped(v, len(v)-4-33), true }, ledger.ErrForked, "chain hash"},
		{"epoch", func(_ *chain.Frame, v []byte) ([]byte, bool) { return flipped(v, len(v)-1), true }, ledger.ErrForked, "key epoch"},
		{"a batch is missing", func(*chain.Frame, []byte) ([]byte, bool) { return nil, n > 3 }, ledger.ErrMissingRange, "does not follow entry"},
	} {
		n = 0
		d.tail = func(tail ledger.Tail) ledger.Tail {
			return &tailOf{Tail: tail, alter: func(v []byte) ([]byte, bool) {
				var f chain.Frame
				if err := f.Decode(v); err != nil || f.Batch < restored+2 {
					return v, true
				}
				if n++; n == 3 {
					return c.alter(&f, v)
				}
				return v, true
			}}
		}
		published, halted := d.run(true)
		if !errors.Is(halted, c.want) || !strings.Contains(fmt.Sprint(halted), c.text) || published != 0 {
			t.Errorf("%s: %v, %d published", c.name, halted, published)
		}
		d.restore()
	}
	d.tail = nil
	d.clean(true)
	d.same(want)
}

func flipped(v []byte, at int) []byte {
	v = append([]byte(nil), v...)
	v[at] ^= 1
	return v
}
