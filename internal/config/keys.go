package config

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// EnvPrefix begins the name of every environment variable that is read.
const EnvPrefix = "TALLYSTICK_"

// Defaults that others refer to.
const (
	DefaultHTTPListen    = "127.0.0.1:8321"
	DefaultGRPCListen    = "127.0.0.1:8322"
	DefaultPartitions    = 12 // of Kafka brokers
	EmbeddedPartitions   = 4
	DefaultInFlight      = 64
	DefaultInFlightBytes = 256 << 20
	// DefaultName begins origins where an installation has no name.
	DefaultName              = "tallystick.local"
	DefaultCheckpointSeconds = 10
	DefaultBedrockSeconds    = 60
	// Of GPU time.
	DefaultGPUWindowSeconds   = 300
	DefaultGPULatenessSeconds = 120
	DefaultGPUMaxGapSeconds   = 120
	DefaultGPUHorizonDays     = 35
	// Of OTLP: the ports that exporters look at.
	DefaultOTLPGRPCListen = "127.0.0.1:4317"
	DefaultOTLPHTTPListen = "127.0.0.1:4318"
	// Of the proxy.
	DefaultProxyListen  = "127.0.0.1:8323"
	DefaultSpoolBytes   = 1 << 30
	DefaultMaxBodyBytes = 32 << 20
	DefaultMaxCalls     = 20_000
)

// form is how a value is written.
type form int

const (
	text form = iota
	number
	yesNo
	list  // comma-separated in flags and environment
	level // a log level
)

// key is one setting.
type key struct {
	name   string
	form   form
	def    any
	secret bool // environment only
	help   string
}

// keys is every setting there is, in the order of the help text.
var keys = []key{
	{"target", text, "all", false, "stages to run: all, ingest, ledger, processors, api or proxy"},
	{"data_dir", text, "", false, "directory of the embedded engines' data and the keys (default: the XDG data directory)"},
	{"name", text, DefaultName, false, "the installation's name: begins the origin of every signed checkpoint, and stays for ever"},
	{"http.listen", text, DefaultHTTPListen, false, "address of REST, the ingest API and the page"},
	{"grpc.listen", text, DefaultGRPCListen, false, "address of gRPC"},
	{"otlp.grpc_listen", text, DefaultOTLPGRPCListen, false, "address of OTLP by gRPC (empty: not served)"},
	{"otlp.http_listen", text, DefaultOTLPHTTPListen, false, "address of OTLP by HTTP, beside http.listen (empty: only there)"},
	{"otlp.billed_elsewhere", list, []string{}, false, "HOST[:PORT] by which programs reach the metering proxy (beside proxy.listen) and other gateways that report calls here: what OTLP says of calls there is not billed again"},
	{"tls.cert_file", text, "", false, "PEM certificate of both listeners; needed outside loopback"},
	{"tls.key_file", text, "", false, "PEM key of tls.cert_file"},
	{"engines.dir", text, "", false, "where the engine packages are installed (default: found beside the program)"},
	{"engines.kafka_port", number, 0, false, "loopback port of the embedded Kafka (0: the last run's, or any free one)"},
	{"engines.clickhouse_memory_bytes", number, 0, false, "memory limit of the embedded ClickHouse (0: its default)"},
	{"kafka.brokers", list, []string{}, false, "host:port of Kafka brokers (default: embedded)"},
	{"kafka.allow_plaintext", yesNo, false, false, "speak to brokers outside loopback without TLS"},
	{"kafka.tls.enabled", yesNo, false, false, "use TLS 1.3 to the brokers"},
	{"kafka.tls.ca_file", text, "", false, "PEM roots in place of the system's"},
	{"kafka.tls.cert_file", text, "", false, "PEM client certificate"},
	{"kafka.tls.key_file", text, "", false, "PEM key of kafka.tls.cert_file"},
	{"kafka.tls.server_name", text, "", false, "name to verify in place of the broker's host"},
	{"kafka.sasl.mechanism", text, "", false, "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"},
	{"kafka.sasl.username", text, "", false, "SASL user"},
	{"kafka.sasl.password", text, "", true, "SASL password"},
	{"kafka.sasl.password_file", text, "", false, "file with the SASL password, read again at each login"},
	{"kafka.topic_prefix", text, "", false, "put before every topic's name"},
	{"kafka.partitions", number, 0, false, "partitions of topics; 0 means what they have, and when they are created 12, or 4 with the embedded broker"},
	{"kafka.replication", number, 0, false, "replication of topics when they are created (0: 1 embedded, else 3)"},
	{"postgres.dsn", text, "", true, "Postgres DSN (default: embedded)"},
	{"postgres.dsn_file", text, "", false, "file with the Postgres DSN"},
	{"postgres.bin_dir", text, "", false, "run the embedded Postgres from these system binaries (15 or later)"},
	{"clickhouse.dsn", text, "", true, "ClickHouse DSN (default: embedded)"},
	{"clickhouse.dsn_file", text, "", false, "file with the ClickHouse DSN"},
	{"prices.file", text, "", false, "price list to begin with in place of the built-in book; a book that was approved (tallystick prices) goes before it"},
	{"prices.form", text, "", false, "its form: book, litellm, genai-prices, models.dev, csv or yaml (default: found out)"},
	{"prices.four_eyes", yesNo, false, false, "somebody else than who proposed prices must approve them"},
	{"kms.kind", text, KMSLocal, false, "what wraps the tenants' root keys: local (a master key in the data directory), aws, gcp or vault (also OpenBao)"},
	{"kms.key", text, "", false, "the key there: an ARN, projects/…/cryptoKeys/…, or MOUNT/NAME of a transit engine"},
	{"kms.region", text, "", false, "AWS region, where kms.key is no ARN"},
	{"kms.endpoint", text, "", false, "URL of Vault or OpenBao; of another endpoint than the cloud's own"},
	{"kms.ca_file", text, "", false, "PEM roots in place of the system's"},
	{"kms.namespace", text, "", false, "namespace of Vault or OpenBao"},
	{"kms.token", text, "", true, "token of Vault or OpenBao"},
	{"kms.token_file", text, "", false, "file with that token, read again at each call"},
	{"kms.passphrase", text, "", true, "passphrase that seals the local master key"},
	{"kms.passphrase_file", text, "", false, "file with that passphrase, mode 0600"},
	{"kms.timeout_ms", number, defaultKMSTimeoutMS, false, "how long one call of the key service may take"},
	{"kms.previous", list, []string{}, false, "KIND:KEY of key services that still open keys, until tallystick keys rewrap"},
	{"keys.mac_days", number, DefaultProvingDays, false, "age at which a tenant's MAC keys change (0: never)"},
	{"keys.checkpoint_days", number, DefaultProvingDays, false, "age at which the keys that sign checkpoints change (0: never)"},
	{"keys.audit_days", number, DefaultProvingDays, false, "age at which the keys of the audit log change (0: never)"},
	{"keys.sealing_days", number, DefaultSealingDays, false, "age at which sealing keys change (0: never)"},
	{"providers.private_networks", yesNo, false, false, "let provider keys go to base URLs in private networks and on this machine, and by http"},
	{"limits.in_flight", number, DefaultInFlight, false, "ingest requests worked on at once; more get 503"},
	{"limits.in_flight_bytes", number, DefaultInFlightBytes, false, "bytes of their bodies"},
	{"ledger.recover", yesNo, false, false, "after a restore: replay partitions that are below their published checkpoints, in place of halting"},
	{"checkpoints.dir", text, "", false, "append-only directory of signed checkpoints (default: checkpoints in the data directory)"},
	{"checkpoints.interval_seconds", number, DefaultCheckpointSeconds, false, "how often new entries are signed"},
	{"checkpoints.witnesses", list, []string{}, false, "witnesses that cosign checkpoints, each \"VKEY URL\""},
	{"gputime.window_seconds", number, DefaultGPUWindowSeconds, false, "span that one event of GPU time accounts for; divides an hour"},
	{"gputime.lateness_seconds", number, DefaultGPULatenessSeconds, false, "how long such a span waits for samples after its end"},
	{"gputime.max_gap_seconds", number, DefaultGPUMaxGapSeconds, false, "longest time that one sample of a GPU may stand for"},
	{"gputime.horizon_days", number, DefaultGPUHorizonDays, false, "how old a sample of a GPU may be: older ones are refused, and so long are samples kept"},
	{"bedrock.directory", text, "", false, "directory of Bedrock invocation logs that connections may name folders of (default: none may)"},
	{"bedrock.interval_seconds", number, DefaultBedrockSeconds, false, "pause between two readings of a connection to Bedrock logs"},
	{"proxy.listen", text, DefaultProxyListen, false, "address of the metering proxy (empty: not served)"},
	{"proxy.upstreams", list, []string{}, false, "providers beside the known ones, or elsewhere: each \"NAME=URL [auth=bearer|x-api-key|x-goog-api-key|api-key|sigv4] [like=HOST] [region=REGION]\""},
	{"proxy.fail_open", yesNo, false, false, "forward calls while the spool is full; what is missing then is summed up in the ledger"},
	{"proxy.power_safe", yesNo, false, false, "end a response only when its usage is fsync'd, in place of written and about to be"},
	{"proxy.digests", yesNo, false, false, "let tenants keep keyed digests of prompts (providers capture), to find equal ones and those that begin alike"},
	{"proxy.spool_dir", text, "", false, "folder of usage that is not in Kafka yet (default: proxy-spool in the data directory)"},
	{"proxy.spool_bytes", number, DefaultSpoolBytes, false, "most that the folder may hold; then calls are refused"},
	{"proxy.max_body_bytes", number, DefaultMaxBodyBytes, false, "largest request that the proxy forwards"},
	{"proxy.max_calls", number, DefaultMaxCalls, false, "calls in hand at once; more get 503"},
	{"agents.listen", text, DefaultAgentsListen, false, "address that GPU agents connect to (empty: not served)"},
	{"agents.pepper", text, "", true, "what agents' secrets are made of; the one before may follow it after a space, and lives for 24 hours"},
	{"agents.pepper_file", text, "", false, "file with that, mode 0600, read again every ten seconds (default: agent.pepper in the data directory)"},
	{"agents.pepper_vault", text, "", false, "MOUNT/PATH#FIELD of a secret with that in a KV engine (version 2) of the Vault or OpenBao of kms.endpoint, read as often"},
	{"agents.client_certs", text, DefaultAgentsClientCerts, false, "client certificates of agents: off, optional or required, always on top of their secret"},
	{"agents.client_ca_file", text, "", false, "PEM certificates of those who issue them"},
	{"agents.connections_per_address", number, DefaultAgentsPerAddress, false, "connections of one source address"},
	{"agents.tenant_samples_per_second", number, DefaultTenantSampleRate, false, "samples of all agents of a tenant; what is over it comes again later"},
	{"agents.agent_samples_per_second", number, DefaultAgentSampleRate, false, "samples of one agent"},
	{"log.level", level, slog.LevelInfo, false, "debug, info, warn or error"},
	{"log.format", text, "text", false, "text or json"},
}

// envName is the variable of a key.
func (k key) envName() string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

// flagName is the flag of a key, without dashes in front.
func (k key) flagName() string { return strings.NewReplacer(".", "-", "_", "-").Replace(k.name) }

func keyNamed(name string) (key, bool) {
	i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
	if i < 0 {
		return key{}, false
	}
	return keys[i], true
}

// BindFlags defines --config and a flag for every setting but the secrets.
func BindFlags(fs *pflag.FlagSet) {
	fs.String("config", "", "configuration file (default: tallystick/config.yaml in the XDG config directory, if it exists)")
	for _, k := range keys {
		if k.secret {
			continue
		}
		help := k.help + " (" + k.envName() + ")"
		switch k.form {
		case yesNo:
			fs.Bool(k.flagName(), k.def.(bool), help)
		case list:
			fs.StringSlice(k.flagName(), k.def.([]string), help)
		case number:
			fs.String(k.flagName(), strconv.Itoa(k.def.(int)), help)
			fs.Lookup(k.flagName()).Value = numberFlag{fs.Lookup(k.flagName()).Value}
		default:
			fs.String(k.flagName(), fmt.Sprint(k.def), help)
		}
	}
}

// numberFlag shows "int" in the help text; the value is checked with all
// others, so that one rule and one wording serve flags, environment and file.
type numberFlag struct{ pflag.Value }

// Type implements pflag.Value.
func (numberFlag) Type() string { return "int" }

// flagValues is what the user gave by flag.
func flagValues(fs *pflag.FlagSet) map[string]any {
	values := map[string]any{}
	if fs == nil {
		return values
	}
	for _, k := range keys {
		f := fs.Lookup(k.flagName())
		if f == nil || !f.Changed {
			continue
		}
		if s, ok := f.Value.(pflag.SliceValue); ok {
			values[k.name] = s.GetSlice()
		} else {
			values[k.name] = f.Value.String()
		}
	}
	return values
}

// environment indexes "NAME=value" pairs; the last of a name counts.
func environment(pairs []string) map[string]string {
	env := make(map[string]string, len(pairs))
	for _, p := range pairs {
		if name, value, ok := strings.Cut(p, "="); ok {
			env[name] = value
		}
	}
	return env
}

// envValues is what the user gave by environment. An empty variable is unset.
func envValues(env map[string]string) map[string]any {
	values := map[string]any{}
	for _, k := range keys {
		if v := env[k.envName()]; v != "" {
			values[k.name] = v
		}
	}
	return values
}

// defaultValues is the table's defaults with the directories resolved.
func defaultValues(env map[string]string) map[string]any {
	values := map[string]any{}
	for _, k := range keys {
		values[k.name] = k.def
	}
	base := env["XDG_DATA_HOME"]
	if !filepath.IsAbs(base) {
		base = filepath.Join(env["HOME"], ".local", "share")
	}
	values["data_dir"] = filepath.Join(base, "tallystick")
	if !filepath.IsAbs(base) {
		values["data_dir"] = "" // no home: Validate asks for one
	}
	return values
}

// filePath is where the file is, and whether its absence is an error.
func filePath(fs *pflag.FlagSet, env map[string]string) (path string, mustExist bool, err error) {
	if fs != nil {
		if f := fs.Lookup("config"); f != nil && f.Changed {
			return f.Value.String(), true, nil
		}
	}
	if p := env[EnvPrefix+"CONFIG"]; p != "" {
		return p, true, nil
	}
	base := env["XDG_CONFIG_HOME"]
	if !filepath.IsAbs(base) {
		base = filepath.Join(env["HOME"], ".config")
	}
	return filepath.Join(base, "tallystick", "config.yaml"), false, nil
}

// coerceAll brings values to their keys' forms.
func coerceAll(values map[string]any, origin func(key) string) (good map[string]any, problems []error) {
	good = make(map[string]any, len(values))
	for _, name := range sortedKeys(values) {
		k, ok := keyNamed(name)
		if !ok {
			continue // reported by readFile
		}
		v, rule := k.coerce(values[name])
		if rule != "" {
			shown := fmt.Sprintf("%v", values[name])
			if k.secret {
				shown = stars
			}
			problems = append(problems, invalid(name, "must be %s, got %q (from %s)", rule, shown, origin(k)))
			continue
		}
		good[name] = v
	}
	return good, problems
}

// coerce brings one value to the key's form, or says what the form is.
func (k key) coerce(v any) (_ any, rule string) {
	switch k.form {
	case yesNo:
		return coerceBool(v)
	case number:
		return coerceNumber(v)
	case list:
		return coerceList(v)
	case level:
		return coerceLevel(v)
	default:
		switch v := v.(type) {
		case string:
			return v, ""
		case nil:
			return "", ""
		case int:
			return strconv.Itoa(v), ""
		}
		return nil, "text"
	}
}

func coerceBool(v any) (any, string) {
	switch v := v.(type) {
	case bool:
		return v, ""
	case string:
		if b, err := strconv.ParseBool(v); err == nil {
			return b, ""
		}
	}
	return nil, "true or false"
}

func coerceNumber(v any) (any, string) {
	switch v := v.(type) {
	case int:
		return int64(v), ""
	case uint64:
		if v <= math.MaxInt64 {
			return int64(v), ""
		}
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n, ""
		}
	}
	return nil, "a whole number"
}

func coerceList(v any) (any, string) {
	switch v := v.(type) {
	case nil:
		return []string{}, ""
	case []string:
		return v, ""
	case string:
		items := strings.Split(v, ",")
		for i := range items {
			items[i] = strings.TrimSpace(items[i])
		}
		return items, ""
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, "a list of texts"
			}
			items[i] = s
		}
		return items, ""
	}
	return nil, "a list"
}

func coerceLevel(v any) (any, string) {
	const rule = "debug, info, warn or error"
	switch v := v.(type) {
	case slog.Level:
		return v, ""
	case string:
		var l slog.Level
		if err := l.UnmarshalText([]byte(v)); err == nil && l%4 == 0 {
			return l, ""
		}
	}
	return nil, rule
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// didYouMean names a known key that differs by little.
func didYouMean(name string) string {
	last := name[strings.LastIndexByte(name, '.')+1:]
	squash := strings.NewReplacer("-", "", "_", "", ".", "")
	for _, k := range keys {
		sameWord := strings.EqualFold(squash.Replace(k.name), squash.Replace(name))
		if sameWord || (last != "listen" && last != "" && strings.HasSuffix(k.name, "."+last)) {
			return fmt.Sprintf(" (did you mean %s?)", k.name)
		}
	}
	return ""
}
