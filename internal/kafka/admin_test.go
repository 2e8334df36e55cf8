package kafka

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// deleteBefore moves a partition's log start, as retention does.
func deleteBefore(t *testing.T, a *Admin, topic string, partition int32, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(topic, partition, offset, -1)
	responses, err := a.adm.DeleteRecords(testContext(t), offsets)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// recreate makes deleted topics again; a real cluster needs a moment before a
// deleted name is free.
func recreate(t *testing.T, a *Admin, spec TopicSpec) map[string]TopicInfo {
	t.Helper()
	ctx := testContext(t)
	for {
		infos, err := a.EnsureTopics(ctx, spec)
		if err == nil {
			return infos
		}
		if !sleep(ctx, 50*time.Millisecond) {
			t.Fatal(err)
		}
	}
}

// setting is a topic's configuration value.
func setting(t *testing.T, a *Admin, topic, key string) string {
	t.Helper()
	described, err := a.adm.DescribeTopicConfigs(testContext(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := described.On(topic, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range rc.Configs {
		if c.Key == key {
			return c.MaybeValue()
		}
	}
	return ""
}

// at is the position that the reader's caller would store.
func (r *Reader) at() Position { return Position{Offset: r.Offset(), Topic: r.Topic().ID} }
