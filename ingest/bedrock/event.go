package bedrock

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/usage"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Producer is the producer id of all events of log records: one call that is
// logged in two places is then one event twice, and no conflict.
const Producer = "bedrock"

// The tags that an event of a log record has beside those of its metadata.
const (
	TagPrompt   = "prompt_digest"   // HMAC-SHA-256 of the request's body, hexadecimal
	TagResponse = "response_digest" // HMAC-SHA-256 of the answer's body
	TagAccount  = "aws_account"
	// TagUsage says why the tokens are to be doubted: reasons of ingest/usage.
	TagUsage = "usage_reasons"
)

// Place is where a record was found. It tells records without a request id apart.
type Place struct {
	Object string
	Index  int64 // of the record in the object
}

// Event makes the event of a record. Without metadata it has nothing of what the
// request brought along: no requestMetadata, identity, account or digests. The
// error is ErrMalformed for a record without a time or a model.
func (r *Record) Event(id tenant.ID, at Place, metadata bool) (event.Event, error) {
	if r.Time == 0 || r.Model == "" {
		return event.Event{}, ErrMalformed
	}
	used, estimated, reasons := r.tokens()
	e := event.Event{
		ID: r.eventID(id, at), Tenant: string(id), OccurredAt: r.Time, ProducerID: Producer,
		Provider: "bedrock", Model: modelName(r.Model), Operation: operation(r), Region: bounded(r.Region, 64),
		ServiceTier: tiers[r.Usage.Tier], Status: event.StatusOK, Tokens: used, Estimated: estimated,
		LatencyMicros: r.LatencyMicros, TTFTMicros: r.TTFTMicros,
		Streamed:          strings.HasSuffix(r.Operation, "Stream"),
		ProviderRequestID: bounded(r.RequestID, event.MaxValueBytes),
	}
	switch {
	case r.ErrorCode != "":
		e.Status, e.ErrorType, e.HTTPStatus = event.StatusError, bounded(r.ErrorCode, 64), httpStatus[r.ErrorCode]
	case r.Blocked:
		e.Status, e.ErrorType = event.StatusBlocked, "guardrail_intervened"
	}
	if reasons != "" {
		e.Tags = append(e.Tags, event.Tag{Key: TagUsage, Value: reasons})
	}
	if metadata {
		r.attribute(&e)
	}
	slices.SortFunc(e.Tags, func(a, b event.Tag) int { return strings.Compare(a.Key, b.Key) })
	e.Tags = slices.CompactFunc(e.Tags, func(a, b event.Tag) bool { return a.Key == b.Key })
	return e, nil
}

// tokens is what the call used: what the body says, else what the record says,
// else what can be estimated; and why that is to be doubted, "" when it is not.
func (r *Record) tokens() (used tokens.Vector, estimated bool, reasons string) {
	u := &r.Usage
	switch {
	case r.ErrorCode != "":
		return used, false, ""
	case u.Reasons.Has(usage.NoUsage) || u.Reasons == 0 && u.Status == 0:
		if r.Stated&(statedInput|statedOutput) != 0 {
			return r.counts(), false, ""
		}
		if r.Blocked {
			return used, false, "" // no model was asked
		}
		if used = u.Tokens; used[tokens.Input] == 0 {
			used[tokens.Input] = r.PromptTokens
		}
		return used, used.Total() > 0, usage.NoUsage.String()
	case u.Flags&(usage.Ambiguous|usage.Truncated) != 0:
		reasons = u.Reasons.String()
	}
	return u.Tokens, u.Flags&usage.Estimated != 0, reasons
}

// counts are the record's own. Writes to a cache are of the short lifetime as
// long as nothing says otherwise.
func (r *Record) counts() (v tokens.Vector) {
	v[tokens.Input], v[tokens.Output] = r.Input, r.Output
	v[tokens.CacheRead], v[tokens.CacheWrite5m] = r.CacheRead, r.CacheWrite
	return v
}

// eventID is a UUID of version 8 (RFC 9562): the record's time in milliseconds,
// so that ids are in order of time, and 74 bits of SHA-256 over what tells
// records apart. Bodies are in it by their keyed digests; where there is no
// request id the place is, because two calls may well say the same.
func (r *Record) eventID(id tenant.ID, at Place) string {
	b := make([]byte, 0, 512)
	for _, s := range [...]string{"tallystick/bedrock/1", string(id), r.Account, r.Region, r.RequestID, r.Operation, r.Model, r.ErrorCode} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time))
	for _, n := range [...]int64{int64(r.Stated), r.Input, r.Output, r.CacheRead, r.CacheWrite, r.total} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = append(append(b, r.Prompt[:]...), r.Response[:]...)
	if r.RequestID == "" {
		b = binary.BigEndian.AppendUint64(append(b, at.Object...), uint64(at.Index))
	}
	sum := sha256.Sum256(b)
	var u uuid.UUID
	copy(u[6:], sum[:])
	binary.BigEndian.PutUint64(u[:8], uint64(r.Time/1e6)<<16|uint64(sum[0])<<8|uint64(sum[1]))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u.String()
}

// attribute puts into the event what the request says of who made it.
func (r *Record) attribute(e *event.Event) {
	var who attribution.Attribution
	for _, p := range r.Metadata {
		if p.Key != TagUsage && p.Key != TagAccount {
			who.Metadata(p.Key, p.Value)
		}
	}
	who.Apply(e)
	r.identify(e)
	for _, d := range [...]struct {
		key string
		sum *[32]byte
	}{{TagPrompt, &r.Prompt}, {TagResponse, &r.Response}} {
		if *d.sum != ([32]byte{}) {
			e.Tags = append(e.Tags, event.Tag{Key: d.key, Value: hex.EncodeToString(d.sum[:])})
		}
	}
	if r.Account != "" {
		e.Tags = append(e.Tags, event.Tag{Key: TagAccount, Value: bounded(r.Account, event.MaxValueBytes)})
	}
}

// identify reads identity.arn. Who called is a person until somebody says
// otherwise: the whole ARN is the user, which the edge turns into a pseudonym.
// A role that was assumed is also the service, but for those of single sign-on.
// What requestMetadata says comes before.
func (r *Record) identify(e *event.Event) {
	if e.User == "" {
		e.User = r.Identity
	}
	if len(e.User) > event.MaxValueBytes {
		sum := sha256.Sum256([]byte(e.User))
		e.User = "arn-sha256:" + hex.EncodeToString(sum[:])
	}
	_, rest, ok := strings.Cut(r.Identity, ":assumed-role/")
	role, _, _ := strings.Cut(rest, "/")
	if ok && e.Service == "" && !strings.HasPrefix(role, "AWSReservedSSO_") {
		e.Service = bounded(role, event.MaxValueBytes)
	}
}

// operation is the event's name of what was called.
func operation(r *Record) string {
	model := strings.ToLower(r.Model)
	switch {
	case isConverse(r.Operation):
		return "chat"
	case strings.Contains(model, "embed"):
		return "embeddings"
	case strings.Contains(model, "rerank"):
		return "rerank"
	default:
		return bounded(r.Operation, 64)
	}
}

// tiers are the service tiers by Bedrock's names.
var tiers = map[string]string{"default": "standard", "standard": "standard", "flex": "flex", "priority": "priority", "batch": "batch"}

// httpStatus are the statuses of Bedrock Runtime's errors, from its API reference.
var httpStatus = map[string]int64{
	"AccessDeniedException": 403, "ConflictException": 400, "InternalServerException": 500, "ModelErrorException": 424,
	"ModelNotReadyException": 429, "ModelStreamErrorException": 424, "ModelTimeoutException": 408, "ResourceNotFoundException": 404,
	"ServiceQuotaExceededException": 400, "ServiceUnavailableException": 503, "ThrottlingException": 429, "ValidationException": 400,
}

// modelName is the model as stated, or the name at an ARN's end where the ARN is
// too long for an event.
func modelName(model string) string {
	if len(model) > event.MaxValueBytes {
		model = model[strings.LastIndexByte(model, '/')+1:]
	}
	return bounded(model, event.MaxValueBytes)
}

// bounded is s, or its first max bytes; s is ASCII.
func bounded(s string, max int) string { return s[:min(len(s), max)] }
