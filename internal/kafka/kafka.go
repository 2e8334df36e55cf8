// Package kafka is how every stage speaks to Apache Kafka, and the only place
// (besides the embedded broker) where the franz-go client is imported.
//
// It promises:
//
//   - A record that [Producer.ProduceBatch] reports without an error was
//     acknowledged by all in-sync replicas (acks = all, idempotent producer).
//   - A [Reader] delivers one partition in offset order, from the position its
//     caller names, without a hole: a position outside the log, a jump in the
//     offsets, a truncated log or a topic that was deleted and created again
//     stops the reader with a sentinel error. It never resets by itself.
//   - A [Consumer] runs at most one goroutine per partition in this process,
//     and hands a partition on only after that goroutine has returned.
//
// It never takes a consumer group's committed offset as the truth (offsets live
// in Postgres with the data; [Consumer.CommitForLag] is for dashboards), never
// uses Kafka transactions, and never logs a key, a value or a secret.
package kafka

// Header is one name and value beside a record.
type Header struct {
	Key   string
	Value []byte
}

// Record is one Kafka record, to be produced or as it was read.
//
// Records handed out by a [Reader] share memory with its fetch buffers; see
// [Reader.Next] for how long they live.
type Record struct {
	// Topic is the topic's full name, prefix included (see [Config.Topics]).
	Topic string
	// Partition is chosen by the caller, always: tenant.Partition for tenant
	// records, every partition in turn for a global control record.
	Partition int32
	// Offset is the position in the partition; ignored when producing.
	Offset int64
	// TimestampMs is milliseconds since the Unix epoch, UTC: the unit that
	// Kafka itself stores, so a record is read back exactly as it was given.
	// Retention counts from it, so it must be the time of receipt and never a
	// time that a client chose.
	TimestampMs int64
	Key         []byte
	Value       []byte
	Headers     []Header
}

// Size is about how many bytes the record takes in a buffer: key, value and
// headers.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// TopicID is Kafka's own identity of a topic, a UUID. A topic that was deleted
// and created again under the same name has another one.
type TopicID [16]byte

// IsZero reports whether the id is unset: nothing is known about the topic yet.
func (id TopicID) IsZero() bool { return id == TopicID{} }

// Topics are the full names of the four topics.
type Topics struct {
	// Events is the queue of hop 2: usage, decisions, control records, counters.
	Events string
	// Telemetry carries GPU samples to the processors.
	Telemetry string
	// Entries carries the ledger's entries in sequence order.
	Entries string
	// DeadLetter names what could not be decoded: hash, size, position, reason.
	DeadLetter string
}

// All lists the topics in a fixed order.
func (t Topics) All() []string {
	return []string{t.Events, t.Telemetry, t.Entries, t.DeadLetter}
}
