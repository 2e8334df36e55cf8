package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/client"
)

// Topics keep the number of partitions that they were created with where nobody
// names one: not even another default changes it, and another number is refused.
func TestTopicsKeepTheirPartitions(t *testing.T) {
	const setting = "TALLYSTICK_KAFKA_PARTITIONS="
	srv := startFaultServer(t, func(s *smokeServer) { s.env = append(s.env, setting+"3") })
	count := func() int {
		c := client.New(srv.url(), srv.token)
		defer c.Close()
		p, err := c.Pipeline(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Partitions)
	}
	if n := count(); n != 3 {
		t.Fatalf("%d partitions, want 3", n)
	}
	if _, err := srv.stop(smokeStopTime); err != nil {
		t.Fatal(err)
	}
	srv.env = slices.DeleteFunc(srv.env, func(kv string) bool { return strings.HasPrefix(kv, setting) })
	srv.mustStart(t)
	if n := count(); n != 3 {
		t.Errorf("started again without the setting: %d partitions, want 3", n)
	}
}
