package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

func startKafka(t *testing.T, opt KafkaOptions) *Kafka {
	t.Helper()
	k, err := StartKafka(testContext(t), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func kafkaClient(t *testing.T, seed string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(seed))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func createTopic(t *testing.T, client *kgo.Client, topic string, partitions int32) {
	t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = topic, partitions, 1
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(testContext(t), client)
	if err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatalf("creating %s: %v, %+v", topic, err, resp)
	}
}

// countRecords reads every partition of topic up to its end as it is now.
func countRecords(t *testing.T, seed, topic string) map[string]int {
	t.Helper()
	client := kafkaClient(t, seed)
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	for p := range int32(DefaultKafkaPartitions) {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Partition, rp.Timestamp = p, -1
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(testContext(t), client)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, p := range resp.Topics[0].Partitions {
		if p.ErrorCode != 0 {
			t.Fatalf("partition %d: error code %d", p.Partition, p.ErrorCode)
		}
		total += p.Offset
	}
	reader := kafkaClient(t, seed, kgo.ConsumeTopics(topic))
	seen := map[string]int{}
	for n := int64(0); n < total; {
		fetches := reader.PollFetches(testContext(t))
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { seen[string(r.Value)]++; n++ })
	}
	return seen
}

func TestKafkaKeepsRecordsPortAndPartitions(t *testing.T) {
	dir := t.TempDir()
	k := startKafka(t, KafkaOptions{DataDir: dir})
	first := k.Brokers()[0]
	if host, _, err := net.SplitHostPort(first); err != nil || !net.ParseIP(host).IsLoopback() {
		t.Errorf("listens on %s (%v), want a loopback address", first, err)
	}
	client := kafkaClient(t, first)
	createTopic(t, client, "a", -1)
	for i := range 100 {
		if err := client.ProduceSync(testContext(t), &kgo.Record{Topic: "a", Value: []byte(strconv.Itoa(i))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	client.Close()
	k.Close()
	k.Close() // twice is harmless

	k = startKafka(t, KafkaOptions{DataDir: dir})
	if k.Brokers()[0] != first {
		t.Errorf("the port changed from %s to %s", first, k.Brokers()[0])
	}
	if seen := countRecords(t, first, "a"); len(seen) != 100 {
		t.Errorf("%d of 100 records after a restart", len(seen))
	}
}

// serveKafka is a role: it runs a broker until it is killed or told to end.
func serveKafka(dir string) error {
	k, err := StartKafka(context.Background(), KafkaOptions{DataDir: dir})
	if err != nil {
		return err
	}
	fmt.Println(k.Brokers()[0])
	waitForEOF()
	k.Close()
	return nil
}

func TestKafkaAcknowledgedRecordsSurviveAKill(t *testing.T) {
	dir := t.TempDir()
	var acked atomic.Int64
	for round := range 3 {
		broker, seed := play(t, "kafka", dir)
		client := kafkaClient(t, seed, kgo.UnknownTopicRetries(-1))
		if round == 0 {
			createTopic(t, client, "a", -1)
		}
		base, enough := acked.Load(), make(chan struct{})
		ctx, cancel := context.WithCancel(testContext(t))
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for n := 0; ; n++ {
				record := &kgo.Record{Topic: "a", Value: []byte(strconv.FormatInt(base+int64(n), 10))}
				if client.ProduceSync(ctx, record).FirstErr() != nil {
					return
				}
				acked.Add(1)
				if n == 200 {
					close(enough)
				}
			}
		}()
		<-enough
		broker.kill(t)
		cancel()
		client.Close() // fails the record that is neither acknowledged nor lost
		<-stopped
	}
	k := startKafka(t, KafkaOptions{DataDir: dir})
	seen := countRecords(t, k.Brokers()[0], "a")
	for i := range acked.Load() {
		if seen[strconv.FormatInt(i, 10)] == 0 {
			t.Fatalf("record %d of %d acknowledged is lost", i, acked.Load())
		}
	}
}

func TestKafkaPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port

	dir := t.TempDir()
	_, err = StartKafka(t.Context(), KafkaOptions{DataDir: dir, Port: port})
	if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), strconv.Itoa(port)) {
		t.Errorf("a taken port: %v, want ErrPortTaken that names it", err)
	}
	// A remembered port that is taken gives way to a free one.
	if err := rememberPort(dir, taken.Addr().String()); err != nil {
		t.Fatal(err)
	}
	k := startKafka(t, KafkaOptions{DataDir: dir})
	if k.Brokers()[0] == taken.Addr().String() {
		t.Error("the broker claims a port that another process has")
	}
	k.Close()
	taken.Close()
	k = startKafka(t, KafkaOptions{DataDir: dir, Port: port})
	if want := net.JoinHostPort("127.0.0.1", strconv.Itoa(port)); k.Brokers()[0] != want {
		t.Errorf("listens on %s, want %s", k.Brokers()[0], want)
	}
}

func TestKafkaRefusesBadDirectories(t *testing.T) {
	dir := t.TempDir()
	k := startKafka(t, KafkaOptions{DataDir: dir})
	if _, err := StartKafka(t.Context(), KafkaOptions{DataDir: dir}); !errors.Is(err, ErrDataDirInUse) {
		t.Errorf("a directory in use: %v, want ErrDataDirInUse", err)
	}
	k.Close()
	meta := filepath.Join(dir, kafkaLogDirName, "meta.json")
	for content, want := range map[string]error{`{"version": 99}`: ErrNewerDataDir, `{`: ErrDataDirDamaged} {
		if err := os.WriteFile(meta, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := StartKafka(t.Context(), KafkaOptions{DataDir: dir}); !errors.Is(err, want) {
			t.Errorf("meta.json %s: %v, want %v", content, err, want)
		}
	}
	if _, err := StartKafka(t.Context(), KafkaOptions{}); !errors.Is(err, ErrDataDirDamaged) {
		t.Errorf("no directory: %v, want ErrDataDirDamaged", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartKafka(ctx, KafkaOptions{DataDir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
}

func TestKafkaAuthenticates(t *testing.T) {
	dir := t.TempDir()
	var password string
	for round := range 2 { // the second on the directory of the first
		k := startKafka(t, KafkaOptions{DataDir: dir, Authenticate: true})
		c := k.Credentials()
		if round == 0 {
			password = c.Password
		}
		if c.Mechanism != "SCRAM-SHA-256" || c.User == "" || len(c.Password) < 20 || c.Password != password {
			t.Errorf("round %d: credentials of length %d/%d, same as before: %v", round, len(c.User), len(c.Password), c.Password == password)
		}
		seed := k.Brokers()[0]
		ping := func(pass string) error {
			ctx, cancel := context.WithTimeout(testContext(t), 3*time.Second)
			defer cancel()
			auth := scram.Auth{User: c.User, Pass: pass}
			return kafkaClient(t, seed, kgo.SASL(auth.AsSha256Mechanism())).Ping(ctx)
		}
		if err := ping(c.Password); err != nil {
			t.Errorf("round %d, right password: %v", round, err)
		}
		if err := ping("wrong"); err == nil {
			t.Errorf("round %d: a wrong password was accepted", round)
		}
		ctx, cancel := context.WithTimeout(testContext(t), 3*time.Second)
		if err := kafkaClient(t, seed).Ping(ctx); err == nil {
			t.Errorf("round %d: a client without a password was accepted", round)
		}
		cancel()
		k.Close()
	}
	info, err := os.Stat(filepath.Join(dir, kafkaPasswordFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the password file has mode %v (%v)", info.Mode().Perm(), err)
	}
}

func TestRememberedPortIgnoresNonsense(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"", "x", "0", "-1", "65536", "99999999999999999999"} {
		if err := os.WriteFile(filepath.Join(dir, kafkaPortFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := rememberedPort(dir); got != 0 {
			t.Errorf("%q gives port %d", content, got)
		}
	}
}
