package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/tallystick/tallystick/internal/config"
)

// load runs Load as a program would: a home directory, a file, an environment
// and a command line.
func load(t testing.TB, file string, env, args []string) (*config.Config, error) {
	t.Helper()
	home := t.TempDir()
	if file != "" {
		write(t, filepath.Join(home, ".config", "tallystick", "config.yaml"), file)
	}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.BindFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("flags: %v", err)
	}
	return config.Load(config.Sources{Flags: fs, Environ: append([]string{"HOME=" + home}, env...)})
}

func mustLoad(t testing.TB, file string, env, args []string) *config.Config {
	t.Helper()
	c, err := load(t, file, env, args)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return c
}

func write(t testing.TB, path, content string) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsAreTheEmbeddedMode(t *testing.T) {
	c := mustLoad(t, "", nil, nil)
	if c.Target != config.TargetAll || !c.EmbeddedKafka() || !c.EmbeddedPostgres() || !c.EmbeddedClickHouse() {
		t.Errorf("not the embedded mode: %+v", c)
	}
	if c.HTTP.Listen != "127.0.0.1:8321" || c.GRPC.Listen != "127.0.0.1:8322" {
		t.Errorf("listeners %v %v", c.HTTP, c.GRPC)
	}
	if c.Partitions() != 4 || c.ReplicationFactor() != 1 || c.Log.Level != slog.LevelInfo {
		t.Errorf("defaults: %+v", c)
	}
	if !strings.HasSuffix(c.DataDir, filepath.Join(".local", "share", "tallystick")) {
		t.Errorf("data_dir = %q", c.DataDir)
	}
	if xdg := mustLoad(t, "", []string{"XDG_DATA_HOME=/xdg"}, nil); xdg.DataDir != "/xdg/tallystick" {
		t.Errorf("data_dir = %q with XDG_DATA_HOME", xdg.DataDir)
	}
}

func TestPrecedence(t *testing.T) {
	const file = "kafka: {partitions: 3}\n"
	env := []string{"TALLYSTICK_KAFKA_PARTITIONS=4"}
	flag := []string{"--kafka-partitions=5"}
	for _, c := range []struct {
		name string
		file string
		env  []string
		args []string
		want int
	}{
		{"default", "", nil, nil, 0},
		{"file", file, nil, nil, 3},
		{"environment over file", file, env, nil, 4},
		{"flag over environment", file, env, flag, 5},
		{"flag over file", file, nil, flag, 5},
		{"an empty variable is unset", file, []string{"TALLYSTICK_KAFKA_PARTITIONS="}, nil, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := mustLoad(t, c.file, c.env, c.args).Kafka.Partitions; got != c.want {
				t.Errorf("partitions = %d, want %d", got, c.want)
			}
		})
	}
}

func TestWholeFile(t *testing.T) {
	dir := t.TempDir()
	dsn := write(t, filepath.Join(dir, "dsn"), "postgres://u:hunter2@db/t\n")
	ch := write(t, filepath.Join(dir, "ch"), "clickhouse://u:hunter3@ch/t")
	phrase := write(t, filepath.Join(dir, "phrase"), "correct horse battery\n")
	if err := os.Chmod(phrase, 0o600); err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf(`
target: ledger
data_dir: /srv/tallystick
tls: {cert_file: /etc/cert.pem, key_file: /etc/key.pem}
kafka:
  brokers: [k1:9093, k2:9093]
  tls: {enabled: true, ca_file: /etc/ca.pem}
  sasl: {mechanism: SCRAM-SHA-512, username: tally, password_file: /run/secret}
  topic_prefix: eu-
postgres: {dsn_file: %s}
clickhouse: {dsn_file: %s}
limits: {in_flight: 10}
kms: {kind: local, passphrase_file: %s, previous: ['aws:arn:aws:kms:eu-central-1:1:key/2']}
keys: {sealing_days: 30, mac_days: 0}
log: {level: debug, format: json}
`, dsn, ch, phrase)
	c := mustLoad(t, file, nil, nil)
	if c.Target != config.TargetLedger || !c.Target.Runs(config.TargetLedger) || c.Target.Runs(config.TargetAPI) {
		t.Errorf("target %q", c.Target)
	}
	if !reflect.DeepEqual(c.Kafka.Brokers, []string{"k1:9093", "k2:9093"}) || c.EmbeddedKafka() || c.ReplicationFactor() != 3 || c.Partitions() != 12 {
		t.Errorf("kafka %+v", c.Kafka)
	}
	if c.Postgres.DSN.Reveal() != "postgres://u:hunter2@db/t" || c.ClickHouse.DSN.Reveal() != "clickhouse://u:hunter3@ch/t" {
		t.Error("the DSN files were not read as they are")
	}
	if c.KMS.Passphrase.Reveal() != "correct horse battery" || c.KMS.TimeoutMS != 2000 || c.Keys.SealingDays != 30 || c.Keys.MACDays != 0 || c.Keys.AuditDays != 365 {
		t.Errorf("keys %+v %+v", c.KMS, c.Keys)
	}
	if c.Kafka.SASL.PasswordFile != "/run/secret" || c.Log.Level != slog.LevelDebug || c.Limits.InFlight != 10 {
		t.Errorf("%+v", c)
	}
}

func TestLists(t *testing.T) {
	want := []string{"127.0.0.1:9092", "localhost:9093"}
	for name, c := range map[string]*config.Config{
		"environment": mustLoad(t, "", []string{"TALLYSTICK_KAFKA_BROKERS=127.0.0.1:9092, localhost:9093"}, nil),
		"flag":        mustLoad(t, "", nil, []string{"--kafka-brokers=127.0.0.1:9092,localhost:9093"}),
		"file":        mustLoad(t, "kafka: {brokers: ['127.0.0.1:9092', 'localhost:9093']}", nil, nil),
	} {
		if !reflect.DeepEqual(c.Kafka.Brokers, want) {
			t.Errorf("%s: %q", name, c.Kafka.Brokers)
		}
	}
}

// TestRefused is one row per rule: the error must match ErrInvalid and name
// the key and what is wrong.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	empty := write(t, filepath.Join(dir, "empty"), "\n")
	open := write(t, filepath.Join(dir, "open"), "a long enough hunter2\n")
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file string
		env  []string
		args []string
		want []string
	}{
		{"unknown key", "kafka: {brokrs: [a:1]}", nil, nil, []string{"kafka.brokrs", "unknown key", "config.yaml"}},
		{"unknown section", "redis: {url: x}", nil, nil, []string{"redis.url", "unknown key"}},
		{"misspelt", "kafka: {topicprefix: x}", nil, nil, []string{"did you mean kafka.topic_prefix?"}},
		{"misplaced", "topic_prefix: x", nil, nil, []string{"did you mean kafka.topic_prefix?"}},
		{"section as value", "kafka: yes", nil, nil, []string{"kafka", "unknown key"}},
		{"not yaml", "kafka: [", nil, nil, []string{"config", "config.yaml"}},
		{"a key twice", "target: all\ntarget: api", nil, nil, []string{"config", "target"}},
		{"secret in the file", "postgres: {dsn: 'postgres://u:hunter2@h/d'}", nil, nil, []string{"postgres.dsn", "postgres.dsn_file", "TALLYSTICK_POSTGRES_DSN"}},
		{"file missing", "", []string{"TALLYSTICK_CONFIG=/nonexistent/c.yaml"}, nil, []string{"config", "/nonexistent/c.yaml"}},
		{"file missing by flag", "", nil, []string{"--config=/nonexistent/c.yaml"}, []string{"/nonexistent/c.yaml"}},
		{"not a number", "", []string{"TALLYSTICK_KAFKA_PARTITIONS=many"}, nil, []string{"kafka.partitions", "a whole number", `"many"`, "TALLYSTICK_KAFKA_PARTITIONS"}},
		{"not a number by flag", "", nil, []string{"--kafka-partitions=1.5"}, []string{"kafka.partitions", "--kafka-partitions"}},
		{"fraction in file", "kafka: {partitions: 1.5}", nil, nil, []string{"kafka.partitions", "a whole number"}},
		{"not a bool", "kafka: {allow_plaintext: maybe}", nil, nil, []string{"kafka.allow_plaintext", "true or false"}},
		{"not a list", "kafka: {brokers: {a: 1}}", nil, nil, []string{"kafka.brokers"}},
		{"not a level", "", nil, []string{"--log-level=loud"}, []string{"log.level", "debug, info, warn or error"}},
		{"target", "", nil, []string{"--target=everything"}, []string{"target", "everything", "ingest"}},
		{"data dir", "data_dir: var/data", nil, nil, []string{"data_dir", "absolute"}},
		{"listen", "http: {listen: '8321'}", nil, nil, []string{"http.listen", "host:port"}},
		{"listen port", "grpc: {listen: '127.0.0.1:99999'}", nil, nil, []string{"grpc.listen", "65535"}},
		{"listen twice", "grpc: {listen: '127.0.0.1:8321'}", nil, nil, []string{"grpc.listen", "http.listen"}},
		{"open to the world", "http: {listen: '0.0.0.0:8321'}", nil, nil, []string{"http.listen", "loopback", "tls.cert_file"}},
		{"all interfaces", "http: {listen: ':8321'}", nil, nil, []string{"http.listen", "loopback"}},
		{"servers without TLS", "kafka: {brokers: ['127.0.0.1:9092']}", []string{"TALLYSTICK_POSTGRES_DSN=postgres://h/d", "TALLYSTICK_CLICKHOUSE_DSN=clickhouse://h/d"}, nil,
			[]string{"http.listen", "grpc.listen", "tls.cert_file", "embedded"}},
		{"half a certificate", "tls: {cert_file: /c.pem}", nil, nil, []string{"tls.cert_file", "tls.key_file"}},
		{"broker form", "kafka: {brokers: [kafka]}", nil, nil, []string{"kafka.brokers", "host:port"}},
		{"broker without TLS", "kafka: {brokers: ['10.0.0.1:9092']}", nil, nil, []string{"kafka.brokers", "kafka.tls.enabled"}},
		{"TLS fields without TLS", "kafka: {tls: {ca_file: /ca}}", nil, nil, []string{"kafka.tls.enabled"}},
		{"half a client certificate", "kafka: {tls: {enabled: true, key_file: /k}}", nil, nil, []string{"kafka.tls.cert_file"}},
		{"SASL mechanism", "kafka: {sasl: {mechanism: GSSAPI, username: u, password_file: /p}}", nil, nil, []string{"kafka.sasl.mechanism", "GSSAPI"}},
		{"SASL user", "kafka: {sasl: {mechanism: PLAIN, password_file: /p}}", nil, nil, []string{"kafka.sasl.username"}},
		{"SASL password", "kafka: {sasl: {mechanism: PLAIN, username: u}}", nil, nil, []string{"kafka.sasl.password_file", "TALLYSTICK_KAFKA_SASL_PASSWORD"}},
		{"SASL password twice", "kafka: {sasl: {mechanism: PLAIN, username: u, password_file: /p}}", []string{"TALLYSTICK_KAFKA_SASL_PASSWORD=hunter2"}, nil, []string{"kafka.sasl.password_file"}},
		{"SASL without mechanism", "kafka: {sasl: {username: u}}", nil, nil, []string{"kafka.sasl.mechanism"}},
		{"topic prefix", "kafka: {topic_prefix: 'a b'}", nil, nil, []string{"kafka.topic_prefix"}},
		{"partitions", "kafka: {partitions: -1}", nil, nil, []string{"kafka.partitions", "0 to 1024"}},
		{"replication embedded", "kafka: {replication: 3}", nil, nil, []string{"kafka.replication", "one broker"}},
		{"in flight", "limits: {in_flight: 0}", nil, nil, []string{"limits.in_flight", "1 to 10000"}},
		{"bytes in flight", "limits: {in_flight_bytes: 1000}", nil, nil, []string{"limits.in_flight_bytes"}},
		{"log format", "log: {format: xml}", nil, nil, []string{"log.format"}},
		{"memory", "engines: {clickhouse_memory_bytes: 1000}", nil, nil, []string{"engines.clickhouse_memory_bytes"}},
		{"bin dir", "postgres: {bin_dir: bin}", nil, nil, []string{"postgres.bin_dir", "absolute"}},
		{"key service", "kms: {kind: hsm}", nil, nil, []string{"kms.kind", "hsm", "vault"}},
		{"key service without a key", "kms: {kind: aws}", nil, nil, []string{"kms.key"}},
		{"a key for nobody", "kms: {key: transit/x}", nil, nil, []string{"kms.kind", "kms.key"}},
		{"vault without an address", "kms: {kind: vault, key: transit/x, token_file: /t}", nil, nil, []string{"kms.endpoint"}},
		{"vault without a token", "kms: {kind: vault, key: transit/x, endpoint: 'https://v'}", nil, nil, []string{"kms.token_file", "TALLYSTICK_KMS_TOKEN"}},
		{"a pepper in no vault", "kms: {kind: local}\nagents: {pepper_vault: 'secret/tallystick#pepper'}", nil, nil, []string{"agents.pepper_vault"}},
		{"a pepper in two places", "kms: {kind: vault, key: transit/x, endpoint: 'https://v', token_file: /t}\nagents: {pepper_vault: 'secret/x#y', pepper_file: /p}", nil, nil, []string{"agents.pepper_vault"}},
		{"vault of before without an address", "kms: {kind: aws, key: x, previous: ['vault:transit/x']}", nil, nil, []string{"kms.endpoint"}},
		{"token in the file", "kms: {token: hunter2}", nil, nil, []string{"kms.token", "TALLYSTICK_KMS_TOKEN"}},
		{"short passphrase", "", []string{"TALLYSTICK_KMS_PASSPHRASE=hunter2"}, nil, []string{"kms.passphrase_file", "12"}},
		{"passphrase file that others read", "kms: {passphrase_file: " + open + "}", nil, nil, []string{"kms.passphrase_file", "0600"}},
		{"previous key service", "kms: {previous: [transit/x]}", nil, nil, []string{"kms.previous", "vault:KEY"}},
		{"no time for the key service", "kms: {timeout_ms: 0}", nil, nil, []string{"kms.timeout_ms"}},
		{"age of keys", "keys: {sealing_days: -1}", nil, nil, []string{"keys.sealing_days", "never"}},
		{"split without Kafka", "target: ingest", nil, nil, []string{"kafka.brokers", "postgres.dsn_file"}},
		{"split without ClickHouse", "target: api", nil, nil, []string{"clickhouse.dsn_file"}},
		{"DSN twice", "postgres: {dsn_file: " + empty + "}", []string{"TALLYSTICK_POSTGRES_DSN=postgres://u:hunter2@h/d"}, nil, []string{"postgres.dsn_file"}},
		{"DSN file empty", "postgres: {dsn_file: " + empty + "}", nil, nil, []string{"postgres.dsn_file", "empty"}},
		{"DSN file missing", "clickhouse: {dsn_file: /nonexistent/dsn}", nil, nil, []string{"clickhouse.dsn_file", "/nonexistent/dsn"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := load(t, c.file, c.env, c.args)
			if !errors.Is(err, config.ErrInvalid) {
				t.Fatalf("Load = %+v, %v; want ErrInvalid", got, err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := load(t, "", nil, []string{"--target=x", "--log-format=y", "--limits-in-flight=0"})
	for _, name := range []string{"target", "log.format", "limits.in_flight"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not report %s", err, name)
		}
	}
}

func TestSecretsAreNeverShownNorFlags(t *testing.T) {
	c := mustLoad(t, "kafka: {sasl: {mechanism: PLAIN, username: u}}", []string{
		"TALLYSTICK_POSTGRES_DSN=postgres://u:hunter2@h/d",
		"TALLYSTICK_CLICKHOUSE_DSN=clickhouse://u:hunter2@h/d",
		"TALLYSTICK_KAFKA_SASL_PASSWORD=hunter2",
	}, nil)
	if !strings.Contains(c.Postgres.DSN.Reveal(), "hunter2") || c.Kafka.SASL.Password.Reveal() != "hunter2" {
		t.Fatal("the secrets were not read")
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %+v %#v %s", c, c, c, c.Postgres)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("config", "c", c, "dsn", c.Postgres.DSN)
	slog.New(slog.NewTextHandler(&out, nil)).Info("config", "c", c, "dsn", c.Postgres.DSN)
	if err := json.NewEncoder(&out).Encode(c); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("a secret is printed:\n%s", out.String())
	}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.BindFlags(fs)
	for _, name := range []string{"postgres-dsn", "clickhouse-dsn", "kafka-sasl-password"} {
		if fs.Lookup(name) != nil {
			t.Errorf("--%s puts a secret on the command line", name)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add("target: all\nkafka: {brokers: ['127.0.0.1:1'], partitions: 3}\n")
	f.Add("a: &a [*a]")
	f.Add("? {b: c}\n: d")
	f.Add("kafka: {1: 2}")
	f.Fuzz(func(t *testing.T, text string) {
		path := write(t, filepath.Join(t.TempDir(), "c.yaml"), text)
		c, err := config.Load(config.Sources{Environ: []string{"HOME=/h", "TALLYSTICK_CONFIG=" + path}})
		if (c == nil) == (err == nil) || (err != nil && !errors.Is(err, config.ErrInvalid)) {
			t.Errorf("Load = %v, %v", c, err)
		}
	})
}
