package kafka

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Errors of data: nothing that time heals. The caller halts the partition and
// names the position; [Halts] reports true for all of them.
var (
	// ErrOffsetOutOfRange: the wanted position is before the log's start
	// (retention or deletion passed it) or beyond its end (the log is younger
	// than the stored position, or was truncated).
	ErrOffsetOutOfRange = errors.New("kafka: offset out of range")
	// ErrDataLoss: the log changed under the reader: its leader lost records
	// that had been read, or offsets jumped.
	ErrDataLoss = errors.New("kafka: the log lost records")
	// ErrTopicChanged: the topic was deleted and created again; the stored
	// offsets mean nothing in it.
	ErrTopicChanged = errors.New("kafka: topic was deleted and created again")
	// ErrUnknownTopic: no such topic.
	ErrUnknownTopic = errors.New("kafka: unknown topic")
	// ErrUnknownPartition: the topic has no such partition.
	ErrUnknownPartition = errors.New("kafka: unknown partition")
	// ErrPartitionsChanged: a topic's partition count is not the configured one,
	// or events and entries differ. Tenants would move between partitions.
	ErrPartitionsChanged = errors.New("kafka: partition count differs")
)

// Errors of a produce call.
var (
	// ErrFull: the producer's buffer has no room for the batch; nothing of it
	// was sent. Answer 503 and let the producer come again.
	ErrFull = errors.New("kafka: producer buffer is full")
	// ErrTooLarge: the record or batch can never be accepted; do not retry it.
	ErrTooLarge = errors.New("kafka: record or batch is too large")
	// ErrRefused: the broker never accepts this record (its timestamp or form);
	// do not retry it.
	ErrRefused = errors.New("kafka: record refused by the broker")
	// ErrUnacked: no acknowledgement within the time allowed. The record may or
	// may not be in the log, now or in a moment: retry with the same event id.
	ErrUnacked = errors.New("kafka: not acknowledged in time")
	// ErrClosed: the producer or reader was closed.
	ErrClosed = errors.New("kafka: closed")
)

// ErrUnauthorized: the broker refused the credentials or the principal may not
// do this. It heals when an operator changes one of the two, so it does not halt.
var ErrUnauthorized = errors.New("kafka: not authorised")

// Halts reports whether err says that the data or the topic is not what the
// caller's stored position describes. Such an error never heals by waiting;
// every other one is transient, and the partition retries with backoff.
func Halts(err error) bool {
	return isAny(err, halting)
}

// halting are the errors of data; the rest of the family heals or is answered.
var (
	halting = []error{
		ErrOffsetOutOfRange, ErrDataLoss, ErrTopicChanged, ErrUnknownTopic, ErrUnknownPartition, ErrPartitionsChanged,
	}
	answers = []error{ErrFull, ErrTooLarge, ErrRefused, ErrUnacked, ErrClosed, ErrUnauthorized}
)

func isSentinel(err error) bool { return isAny(err, halting) || isAny(err, answers) }

func isAny(err error, targets []error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// unauthorized lists the broker's ways to say no to a principal.
var unauthorized = []error{
	kerr.SaslAuthenticationFailed, kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed,
	kerr.ClusterAuthorizationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState,
}

// translate maps a franz-go or broker error to this package's sentinels, once,
// keeping the cause. Unknown errors come back as they are.
func translate(err error) error {
	if err == nil {
		return nil
	}
	is := func(targets ...error) bool { return isAny(err, targets) }
	var loss *kgo.ErrDataLoss
	switch {
	case errors.As(err, &loss):
		return fmt.Errorf("%w: %w", ErrDataLoss, err)
	case is(unauthorized...): // before the timeouts that may wrap it
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	case is(kerr.OffsetOutOfRange):
		return fmt.Errorf("%w: %w", ErrOffsetOutOfRange, err)
	case is(kerr.UnknownTopicID, kerr.InconsistentTopicID):
		return fmt.Errorf("%w: %w", ErrTopicChanged, err)
	case is(kerr.UnknownTopicOrPartition):
		return fmt.Errorf("%w: %w", ErrUnknownTopic, err)
	case is(kerr.MessageTooLarge, kerr.RecordListTooLarge):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case is(kerr.InvalidTimestamp, kerr.InvalidRecord, kerr.UnsupportedForMessageFormat):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case is(kgo.ErrMaxBuffered):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case is(kgo.ErrRecordTimeout, kgo.ErrRecordRetries, kgo.ErrAborting):
		return fmt.Errorf("%w: %w", ErrUnacked, err)
	case is(kgo.ErrClientClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}
