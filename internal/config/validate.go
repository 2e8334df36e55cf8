package config

import (
	"errors"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// Bounds of settings.
const (
	maxPartitions        = 1024
	maxReplication       = 7
	minClickHouseByte    = 256 << 20
	maxInFlight          = 10_000
	maxCheckpointSeconds = 86_400
	maxBedrockSeconds    = 86_400
	maxGPUHorizonDays    = 365     // the edge takes events of 400 days
	minInFlightBytes     = 8 << 20 // one request with the largest body, twice
)

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._:/-]{0,198}[a-zA-Z0-9])?$`)

var topicPrefixForm = regexp.MustCompile(`^[a-zA-Z0-9._-]{0,200}$`)

// Validate checks every rule and reports all that are broken. Load has called
// it; a test that builds a Config by hand calls it itself.
func (c *Config) Validate() error {
	var p problems
	targets := []Target{TargetAll, TargetIngest, TargetLedger, TargetProcessors, TargetAPI, TargetProxy}
	p.want(slices.Contains(targets, c.Target), "target", "%q is not one of %v", c.Target, targets)
	p.want(filepath.IsAbs(c.DataDir), "data_dir", "%q is not an absolute path; without a home directory it must be set", c.DataDir)
	c.validateListeners(&p)
	c.validateAgents(&p)
	c.validateKafka(&p)
	c.validateEngines(&p)
	c.validateKMS(&p)
	p.want(nameForm.MatchString(c.Name), "name", "%q must be 1 to 200 of a-z A-Z 0-9 . - _ : / and begin and end with a letter or digit", c.Name)
	cp := c.Checkpoints
	p.want(cp.Dir == "" || filepath.IsAbs(cp.Dir), "checkpoints.dir", "%q is not an absolute path", cp.Dir)
	p.want(cp.IntervalSeconds >= 1 && cp.IntervalSeconds <= maxCheckpointSeconds, "checkpoints.interval_seconds",
		"must be 1 to %d, got %d", maxCheckpointSeconds, cp.IntervalSeconds)
	g := c.GPUTime
	p.want(g.WindowSeconds >= 1 && 3600%max(1, g.WindowSeconds) == 0, "gputime.window_seconds", "%d does not divide an hour", g.WindowSeconds)
	p.want(g.LatenessSeconds >= 1 && g.LatenessSeconds <= 3600, "gputime.lateness_seconds", "%d is not 1 to 3600", g.LatenessSeconds)
	p.want(g.MaxGapSeconds >= 1 && g.MaxGapSeconds <= g.WindowSeconds, "gputime.max_gap_seconds", "%d is not 1 to gputime.window_seconds", g.MaxGapSeconds)
	p.want(g.HorizonDays >= 1 && g.HorizonDays <= maxGPUHorizonDays, "gputime.horizon_days", "%d is not 1 to %d", g.HorizonDays, maxGPUHorizonDays)
	p.want(c.Bedrock.IntervalSeconds >= 1 && c.Bedrock.IntervalSeconds <= maxBedrockSeconds, "bedrock.interval_seconds",
		"must be 1 to %d, got %d", maxBedrockSeconds, c.Bedrock.IntervalSeconds)
	p.want(c.Bedrock.Directory == "" || filepath.IsAbs(c.Bedrock.Directory), "bedrock.directory", "%q is not an absolute path", c.Bedrock.Directory)
	c.validateProxy(&p)
	l := c.Limits
	p.want(l.InFlight >= 1 && l.InFlight <= maxInFlight, "limits.in_flight", "must be 1 to %d, got %d", maxInFlight, l.InFlight)
	p.want(l.InFlightBytes >= minInFlightBytes, "limits.in_flight_bytes", "must be at least %d, got %d", minInFlightBytes, l.InFlightBytes)
	p.want(c.Log.Format == "text" || c.Log.Format == "json", "log.format", "must be text or json, got %q", c.Log.Format)
	return errors.Join(p...)
}

// problems collects what is wrong.
type problems []error

// want records a problem unless ok.
func (p *problems) want(ok bool, name, format string, args ...any) {
	if !ok {
		*p = append(*p, invalid(name, format, args...))
	}
}

func (c *Config) validateListeners(p *problems) {
	certified := c.TLS.CertFile != ""
	p.want(certified == (c.TLS.KeyFile != ""), "tls.cert_file", "tls.cert_file and tls.key_file go together")
	taken := map[string]string{}
	for _, l := range []struct{ name, addr string }{
		{"http.listen", c.HTTP.Listen}, {"grpc.listen", c.GRPC.Listen}, {"proxy.listen", c.Proxy.Listen}, {"agents.listen", c.Agents.Listen},
		{"otlp.grpc_listen", c.OTLP.GRPCListen}, {"otlp.http_listen", c.OTLP.HTTPListen},
	} {
		if l.addr == "" && l.name != "http.listen" && l.name != "grpc.listen" {
			continue
		}
		host, port, err := net.SplitHostPort(l.addr)
		n, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil {
			p.want(false, l.name, "%q is not host:port with a port of 0 to 65535", l.addr)
			continue
		}
		p.want(certified || isLoopback(host), l.name,
			"%q is not loopback and there is no certificate; set tls.cert_file and tls.key_file", l.addr)
		p.want(certified || c.Embedded(), l.name,
			"needs tls.cert_file and tls.key_file: only the embedded mode goes without TLS, on loopback")
		p.want(n == 0 || taken[l.addr] == "", l.name, "%q is %s already", l.addr, taken[l.addr])
		taken[l.addr] = l.name
	}
}

// minSpoolBytes is a spool of some seconds of calls.
const minSpoolBytes = 1 << 20

func (c *Config) validateProxy(p *problems) {
	x := c.Proxy
	p.want(x.Listen != "" || c.Target != TargetProxy, "proxy.listen", "is needed with target proxy")
	p.want(x.SpoolDir == "" || filepath.IsAbs(x.SpoolDir), "proxy.spool_dir", "%q is not an absolute path", x.SpoolDir)
	p.want(x.SpoolBytes >= minSpoolBytes, "proxy.spool_bytes", "must be at least %d, got %d", minSpoolBytes, x.SpoolBytes)
	p.want(x.MaxBodyBytes >= 1 && x.MaxBodyBytes <= 512<<20, "proxy.max_body_bytes", "must be 1 to %d, got %d", 512<<20, x.MaxBodyBytes)
	p.want(x.MaxCalls >= 1, "proxy.max_calls", "must be positive, got %d", x.MaxCalls)
}

func (c *Config) validateKafka(p *problems) {
	k := &c.Kafka
	for _, b := range k.Brokers {
		host, port, err := net.SplitHostPort(b)
		_, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil || host == "" {
			p.want(false, "kafka.brokers", "%q is not host:port", b)
			continue
		}
		p.want(k.TLS.Enabled || k.AllowPlaintext || isLoopback(host), "kafka.brokers",
			"%q is not loopback and TLS is off; set kafka.tls.enabled, or kafka.allow_plaintext on a network you trust", b)
	}
	t := k.TLS
	p.want(t.Enabled || t == KafkaTLS{}, "kafka.tls.enabled", "is false but other kafka.tls settings are given")
	p.want((t.CertFile == "") == (t.KeyFile == ""), "kafka.tls.cert_file", "kafka.tls.cert_file and kafka.tls.key_file go together")
	c.validateSASL(p)
	p.want(topicPrefixForm.MatchString(k.TopicPrefix), "kafka.topic_prefix", "%q must be at most 200 of a-z A-Z 0-9 . _ -", k.TopicPrefix)
	p.want(k.Partitions >= 0 && k.Partitions <= maxPartitions, "kafka.partitions", "must be 0 to %d, got %d", maxPartitions, k.Partitions)
	p.want(k.Replication >= 0 && k.Replication <= maxReplication, "kafka.replication", "must be 0 to %d, got %d", maxReplication, k.Replication)
	p.want(!c.EmbeddedKafka() || k.Replication <= 1, "kafka.replication", "the embedded Kafka is one broker, got %d", k.Replication)
}

func (c *Config) validateSASL(p *problems) {
	s := c.Kafka.SASL
	if s.Mechanism == "" {
		p.want(s == KafkaSASL{}, "kafka.sasl.mechanism", "is empty but other kafka.sasl settings are given")
		return
	}
	mechanisms := []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}
	p.want(slices.Contains(mechanisms, s.Mechanism), "kafka.sasl.mechanism", "%q is not one of %v", s.Mechanism, mechanisms)
	p.want(s.Username != "", "kafka.sasl.username", "is needed with a mechanism")
	p.want((s.Password == "") != (s.PasswordFile == ""), "kafka.sasl.password_file",
		"exactly one of kafka.sasl.password_file and %sKAFKA_SASL_PASSWORD is needed", EnvPrefix)
}

// validateEngines checks that a split process has servers to meet the others
// at: engines inside one process cannot be shared by several.
func (c *Config) validateEngines(p *problems) {
	e := c.Engines
	p.want(e.KafkaPort >= 0 && e.KafkaPort <= 65535, "engines.kafka_port", "must be 0 to 65535, got %d", e.KafkaPort)
	p.want(e.ClickHouseMemoryBytes == 0 || e.ClickHouseMemoryBytes >= minClickHouseByte,
		"engines.clickhouse_memory_bytes", "must be 0 or at least %d, got %d", minClickHouseByte, e.ClickHouseMemoryBytes)
	p.want(c.Postgres.BinDir == "" || filepath.IsAbs(c.Postgres.BinDir), "postgres.bin_dir", "%q is not an absolute path", c.Postgres.BinDir)
	if c.Target == TargetAll {
		return
	}
	p.want(!c.EmbeddedKafka(), "kafka.brokers", "is needed with target %q: the embedded Kafka lives in one process with target all", c.Target)
	p.want(!c.EmbeddedPostgres(), "postgres.dsn_file", "is needed with target %q (or %sPOSTGRES_DSN)", c.Target, EnvPrefix)
	reads := c.Target == TargetProcessors || c.Target == TargetAPI
	p.want(!reads || !c.EmbeddedClickHouse(), "clickhouse.dsn_file", "is needed with target %q (or %sCLICKHOUSE_DSN)", c.Target, EnvPrefix)
}

// isLoopback accepts loopback addresses and the name localhost.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
