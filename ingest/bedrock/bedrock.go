// Package bedrock reads Amazon Bedrock's model invocation logs, which customers
// keep in buckets and log groups of their own, and makes usage events of them.
//
// A log record holds the whole prompt and the whole answer. Here they are only
// streamed through: the Decoder reads a record in a buffer of fixed size, feeds
// the bodies to a keyed hash and to the usage meter (ingest/usage), and returns
// a Record, which has no field that could hold text of either. What survives of
// a prompt or an answer is its HMAC under a key of the tenant.
//
// Sources (Source) list and open objects: the S3, SQS and CloudWatch Logs ones
// are in ingest/bedrock/awslogs, Directory is here. They are read only. An
// Importer turns one object into events and submits them to the edge; a Poller
// does that for the connections that tenants have configured
// (internal/connections), with cursors in Postgres.
//
// Promises:
//   - A record becomes at most one event, whose id is made of the record alone
//     (eventID), so that whatever is read twice is a duplicate that hop 3 drops.
//   - The cursor moves only after the edge has said that every event of an object
//     is durable or broke a rule. A process that is killed reads that object again.
//   - Tokens are those of the body's usage, which names the parts; else the
//     record's own counts; else an estimate that says so. No count is added to
//     another one of the same tokens.
//   - A record that is no JSON, or no record, is counted and stops no other.
//   - A record of a call that the metering proxy has an entry of becomes no event, and
//     is counted. Where that cannot be known nothing is submitted, and no cursor moves.
//   - Memory is bounded whatever the size of an object, record or value.
//
// It never writes to a bucket or a log group, never stores credentials, and
// never puts a part of a record into an error or a log message.
package bedrock

import (
	"errors"

	"github.com/tallystick/tallystick/ingest/usage"
)

// Errors of reading.
var (
	// ErrMalformed: a line is no record. The next call of Next goes on behind it.
	ErrMalformed = errors.New("bedrock: not a model invocation log record")
	// ErrDamaged: an object cannot be read to its end, and will never be: it is
	// cut off, or not what its compression promises.
	ErrDamaged = errors.New("bedrock: the object is damaged")
	// ErrGone: an object does not exist any more.
	ErrGone = errors.New("bedrock: the object does not exist")
	// ErrDenied: the credentials do not suffice. Waiting does not help; a person must.
	ErrDenied = errors.New("bedrock: access is denied")
)

// Pair is one pair of a record's requestMetadata.
type Pair struct{ Key, Value string }

// stated are the counts that a record itself states, beside the body's.
type stated uint8

const (
	statedInput stated = 1 << iota
	statedOutput
	statedCacheRead
	statedCacheWrite
)

// Record is what is kept of a log record. None of its strings is longer than
// maxText, and none comes from a prompt or an answer.
type Record struct {
	Time      int64 // unix nanoseconds; 0 when the record states none
	Account   string
	Region    string
	RequestID string
	Operation string
	Model     string // modelId as stated: a name or an ARN
	Identity  string // identity.arn
	ErrorCode string
	Metadata  []Pair

	// The counts that the record states, where Stated has their bits. Input does
	// not contain the cache's.
	Input, Output, CacheRead, CacheWrite int64
	Stated                               stated

	// Usage is what the body of the answer says.
	Usage usage.Result
	// total is the total that the record's own body states; the id is made of it.
	total int64
	// PromptTokens is the estimate of the request's text.
	PromptTokens int64
	// LatencyMicros and TTFTMicros are the service's own; 0 is unknown.
	LatencyMicros, TTFTMicros int64
	// Blocked says that a guardrail intervened.
	Blocked bool

	// Prompt and Response are HMACs of the bodies without insignificant white
	// space; the zero value where the record has no body.
	Prompt, Response [32]byte
	// InputRef and OutputRef are where a body lies that was too large for the
	// record: "s3://bucket/key", "" is nowhere.
	InputRef, OutputRef string
}

// reset empties the record for reuse and keeps the pairs' memory.
func (r *Record) reset() { *r = Record{Metadata: r.Metadata[:0]} }
