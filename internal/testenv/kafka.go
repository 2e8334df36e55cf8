package testenv

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/embedded"
)

// Brokers are what a test needs to use Kafka.
type Brokers struct {
	// Seeds are host:port addresses.
	Seeds []string
	// TopicPrefix is unique to the call; every topic and group of the test
	// starts with it.
	TopicPrefix string
	// External is set when the brokers are not this package's own. A test then
	// deletes the topics it made.
	External bool
	// SASLMechanism ("" for none), SASLUser and SASLPassword authenticate.
	SASLMechanism, SASLUser, SASLPassword string
	// TLSCA is the path of a PEM file with the brokers' certificate authority,
	// or "" for a plain connection.
	TLSCA string
}

// Kafka returns brokers and a topic prefix of the test's own.
func Kafka(t testing.TB) Brokers {
	t.Helper()
	b := Brokers{TopicPrefix: strings.ReplaceAll(uniqueName(), "_", "-") + "-"}
	if seeds := os.Getenv("TALLYSTICK_TEST_KAFKA_BROKERS"); seeds != "" {
		b.Seeds, b.External = strings.Split(seeds, ","), true
		b.SASLMechanism = os.Getenv("TALLYSTICK_TEST_KAFKA_SASL_MECHANISM")
		b.SASLUser = os.Getenv("TALLYSTICK_TEST_KAFKA_SASL_USER")
		b.SASLPassword = os.Getenv("TALLYSTICK_TEST_KAFKA_SASL_PASSWORD")
		b.TLSCA = os.Getenv("TALLYSTICK_TEST_KAFKA_TLS_CA")
		return b
	}
	broker := start(t, &env.kafka, "kafka", func(ctx context.Context, dir string) (*embedded.Kafka, func() error, error) {
		k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{DataDir: dir, Logger: logger()})
		return k, func() error { k.Close(); return nil }, err
	})
	b.Seeds = broker.Brokers()
	return b
}
