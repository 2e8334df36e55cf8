package ingest_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const testPartitions = 3

// brokerClock is the clock of an edge on real brokers. It is the machine's day,
// because Kafka refuses records from more than an hour ahead.
var brokerClock = time.Now().UTC().Truncate(time.Second)

// ofToday moves events of the fixed day of the other tests to brokerClock.
func ofToday(body string) string {
	return strings.ReplaceAll(body, "2026-11-22T11:00:00Z", brokerClock.Add(-time.Hour).Format(time.RFC3339))
}

// realEdge is an edge on real brokers, with topics of its own.
func realEdge(t *testing.T, cfg kafka.Config, opts kafka.ProducerOptions, change ...func(*ingest.Options)) *ingest.Edge {
	t.Helper()
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	if _, err := admin.EnsureTopics(t.Context(), kafka.TopicSpec{Partitions: testPartitions}); err != nil {
		t.Fatal(err)
	}
	p, err := kafka.NewProducer(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Logf("clean up: %v", err)
		}
	})
	return newEdge(t, p, append([]func(*ingest.Options){func(o *ingest.Options) {
		o.Topic, o.Partitions = cfg.Topics().Events, testPartitions
		o.Now = func() time.Time { return brokerClock }
	}}, change...)...)
}

// idsInLog reads the event ids that the topic holds.
func idsInLog(t *testing.T, cfg kafka.Config) (ids []string) {
	t.Helper()
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(t.Context(), cfg.Topics().Events)
	if err != nil {
		t.Fatal(err)
	}
	for p, end := range ends {
		err := kafka.ReadRange(t.Context(), cfg, cfg.Topics().Events, int32(p), kafka.Position{}, end, func(recs []kafka.Record) error {
			for _, r := range recs {
				rec, err := event.SplitRecord(r.Value)
				if err != nil {
					return err
				}
				if rec.Kind != event.UsageRecord {
					continue
				}
				var e event.Event
				if err := e.DecodeProto(rec.Body, event.Log); err != nil {
					return err
				}
				if e.Tenant != string(r.Key) || r.TimestampMs != brokerClock.UnixMilli() {
					return fmt.Errorf("event of %s under key %s at %d", e.Tenant, r.Key, r.TimestampMs)
				}
				ids = append(ids, strings.Clone(e.ID))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestEventsReachKafka(t *testing.T) {
	b := testenv.Kafka(t)
	cfg := kafka.Config{
		Brokers: b.Seeds, TopicPrefix: b.TopicPrefix,
		TLS:  kafka.TLS{Enabled: b.TLSCA != "", CAFile: b.TLSCA},
		SASL: kafka.SASL{Mechanism: b.SASLMechanism, Username: b.SASLUser, Password: b.SASLPassword},
	}
	e := realEdge(t, cfg, kafka.ProducerOptions{})
	t.Cleanup(func() {
		if admin, err := kafka.NewAdmin(cfg); err == nil {
			_ = admin.DeleteTopics(context.Background(), cfg.Topics().All()...)
			admin.Close()
		}
	})
	var want []string
	for i := range 30 {
		body := strings.ReplaceAll(goodJSON(40), `"e`, fmt.Sprintf(`"e%d-`, i))
		body = strings.ReplaceAll(body, fmt.Sprintf(`"e%d-vent_id"`, i), `"event_id"`)
		if w := post(e, ofToday(body)); w.Code != http.StatusAccepted {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		for j := range 40 {
			want = append(want, fmt.Sprintf("e%d-%d", i, j))
		}
	}
	slices.Sort(want)
	if got := idsInLog(t, cfg); !slices.Equal(got, want) {
		t.Errorf("the log holds %d events, %d were accepted", len(got), len(want))
	}
}

// The broker goes away under load and comes back on the same data: while it is
// away the edge says 503, afterwards it goes on by itself, and every event that
// was ever answered with 202 is in the log.
func TestBrokerGoesAwayAndComesBack(t *testing.T) {
	dir := t.TempDir()
	broker, err := embedded.StartKafka(t.Context(), embedded.KafkaOptions{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { broker.Close() }()
	cfg := kafka.Config{Brokers: broker.Brokers()}
	e := realEdge(t, cfg, kafka.ProducerOptions{DeliveryTimeout: time.Second}, func(o *ingest.Options) { o.Deadline = 500 * time.Millisecond })

	accepted := map[string]bool{}
	sent := 0
	send := func() int {
		id := fmt.Sprintf("e%05d", sent)
		sent++
		code := post(e, ofToday(fmt.Sprintf(`{"event_id":%q,"tenant_id":"acme","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"}`, id))).Code
		if code == http.StatusAccepted {
			accepted[id] = true
		}
		return code
	}
	for range 20 {
		if code := send(); code != http.StatusAccepted {
			t.Fatalf("with a broker: %d", code)
		}
	}
	broker.Close()
	for range 3 {
		if code := send(); code != http.StatusServiceUnavailable {
			t.Fatalf("without a broker: %d", code)
		}
	}
	if broker, err = embedded.StartKafka(t.Context(), embedded.KafkaOptions{DataDir: dir}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); send() != http.StatusAccepted; {
		if time.Now().After(deadline) {
			t.Fatal("the edge did not go on by itself")
		}
	}
	for range 20 {
		if code := send(); code != http.StatusAccepted {
			t.Fatalf("with the broker back: %d", code)
		}
	}
	inLog := map[string]bool{}
	for _, id := range idsInLog(t, cfg) {
		inLog[id] = true
	}
	for id := range accepted {
		if !inLog[id] {
			t.Errorf("%s was acknowledged and is not in the log", id)
		}
	}
	if s := e.Stats(); s.Accepted != int64(len(accepted)) || s.Unavailable != int64(sent-len(accepted)) {
		t.Errorf("stats %+v, accepted %d of %d", s, len(accepted), sent)
	}
}
