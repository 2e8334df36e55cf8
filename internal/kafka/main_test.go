package kafka

import (
	"testing"

	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// testConfig reaches the embedded broker, or the servers that the environment
// names, with topic names of the test's own. The suite runs unchanged against
// the embedded broker and real Apache Kafka.
func testConfig(t testing.TB) Config {
	t.Helper()
	b := testenv.Kafka(t)
	return Config{
		Brokers:     b.Seeds,
		TopicPrefix: b.TopicPrefix,
		TLS:         TLS{Enabled: b.TLSCA != "", CAFile: b.TLSCA},
		SASL:        SASL{Mechanism: b.SASLMechanism, Username: b.SASLUser, Password: b.SASLPassword},
	}
}
