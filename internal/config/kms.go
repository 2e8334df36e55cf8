package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Kinds of key services.
const (
	KMSLocal = "local"
	KMSAWS   = "aws"
	KMSGCP   = "gcp"
	KMSVault = "vault"
)

// Defaults of how old a key epoch may become, in days.
const (
	DefaultProvingDays = 365
	DefaultSealingDays = 90
)

const (
	defaultKMSTimeoutMS = 2000
	maxKMSTimeoutMS     = 60_000
	maxKeyDays          = 36_500
	minPassphraseBytes  = 12
)

// KMS is what wraps the tenants' root keys.
type KMS struct {
	Kind           string   `koanf:"kind"` // local, aws, gcp or vault
	Key            string   `koanf:"key"`  // what names the key there
	Region         string   `koanf:"region"`
	Endpoint       string   `koanf:"endpoint"`
	CAFile         string   `koanf:"ca_file"`
	Namespace      string   `koanf:"namespace"`
	Token          Secret   `koanf:"token"`
	TokenFile      string   `koanf:"token_file"` // given on, not read here: an agent renews it
	Passphrase     Secret   `koanf:"passphrase"` // from the environment, or the content of PassphraseFile
	PassphraseFile string   `koanf:"passphrase_file"`
	TimeoutMS      int      `koanf:"timeout_ms"`
	Previous       []string `koanf:"previous"` // "kind:key" of what still opens keys until they are rewrapped
}

// EndpointOf is the endpoint of a kind of service: the setting belongs to
// kms.kind, and to what is in kms.previous when that is local.
func (k *KMS) EndpointOf(kind string) string {
	if k.Kind == kind || k.Kind == KMSLocal {
		return k.Endpoint
	}
	return ""
}

// KeyAges say how old key epochs may become, in days; 0 is for ever.
type KeyAges struct {
	MACDays        int `koanf:"mac_days"`
	CheckpointDays int `koanf:"checkpoint_days"`
	AuditDays      int `koanf:"audit_days"`
	SealingDays    int `koanf:"sealing_days"`
}

func (c *Config) validateKMS(p *problems) {
	k := &c.KMS
	switch k.Kind {
	case KMSLocal:
		p.want(k.Key == "", "kms.kind", "is local but kms.key is given")
	case KMSAWS, KMSGCP, KMSVault:
		p.want(k.Key != "", "kms.key", "must name the key that kms.kind=%s uses", k.Kind)
	default:
		p.want(false, "kms.kind", "%q is not one of %v", k.Kind, []string{KMSLocal, KMSAWS, KMSGCP, KMSVault})
	}
	vault := k.Kind == KMSVault || slices.ContainsFunc(k.Previous, func(s string) bool { return strings.HasPrefix(s, KMSVault+":") })
	p.want(!vault || k.EndpointOf(KMSVault) != "", "kms.endpoint", "must be the address of Vault or OpenBao")
	p.want(!vault || (k.Token == "") != (k.TokenFile == ""), "kms.token_file", "set this or %sKMS_TOKEN, one of them", EnvPrefix)
	p.want(k.Passphrase == "" || len(k.Passphrase) >= minPassphraseBytes, "kms.passphrase_file", "the passphrase must have %d bytes or more", minPassphraseBytes)
	p.want(k.TimeoutMS >= 1 && k.TimeoutMS <= maxKMSTimeoutMS, "kms.timeout_ms", "must be 1 to %d, got %d", maxKMSTimeoutMS, k.TimeoutMS)
	for _, prev := range k.Previous {
		kind, name, _ := strings.Cut(prev, ":")
		p.want((kind == KMSAWS || kind == KMSGCP || kind == KMSVault) && name != "", "kms.previous", "%q is not aws:KEY, gcp:KEY or vault:KEY", prev)
	}
	for _, d := range []struct {
		name string
		days int
	}{
		{"keys.mac_days", c.Keys.MACDays}, {"keys.checkpoint_days", c.Keys.CheckpointDays},
		{"keys.audit_days", c.Keys.AuditDays}, {"keys.sealing_days", c.Keys.SealingDays},
	} {
		p.want(d.days >= 0 && d.days <= maxKeyDays, d.name, "must be 0 (never) to %d, got %d", maxKeyDays, d.days)
	}
}

// readPrivate is the content of a file that nobody but its owner may reach.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %v, want 0600", path, mode)
	}
	return os.ReadFile(path)
}
