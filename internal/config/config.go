// Package config says what a user can set and reads it: flags win over
// TALLYSTICK_* environment variables, these over the YAML file, that over the
// defaults. Without any setting the result is the embedded mode on loopback.
//
// One table (keys.go) names every setting with its default, its rule and its
// help text; flags, environment names and the check for unknown keys all come
// from it. A key "kafka.topic_prefix" is the flag --kafka-topic-prefix, the
// variable TALLYSTICK_KAFKA_TOPIC_PREFIX, and topic_prefix under kafka in the
// file.
//
// It promises that an error names the key, where the value came from and the
// rule it breaks, that all wrong settings are reported at once, and that an
// unknown key of the file is an error and not silence. Secrets come from files
// or from the environment. It never takes one from a flag (other users of the
// machine see those) or from the YAML file (which is shared and committed), and
// never prints one: they have the type Secret.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// ErrInvalid is what every error about a setting matches. The user's duty is
// to change the setting; the exit code is 2.
var ErrInvalid = errors.New("configuration")

// Secret is a setting that must not be seen. Every way of printing it shows
// stars; Reveal gives the value to the one place that needs it.
type Secret string

const stars = "***"

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the secret from %v and %s.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return stars
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Target says which stages one process runs.
type Target string

// The targets. All is every stage in one process, over the same Kafka hops.
const (
	TargetAll        Target = "all"
	TargetIngest     Target = "ingest"
	TargetLedger     Target = "ledger"
	TargetProcessors Target = "processors"
	TargetAPI        Target = "api"
	TargetProxy      Target = "proxy"
)

// Runs reports whether a process of target t runs the given stage.
func (t Target) Runs(stage Target) bool { return t == TargetAll || t == stage }

// Config is every setting, checked.
type Config struct {
	Target  Target `koanf:"target"`
	DataDir string `koanf:"data_dir"`
	// Name is the installation's: it begins the origin of each tenant's checkpoints.
	Name        string      `koanf:"name"`
	Ledger      Ledger      `koanf:"ledger"`
	Checkpoints Checkpoints `koanf:"checkpoints"`
	HTTP        Listener    `koanf:"http"`
	GRPC        Listener    `koanf:"grpc"`
	OTLP        OTLP        `koanf:"otlp"`
	TLS         ServerTLS   `koanf:"tls"`
	Engines     Engines     `koanf:"engines"`
	Kafka       Kafka       `koanf:"kafka"`
	Postgres    Postgres    `koanf:"postgres"`
	ClickHouse  ClickHouse  `koanf:"clickhouse"`
	Prices      Prices      `koanf:"prices"`
	KMS         KMS         `koanf:"kms"`
	Keys        KeyAges     `koanf:"keys"`
	Limits      Limits      `koanf:"limits"`
	Providers   Providers   `koanf:"providers"`
	Bedrock     Bedrock     `koanf:"bedrock"`
	GPUTime     GPUTime     `koanf:"gputime"`
	Proxy       Proxy       `koanf:"proxy"`
	Agents      Agents      `koanf:"agents"`
	Log         Log         `koanf:"log"`
}

// GPUTime is how samples of GPUs become usage events.
type GPUTime struct {
	WindowSeconds   int `koanf:"window_seconds"`   // that one event accounts for; divides an hour
	LatenessSeconds int `koanf:"lateness_seconds"` // that a window waits after its end
	MaxGapSeconds   int `koanf:"max_gap_seconds"`  // that one sample may stand for
	HorizonDays     int `koanf:"horizon_days"`     // that a sample may be old; for those who take samples too
}

// Bedrock is how tenants' invocation logs are read.
type Bedrock struct {
	Directory       string `koanf:"directory"` // "": no connection may name one
	IntervalSeconds int    `koanf:"interval_seconds"`
}

// OTLP is where OpenTelemetry is taken.
type OTLP struct {
	GRPCListen string `koanf:"grpc_listen"` // "": not served
	HTTPListen string `koanf:"http_listen"`
	// BilledElsewhere are gateways that report their calls themselves, HOST or HOST:PORT each.
	BilledElsewhere []string `koanf:"billed_elsewhere"`
}

// Proxy is the metering proxy.
type Proxy struct {
	Listen       string   `koanf:"listen"`    // "": not served
	Upstreams    []string `koanf:"upstreams"` // "NAME=URL" each, see ingest/proxy.ParseProvider
	FailOpen     bool     `koanf:"fail_open"`
	PowerSafe    bool     `koanf:"power_safe"`
	Digests      bool     `koanf:"digests"`
	SpoolDir     string   `koanf:"spool_dir"` // "" is below the data directory
	SpoolBytes   int64    `koanf:"spool_bytes"`
	MaxBodyBytes int64    `koanf:"max_body_bytes"`
	MaxCalls     int64    `koanf:"max_calls"`
}

// ProxySpool is the folder of what the proxy has metered and Kafka has not yet.
func (c *Config) ProxySpool() string {
	if c.Proxy.SpoolDir != "" {
		return c.Proxy.SpoolDir
	}
	return filepath.Join(c.DataDir, "proxy-spool")
}

// Listener is one address to serve on.
type Listener struct {
	Listen string `koanf:"listen"` // host:port; port 0 is any free one
}

// ServerTLS is the certificate of our own listeners.
type ServerTLS struct {
	CertFile string `koanf:"cert_file"`
	KeyFile  string `koanf:"key_file"`
}

// Engines sets the engines that run beside us.
type Engines struct {
	Dir                   string `koanf:"dir"`                     // "" searches for them
	KafkaPort             int    `koanf:"kafka_port"`              // 0 is the last run's, or any free one
	ClickHouseMemoryBytes int64  `koanf:"clickhouse_memory_bytes"` // 0 is the engine's default
}

// Kafka is how to reach a cluster; without brokers the embedded one is used.
type Kafka struct {
	Brokers        []string  `koanf:"brokers"`
	AllowPlaintext bool      `koanf:"allow_plaintext"`
	TLS            KafkaTLS  `koanf:"tls"`
	SASL           KafkaSASL `koanf:"sasl"`
	TopicPrefix    string    `koanf:"topic_prefix"`
	Partitions     int       `koanf:"partitions"`
	Replication    int       `koanf:"replication"` // 0: 1 embedded, else 3
}

// KafkaTLS protects the connections to brokers.
type KafkaTLS struct {
	Enabled    bool   `koanf:"enabled"`
	CAFile     string `koanf:"ca_file"`
	CertFile   string `koanf:"cert_file"`
	KeyFile    string `koanf:"key_file"`
	ServerName string `koanf:"server_name"`
}

// KafkaSASL says who we are to the brokers. The password file is given on, not
// read here, so that a rotated password needs no restart.
type KafkaSASL struct {
	Mechanism    string `koanf:"mechanism"`
	Username     string `koanf:"username"`
	Password     Secret `koanf:"password"`
	PasswordFile string `koanf:"password_file"`
}

// Postgres is a server's DSN; without one the embedded server is used.
type Postgres struct {
	DSN     Secret `koanf:"dsn"` // from the environment, or the content of DSNFile
	DSNFile string `koanf:"dsn_file"`
	BinDir  string `koanf:"bin_dir"` // a system Postgres for the embedded server
}

// ClickHouse is a server's DSN; without one the embedded engine is used.
type ClickHouse struct {
	DSN     Secret `koanf:"dsn"` // from the environment, or the content of DSNFile
	DSNFile string `koanf:"dsn_file"`
}

// Prices is where prices come from beside the built-in book.
type Prices struct {
	File     string `koanf:"file"`
	Form     string `koanf:"form"` // of pricing.Forms; "" is found out
	FourEyes bool   `koanf:"four_eyes"`
}

// Limits bound the work that ingest has in hand; what is over them is refused
// with 503 and never queued. What one request may hold is part of the API and
// no setting.
type Limits struct {
	InFlight      int   `koanf:"in_flight"`       // requests
	InFlightBytes int64 `koanf:"in_flight_bytes"` // of their bodies
}

// Ledger is how partitions are written.
type Ledger struct {
	Recover bool `koanf:"recover"` // replay what a restore put below its checkpoints
}

// Checkpoints says where signed checkpoints go.
type Checkpoints struct {
	Dir             string   `koanf:"dir"` // "" is below the data directory
	IntervalSeconds int      `koanf:"interval_seconds"`
	Witnesses       []string `koanf:"witnesses"` // "VKEY URL" each
}

// CheckpointDir is the append-only directory of signed checkpoints.
func (c *Config) CheckpointDir() string {
	if c.Checkpoints.Dir != "" {
		return c.Checkpoints.Dir
	}
	return filepath.Join(c.DataDir, "checkpoints")
}

// Log is how messages are written.
type Log struct {
	Level  slog.Level `koanf:"level"`
	Format string     `koanf:"format"` // text or json
}

// EmbeddedKafka reports that Kafka runs beside us because no broker was named.
func (c *Config) EmbeddedKafka() bool { return len(c.Kafka.Brokers) == 0 }

// EmbeddedPostgres reports that Postgres runs beside us because no DSN was given.
func (c *Config) EmbeddedPostgres() bool { return c.Postgres.DSN == "" }

// EmbeddedClickHouse reports that ClickHouse runs beside us because no DSN was
// given.
func (c *Config) EmbeddedClickHouse() bool { return c.ClickHouse.DSN == "" }

// ReplicationFactor is the replication of topics we create.
func (c *Config) ReplicationFactor() int {
	switch {
	case c.Kafka.Replication > 0:
		return c.Kafka.Replication
	case c.EmbeddedKafka():
		return 1
	default:
		return 3
	}
}

// Partitions of topics we create. The embedded broker syncs two files for every
// batch of a partition, one after the other, so few partitions with large batches
// answer sooner (docs/decisions/0010-embedded-partitions.md).
func (c *Config) Partitions() int {
	switch {
	case c.Kafka.Partitions > 0:
		return c.Kafka.Partitions
	case c.EmbeddedKafka():
		return EmbeddedPartitions
	default:
		return DefaultPartitions
	}
}

// Embedded reports the embedded mode: everything in one process, with an engine
// beside it. Only then may listeners go without TLS, on loopback.
func (c *Config) Embedded() bool {
	return c.Target == TargetAll && (c.EmbeddedKafka() || c.EmbeddedPostgres() || c.EmbeddedClickHouse())
}

// Sources is where Load reads from. The zero value is the defaults alone.
type Sources struct {
	// Flags is a parsed set that BindFlags was called on.
	Flags *pflag.FlagSet
	// Environ is "NAME=value" as os.Environ gives it; it also answers where
	// HOME and the XDG directories are.
	Environ []string
}

// Load reads and checks all settings. Every error matches ErrInvalid.
func Load(src Sources) (*Config, error) {
	env := environment(src.Environ)
	path, mustExist, err := filePath(src.Flags, env)
	if err != nil {
		return nil, err
	}
	file, err := readFile(path, mustExist)
	if err != nil {
		return nil, err
	}
	k := koanf.New(".")
	var problems []error
	for _, layer := range []struct {
		origin func(key) string
		values map[string]any
	}{
		{func(key) string { return "default" }, defaultValues(env)},
		{func(key) string { return path }, file},
		{func(x key) string { return x.envName() }, envValues(env)},
		{func(x key) string { return "--" + x.flagName() }, flagValues(src.Flags)},
	} {
		good, errs := coerceAll(layer.values, layer.origin)
		problems = append(problems, errs...)
		if err := k.Load(confmap.Provider(good, "."), nil); err != nil {
			problems = append(problems, invalid("", "%v", err))
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	c := &Config{}
	if err := k.Unmarshal("", c); err != nil {
		return nil, invalid("", "%v", err)
	}
	if err := c.readSecrets(); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// readFile gives the file's settings flat, and refuses keys it does not know.
func readFile(path string, mustExist bool) (map[string]any, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !mustExist {
		return nil, nil
	}
	if err != nil {
		return nil, invalid("config", "%v", err)
	}
	tree, err := yaml.Parser().Unmarshal(raw)
	if err != nil {
		return nil, invalid("config", "%s: %v", path, err)
	}
	k := koanf.New(".")
	if err := k.Load(confmap.Provider(tree, ""), nil); err != nil {
		return nil, invalid("config", "%s: %v", path, err)
	}
	flat := k.All()
	var problems []error
	for _, name := range sortedKeys(flat) {
		switch known, ok := keyNamed(name); {
		case !ok:
			problems = append(problems, invalid(name, "%s: unknown key%s", path, didYouMean(name)))
		case known.secret:
			problems = append(problems, invalid(name, "%s: a secret does not belong in this file; set %s_file or %s",
				path, name, known.envName()))
		}
	}
	return flat, errors.Join(problems...)
}

// readSecrets takes the content of secret files that are read once.
func (c *Config) readSecrets() error {
	var problems []error
	for _, s := range []struct {
		name string
		file string
		into *Secret
		read func(string) ([]byte, error)
	}{
		{"postgres.dsn_file", c.Postgres.DSNFile, &c.Postgres.DSN, os.ReadFile},
		{"clickhouse.dsn_file", c.ClickHouse.DSNFile, &c.ClickHouse.DSN, os.ReadFile},
		{"kms.passphrase_file", c.KMS.PassphraseFile, &c.KMS.Passphrase, readPrivate},
	} {
		if s.file == "" {
			continue
		}
		if *s.into != "" {
			problems = append(problems, invalid(s.name, "is set beside the secret itself; keep one"))
			continue
		}
		raw, err := s.read(s.file)
		if err != nil {
			problems = append(problems, invalid(s.name, "%v", err))
			continue
		}
		if *s.into = Secret(strings.TrimSpace(string(raw))); *s.into == "" {
			problems = append(problems, invalid(s.name, "%s is empty", s.file))
		}
	}
	return errors.Join(problems...)
}

// invalid is one problem with one key.
func invalid(name, format string, args ...any) error {
	text := fmt.Errorf(format, args...)
	if name == "" {
		return fmt.Errorf("%w: %w", ErrInvalid, text)
	}
	return fmt.Errorf("%w: %s: %w", ErrInvalid, name, text)
}
