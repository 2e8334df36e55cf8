package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Defaults of [TopicSpec].
const (
	DefaultPartitions         int32 = 12
	DefaultRetention                = 14 * 24 * time.Hour
	DefaultTelemetryRetention       = 3 * 24 * time.Hour
	// MaxRetention bounds how long a record may outlive an erasure request.
	MaxRetention = 30 * 24 * time.Hour
	// MinRetention keeps a mistyped unit from throwing the queue away.
	MinRetention = time.Minute
	// MaxPartitions is a sanity bound, far above what one cluster wants.
	MaxPartitions int32 = 10_000
)

// TopicSpec is what [Admin.EnsureTopics] makes true. The zero value of a field
// means its default.
type TopicSpec struct {
	// Partitions of all four topics, fixed when they are created; default 12.
	Partitions int32
	// ReplicationFactor of topics that are created; default 1. An existing
	// topic's replicas are never moved.
	ReplicationFactor int16
	// MinInsyncReplicas with which a write still succeeds; default 2 when
	// ReplicationFactor is 3 or more, else 1.
	MinInsyncReplicas int
	// Retention of events, entries and deadletter; default 14 days, at most 30.
	// It must be longer than the oldest backup that may be restored.
	Retention time.Duration
	// TelemetryRetention of telemetry; default 3 days.
	TelemetryRetention time.Duration
}

func (s TopicSpec) withDefaults() TopicSpec {
	if s.Partitions == 0 {
		s.Partitions = DefaultPartitions
	}
	if s.ReplicationFactor == 0 {
		s.ReplicationFactor = 1
	}
	if s.MinInsyncReplicas == 0 {
		s.MinInsyncReplicas = 1
		if s.ReplicationFactor >= 3 {
			s.MinInsyncReplicas = 2
		}
	}
	if s.Retention == 0 {
		s.Retention = DefaultRetention
	}
	if s.TelemetryRetention == 0 {
		s.TelemetryRetention = min(DefaultTelemetryRetention, s.Retention)
	}
	return s
}

// Validate reports every wrong field at once, each by its name.
func (s TopicSpec) Validate() error {
	s = s.withDefaults()
	var errs []error
	check := func(ok bool, field, rule string, got any) {
		if !ok {
			errs = append(errs, fmt.Errorf("kafka.%s: must be %s, is %v", field, rule, got))
		}
	}
	check(s.Partitions > 0 && s.Partitions <= MaxPartitions, "partitions", fmt.Sprintf("1 to %d", MaxPartitions), s.Partitions)
	check(s.ReplicationFactor > 0, "replication_factor", "at least 1", s.ReplicationFactor)
	check(s.MinInsyncReplicas > 0 && s.MinInsyncReplicas <= int(s.ReplicationFactor),
		"min_insync_replicas", "between 1 and the replication factor", s.MinInsyncReplicas)
	check(s.Retention >= MinRetention && s.Retention <= MaxRetention, "retention", "between 1m and 30 days", s.Retention)
	check(s.TelemetryRetention >= MinRetention && s.TelemetryRetention <= MaxRetention,
		"telemetry_retention", "between 1m and 30 days", s.TelemetryRetention)
	return errors.Join(errs...)
}

// configs are the settings that every one of our topics needs, stated on the
// topic because a broker's defaults may be anything: kfake applies retention
// only to topics that state it, a compacting default would delete usage, and
// LogAppendTime would replace the caller's timestamps.
func (s TopicSpec) configs(retention time.Duration) map[string]string {
	return map[string]string{
		"retention.ms":           strconv.FormatInt(retention.Milliseconds(), 10),
		"cleanup.policy":         "delete",
		"message.timestamp.type": "CreateTime",
		"min.insync.replicas":    strconv.Itoa(s.MinInsyncReplicas),
	}
}

// TopicInfo is what identifies a topic and its shape.
type TopicInfo struct {
	Name       string
	ID         TopicID
	Partitions int32
}

// EnsureTopics creates the topics that are missing, states retention and the
// other settings on all four, and returns each by its full name. It is safe to
// run from several processes at once.
//
// It never changes a partition count: a topic whose count is not
// spec.Partitions is refused with [ErrPartitionsChanged]; events and entries
// are thereby always equal. Brokers that give topics no id (Kafka < 2.8) are
// refused, since a recreated topic could not be told from the old one.
func (a *Admin) EnsureTopics(ctx context.Context, spec TopicSpec) (map[string]TopicInfo, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.withDefaults()
	names := a.cfg.Topics().All()
	infos, err := a.Topics(ctx, names...)
	if err != nil {
		return nil, err
	}
	created, err := a.createMissing(ctx, spec, names, infos)
	if err != nil {
		return nil, err
	}
	if created {
		if infos, err = a.awaitTopics(ctx, names); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if got := infos[name].Partitions; got != spec.Partitions {
			return nil, fmt.Errorf("%w: topic %s has %d, configured are %d; a new count needs a new topic generation",
				ErrPartitionsChanged, name, got, spec.Partitions)
		}
		if infos[name].ID.IsZero() {
			return nil, fmt.Errorf("kafka: topic %s has no id: the broker is older than Kafka 2.8", name)
		}
		if err := a.stateConfigs(ctx, name, spec.configs(a.retention(spec, name))); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

func (a *Admin) retention(spec TopicSpec, name string) time.Duration {
	if name == a.cfg.Topics().Telemetry {
		return spec.TelemetryRetention
	}
	return spec.Retention
}

// createMissing reports whether anything was missing. Losing the race against
// another process that creates the same topic is success.
func (a *Admin) createMissing(ctx context.Context, spec TopicSpec, names []string, have map[string]TopicInfo) (bool, error) {
	missing := false
	for _, name := range names {
		if _, ok := have[name]; ok {
			continue
		}
		missing = true
		configs := make(map[string]*string)
		for k, v := range spec.configs(a.retention(spec, name)) {
			configs[k] = &v
		}
		resp, err := a.adm.CreateTopic(ctx, spec.Partitions, spec.ReplicationFactor, configs, name)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("kafka: create topic %s: %w (%s)", name, translate(err), resp.ErrMessage)
		}
		a.log.LogAttrs(ctx, slog.LevelInfo, "created topic", slog.String("topic", name),
			slog.Int64("partitions", int64(spec.Partitions)), slog.Int("replication", int(spec.ReplicationFactor)))
	}
	return missing, nil
}

// awaitTopics waits until every broker's metadata could answer for the topics
// and every partition has a leader: a cluster spreads new topics with a delay.
func (a *Admin) awaitTopics(ctx context.Context, names []string) (map[string]TopicInfo, error) {
	for {
		infos, err := a.Topics(ctx, names...)
		if err == nil && len(infos) == len(names) {
			if _, err = a.EndOffsets(ctx, names[0]); err == nil {
				return infos, nil
			}
		}
		if !sleep(ctx, metadataMinAge) {
			return nil, errors.Join(fmt.Errorf("kafka: created topics did not appear: %w", ctx.Err()), err)
		}
	}
}

// stateConfigs sets the settings that differ or are only a broker default.
func (a *Admin) stateConfigs(ctx context.Context, topic string, want map[string]string) error {
	rc, err := a.describeConfigs(ctx, topic)
	for deadline := time.Now().Add(spreadTime); errors.Is(err, ErrUnknownTopic) && time.Now().Before(deadline) && sleep(ctx, metadataMinAge); {
		rc, err = a.describeConfigs(ctx, topic)
	}
	if err != nil {
		return fmt.Errorf("kafka: describe topic %s: %w", topic, err)
	}
	stated := make(map[string]string)
	for _, c := range rc.Configs {
		if c.Source.String() == "DYNAMIC_TOPIC_CONFIG" {
			stated[c.Key] = c.MaybeValue()
		}
	}
	var alter []kadm.AlterConfig
	for key, value := range want {
		if have, ok := stated[key]; ok && have == value {
			continue
		}
		alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: key, Value: &value})
	}
	if len(alter) == 0 {
		return nil
	}
	responses, err := a.adm.AlterTopicConfigs(ctx, alter, topic)
	if err != nil {
		return fmt.Errorf("kafka: configure topic %s: %w", topic, translate(err))
	}
	if r, err := responses.On(topic, nil); err != nil || r.Err != nil {
		return fmt.Errorf("kafka: configure topic %s: %w (%s)", topic, translate(errors.Join(err, r.Err)), r.ErrMessage)
	}
	for _, c := range alter {
		a.log.LogAttrs(ctx, slog.LevelInfo, "stated topic setting", slog.String("topic", topic),
			slog.String("setting", c.Name), slog.String("from", stated[c.Name]), slog.String("to", *c.Value))
	}
	return nil
}

// spreadTime is how long a broker may not know a topic that another one has told of.
const spreadTime = 15 * time.Second

func (a *Admin) describeConfigs(ctx context.Context, topic string) (kadm.ResourceConfig, error) {
	described, err := a.adm.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return kadm.ResourceConfig{}, translate(err)
	}
	rc, err := described.On(topic, nil)
	return rc, translate(cmp.Or(err, rc.Err))
}

// Topics describes the named topics; one that does not exist is absent from
// the answer.
func (a *Admin) Topics(ctx context.Context, names ...string) (map[string]TopicInfo, error) {
	return describe(ctx, a.adm, names...)
}

func describe(ctx context.Context, adm *kadm.Client, names ...string) (map[string]TopicInfo, error) {
	details, err := adm.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("kafka: list topics: %w", translate(err))
	}
	infos := make(map[string]TopicInfo, len(names))
	for _, d := range details {
		if errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			continue
		}
		if d.Err != nil {
			return nil, fmt.Errorf("kafka: topic %s: %w", d.Topic, translate(d.Err))
		}
		infos[d.Topic] = TopicInfo{Name: d.Topic, ID: TopicID(d.ID), Partitions: int32(len(d.Partitions))}
	}
	return infos, nil
}

// Admin asks a cluster about its topics and sets them up. Safe for concurrent
// use; close it when done.
type Admin struct {
	cfg Config
	log *slog.Logger
	cl  *kgo.Client
	adm *kadm.Client
}

// NewAdmin checks the configuration; it connects on the first call.
func NewAdmin(cfg Config) (*Admin, error) {
	cl, err := cfg.client()
	if err != nil {
		return nil, err
	}
	return &Admin{cfg: cfg, log: orDiscard(cfg.Logger), cl: cl, adm: kadm.NewClient(cl)}, nil
}

// Close ends the connections.
func (a *Admin) Close() { a.cl.Close() }

// Ping returns nil as soon as one broker answers.
func (a *Admin) Ping(ctx context.Context) error {
	if err := a.cl.Ping(ctx); err != nil {
		return fmt.Errorf("kafka: no broker answers: %w", translate(err))
	}
	return nil
}

// EndOffsets is the offset that the next record will get, by partition
// (the index). It fails unless every partition answered.
func (a *Admin) EndOffsets(ctx context.Context, topic string) ([]int64, error) {
	listed, err := a.adm.ListEndOffsets(ctx, topic)
	return offsetsOf(topic, listed, err)
}

// StartOffsets is the first offset that is still in the log, by partition.
func (a *Admin) StartOffsets(ctx context.Context, topic string) ([]int64, error) {
	listed, err := a.adm.ListStartOffsets(ctx, topic)
	return offsetsOf(topic, listed, err)
}

func offsetsOf(topic string, listed kadm.ListedOffsets, err error) ([]int64, error) {
	if err == nil {
		err = listed.Error()
	}
	if err == nil && len(listed[topic]) == 0 {
		err = kerr.UnknownTopicOrPartition
	}
	if err != nil {
		return nil, fmt.Errorf("kafka: list offsets of %s: %w", topic, translate(err))
	}
	offsets := make([]int64, len(listed[topic]))
	for p, o := range listed[topic] {
		if int(p) >= len(offsets) {
			return nil, fmt.Errorf("kafka: list offsets of %s: partitions are not 0..n-1", topic)
		}
		offsets[p] = o.Offset
	}
	return offsets, nil
}

// CommittedForLag is what [Consumer.CommitForLag] left for a group, by
// partition; -1 where nothing was committed. For dashboards only.
func (a *Admin) CommittedForLag(ctx context.Context, group, topic string) (map[int32]int64, error) {
	responses, err := a.adm.FetchOffsetsForTopics(ctx, group, topic)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("kafka: committed offsets of %s: %w", group, translate(err))
	}
	committed := make(map[int32]int64)
	for _, o := range responses.Sorted() {
		if o.Topic == topic {
			committed[o.Partition] = o.At
		}
	}
	return committed, nil
}

// DeleteTopics removes topics, with what is in them. Tests use it; the product
// never does.
func (a *Admin) DeleteTopics(ctx context.Context, names ...string) error {
	slices.Sort(names)
	responses, err := a.adm.DeleteTopics(ctx, names...)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		return fmt.Errorf("kafka: delete topics: %w", translate(err))
	}
	return nil
}

// sleep waits for d and reports true, or false as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
