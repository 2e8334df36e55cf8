package kafka

import (
	"os"
	"syscall"
	"testing"
)

const errRefused = syscall.ECONNREFUSED

// testBrokers are the seeds; the test fails, never skips, without them.
func testBrokers(t testing.TB) string {
	t.Helper()
	brokers := os.Getenv("TALLYSTICK_TEST_KAFKA_BROKERS")
	if brokers == "" {
		t.Fatal("TALLYSTICK_TEST_KAFKA_BROKERS is not set: these tests need a broker")
	}
	return brokers
}
