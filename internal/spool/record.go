package spool

import (
	"encoding/binary"
	"errors"

	"github.com/tallystick/tallystick/internal/kafka"
)

// recordVersion begins every Kafka record in a spool; another number is another
// layout.
const recordVersion = 1

// errRecord: the bytes are no Kafka record as appendKafka writes them.
var errRecord = errors.New("not a Kafka record")

// appendKafka adds the record's bytes to dst: version, partition, timestamp, and
// topic, key, value and headers with their lengths, as docs/spool-format.md says.
// A nil key or value comes back empty and not nil: no topic of ours tells them apart.
func appendKafka(dst []byte, r *kafka.Record) []byte {
	dst = append(dst, recordVersion)
	dst = binary.AppendUvarint(dst, uint64(uint32(r.Partition)))
	dst = binary.AppendVarint(dst, r.TimestampMs)
	dst = appendSized(dst, r.Topic)
	dst = appendSized(dst, r.Key)
	dst = appendSized(dst, r.Value)
	dst = binary.AppendUvarint(dst, uint64(len(r.Headers)))
	for i := range r.Headers {
		dst = appendSized(dst, r.Headers[i].Key)
		dst = appendSized(dst, r.Headers[i].Value)
	}
	return dst
}

func appendSized[T string | []byte](dst []byte, v T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(v))), v...)
}

// kafkaBytes is at most what appendKafka adds.
func kafkaBytes(r *kafka.Record) int {
	const lengths = 1 + 7*binary.MaxVarintLen64
	return lengths + len(r.Topic) + r.Size() + len(r.Headers)*2*binary.MaxVarintLen32
}

// kafkaReader cuts a record's bytes into fields.
type kafkaReader struct {
	b      []byte
	failed bool
}

func (d *kafkaReader) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.failed = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *kafkaReader) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.failed = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *kafkaReader) sized() []byte {
	n := d.uvarint()
	if d.failed || n > uint64(len(d.b)) {
		d.failed = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// parseKafka reads what appendKafka wrote. Key, value and headers share b's
// memory. topics holds the few names there are, so that none is made per record.
func parseKafka(b []byte, topics map[string]string) (kafka.Record, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return kafka.Record{}, errRecord
	}
	d := kafkaReader{b: b[1:]}
	partition := d.uvarint()
	r := kafka.Record{Partition: int32(partition), TimestampMs: d.varint()}
	topic := d.sized()
	r.Key, r.Value = d.sized(), d.sized()
	headers := d.uvarint()
	if d.failed || partition > 1<<32-1 || headers > uint64(len(d.b)) {
		return kafka.Record{}, errRecord
	}
	for range headers {
		r.Headers = append(r.Headers, kafka.Header{Key: string(d.sized()), Value: d.sized()})
	}
	if d.failed || len(d.b) > 0 {
		return kafka.Record{}, errRecord
	}
	name, known := topics[string(topic)]
	if !known {
		name = string(topic)
		topics[name] = name
	}
	r.Topic = name
	return r, nil
}
