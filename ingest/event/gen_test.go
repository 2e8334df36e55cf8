package event_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// text draws valid text of at most max bytes, often empty.
func text(max int) *rapid.Generator[string] {
	word := rapid.StringOfN(rapid.RuneFrom([]rune("abz09 -_/.:\"\\é€😀 ")), 1, -1, max)
	return rapid.OneOf(rapid.Just(""), word)
}

func atLeastOne(g *rapid.Generator[string]) *rapid.Generator[string] {
	return g.Filter(func(s string) bool { return s != "" })
}

func wholeSecond(sec int64) int64 { return sec * 1e9 }

// upTo draws from 0 to max with the ends well represented.
func upTo(max int64) *rapid.Generator[int64] {
	return rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, min(max, 1000)), rapid.Int64Range(0, max), rapid.Just(max))
}

// events draws valid producer events.
var events = rapid.Custom(func(t *rapid.T) event.Event {
	str := func(max int, name string) string { return text(max).Draw(t, name) }
	word := func(name string, of ...string) string {
		return rapid.SampledFrom(append(of, "")).Draw(t, name)
	}
	e := event.Event{
		ID:            atLeastOne(text(event.MaxIDBytes)).Draw(t, "id"),
		Tenant:        rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,62}`).Draw(t, "tenant"),
		OccurredAt:    rapid.OneOf(rapid.Int64Range(1e9, 1<<62), rapid.Map(rapid.Int64Range(1_700_000_000, 1_900_000_000), wholeSecond)).Draw(t, "occurred"),
		ProducerID:    str(event.MaxIDBytes, "producer"),
		ProducerEpoch: upTo(1<<63-1).Draw(t, "epoch"), ProducerSeq: upTo(1<<63-1).Draw(t, "seq"),
		Provider: atLeastOne(text(64)).Draw(t, "provider"), Model: atLeastOne(text(256)).Draw(t, "model"),
		RequestedModel: str(256, "requested"), Operation: str(64, "operation"), Region: str(64, "region"),
		ServiceTier: word("tier", "standard", "batch", "flex", "priority"),
		Status:      word("status", "ok", "error", "blocked", "killed", "truncated", "cancelled"),
		HTTPStatus:  upTo(999).Draw(t, "http"), ErrorType: str(64, "error"),
		ContextTokens: upTo(event.MaxTokens).Draw(t, "context"), LatencyMicros: upTo(event.MaxMicros).Draw(t, "latency"),
		TTFTMicros: upTo(event.MaxMicros).Draw(t, "ttft"), Streamed: rapid.Bool().Draw(t, "streamed"),
		Estimated: rapid.Bool().Draw(t, "estimated"), ProviderRequestID: str(256, "request"),
		Team: str(256, "team"), Service: str(256, "service"), Feature: str(256, "feature"), Agent: str(256, "agent"),
		User: str(256, "user"), EndCustomer: str(256, "customer"), Environment: str(256, "environment"),
		DecisionAction: word("action", "allow", "block", "kill"), DecisionPolicy: str(256, "policy"), DecisionReason: str(256, "reason"),
	}
	if rapid.IntRange(0, 3).Draw(t, "correction") == 0 {
		e.Corrects = atLeastOne(text(event.MaxIDBytes)).Filter(func(id string) bool { return id != e.ID }).Draw(t, "corrects")
		e.CorrectionReason = str(256, "correction reason")
	}
	if rapid.IntRange(0, 3).Draw(t, "gpu") == 0 {
		e.GPUMicros, e.GPUState = upTo(event.MaxGPUMicros).Draw(t, "gpu us"), rapid.SampledFrom([]string{"used", "idle", "unknown", "unallocated"}).Draw(t, "gpu state")
		e.PurchaseOption, e.ContextTokens = word("purchase", "on_demand", "spot", "reserved"), 0
	}
	e.DerivedFrom = str(256, "derived")
	for c := range e.Tokens {
		if e.IsGPU() {
			break
		}
		e.Tokens[c] = upTo(event.MaxTokens).Draw(t, "tokens")
	}
	if rapid.Bool().Draw(t, "has cost") {
		e.ProviderCost = money.Pico(rapid.Int64Range(0, 1<<63-1).Draw(t, "cost")).String()
	}
	tags := rapid.MapOfN(atLeastOne(text(64)), text(64), 0, 5).Draw(t, "tags")
	for k, v := range tags {
		e.Tags = append(e.Tags, event.Tag{Key: k, Value: v})
	}
	slices.SortFunc(e.Tags, func(a, b event.Tag) int { return strings.Compare(a.Key, b.Key) })
	return e
})

// stamped draws events as they stand in the log.
var stamped = rapid.Custom(func(t *rapid.T) event.Event {
	e := events.Draw(t, "event")
	e.User = ""
	e.ReceivedAt = rapid.Int64Range(1e9, 1<<62).Draw(t, "received")
	copy(e.ContentMAC[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "mac"))
	e.HasContentMAC = true
	e.UserPseudonym = rapid.SampledFrom([]string{"", "0123456789abcdef0123456789abcdef"}).Draw(t, "pseudonym")
	e.MappingVersion = upTo(1<<31-1).Draw(t, "mapping")
	e.SealedTags = rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 1, 200)).Draw(t, "sealed")
	return e
})

// toRecord is the record that carries the event, as the generated type.
func toRecord(e *event.Event) *tallystickv1.LogRecord {
	if e.Corrects != "" {
		return &tallystickv1.LogRecord{Body: &tallystickv1.LogRecord_Correction{Correction: toMessage(e)}}
	}
	return &tallystickv1.LogRecord{Body: &tallystickv1.LogRecord_Usage{Usage: toMessage(e)}}
}

// toMessage is the event as the generated type, written out by hand so that it
// shares nothing with the table.
func toMessage(e *event.Event) *tallystickv1.UsageEvent {
	m := &tallystickv1.UsageEvent{
		EventId: e.ID, TenantId: e.Tenant, OccurredAt: timestamp(e.OccurredAt),
		ProducerId: e.ProducerID, ProducerEpoch: e.ProducerEpoch, ProducerSeq: e.ProducerSeq,
		Provider: e.Provider, Model: e.Model, RequestedModel: e.RequestedModel, Operation: e.Operation,
		Region: e.Region, ServiceTier: e.ServiceTier, Status: e.Status, HttpStatus: e.HTTPStatus, ErrorType: e.ErrorType,
		ContextTokens: e.ContextTokens, LatencyUs: e.LatencyMicros, TtftUs: e.TTFTMicros, Streamed: e.Streamed,
		Estimated: e.Estimated, ProviderRequestId: e.ProviderRequestID, ProviderCostUsd: e.ProviderCost,
		Team: e.Team, Service: e.Service, Feature: e.Feature, Agent: e.Agent, User: e.User,
		EndCustomer: e.EndCustomer, Environment: e.Environment,
		DecisionAction: e.DecisionAction, DecisionPolicy: e.DecisionPolicy, DecisionReason: e.DecisionReason,
		Corrects: e.Corrects, CorrectionReason: e.CorrectionReason, DerivedFrom: e.DerivedFrom,
		GpuUs: e.GPUMicros, GpuState: e.GPUState, PurchaseOption: e.PurchaseOption,
		ReceivedAt: timestamp(e.ReceivedAt), UserPseudonym: e.UserPseudonym, MappingVersion: e.MappingVersion, SealedTags: e.SealedTags,
	}
	if e.Tokens != (tokens.Vector{}) {
		m.Tokens = &tallystickv1.TokenCounts{
			Input: e.Tokens[tokens.Input], CacheRead: e.Tokens[tokens.CacheRead], CacheWrite_5M: e.Tokens[tokens.CacheWrite5m],
			CacheWrite_1H: e.Tokens[tokens.CacheWrite1h], Output: e.Tokens[tokens.Output], Reasoning: e.Tokens[tokens.Reasoning],
			AudioInput: e.Tokens[tokens.AudioInput], AudioOutput: e.Tokens[tokens.AudioOutput],
			ImageInput: e.Tokens[tokens.ImageInput], ImageOutput: e.Tokens[tokens.ImageOutput],
		}
	}
	for _, tag := range e.Tags {
		if m.Tags == nil {
			m.Tags = map[string]string{}
		}
		m.Tags[tag.Key] = tag.Value
	}
	if e.HasContentMAC {
		m.ContentMac = e.ContentMAC[:]
	}
	return m
}

func timestamp(ns int64) *timestamppb.Timestamp {
	if ns == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, ns))
}

// shuffled writes the message with its fields in random order.
func shuffled(t *rapid.T, m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var fields [][]byte
	for len(b) > 0 {
		_, _, n := protowire.ConsumeField(b)
		fields = append(fields, b[:n])
		b = b[n:]
	}
	seed := rapid.Uint64().Draw(t, "order")
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	return slices.Concat(fields...)
}

// full is one event with every field set, for benchmarks and examples.
func full(t testing.TB) event.Event {
	t.Helper()
	e := event.Event{
		ID: "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", Tenant: "acme", OccurredAt: 1_795_345_198_123_456_789,
		ProducerID: "proxy-eu-1", ProducerEpoch: 3, ProducerSeq: 123456,
		Provider: "openai", Model: "gpt-5-mini", RequestedModel: "gpt-5", Operation: "chat", Region: "eu-west-1",
		ServiceTier: "standard", Status: "ok", HTTPStatus: 200,
		Tokens:        tokens.Vector{tokens.Input: 1843, tokens.CacheRead: 1024, tokens.Output: 312, tokens.Reasoning: 128},
		LatencyMicros: 1_234_567, TTFTMicros: 234_567, Streamed: true, ProviderRequestID: "req_0123456789abcdef",
		Team: "search", Service: "ranker", Feature: "answers", Agent: "planner", User: "jane@example.com", Environment: "production",
		Tags: []event.Tag{{Key: "cost_center", Value: "4711"}, {Key: "experiment", Value: "b"}},
	}
	if err := e.Validate(false); err != nil {
		t.Fatal(err)
	}
	return e
}
