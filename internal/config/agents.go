package config

import (
	"path/filepath"
	"slices"
)

// Defaults of the agents' gateway.
const (
	DefaultAgentsListen      = "127.0.0.1:50051"
	DefaultAgentsPerAddress  = 256
	DefaultTenantSampleRate  = 50_000
	DefaultAgentSampleRate   = 5_000
	DefaultAgentsClientCerts = "off"
)

// clientCerts are the ways to ask agents for a client certificate.
var clientCerts = []string{"off", "optional", "required"}

// Agents is the gateway that GPU agents connect to. Nothing here lets an agent
// in that has not proved who it is.
type Agents struct {
	Listen string `koanf:"listen"` // "": not served
	// Pepper is what agents' secrets are made of, newest first; from the
	// environment, or read from PepperFile again and again.
	Pepper     Secret `koanf:"pepper"`
	PepperFile string `koanf:"pepper_file"` // "" is below the data directory
	// PepperVault is "MOUNT/PATH#FIELD" of a secret in the Vault or OpenBao of kms.*,
	// read again as PepperFile is.
	PepperVault string `koanf:"pepper_vault"`
	// ClientCerts come on top of the proof: off, optional or required.
	ClientCerts  string `koanf:"client_certs"`
	ClientCAFile string `koanf:"client_ca_file"`
	// PerAddress bounds connections of one source address.
	PerAddress int `koanf:"connections_per_address"`
	// Samples per second of a tenant and of one agent.
	TenantRate int `koanf:"tenant_samples_per_second"`
	AgentRate  int `koanf:"agent_samples_per_second"`
}

// PepperPath is the file with the agents' pepper, where no pepper is in the
// environment.
func (c *Config) PepperPath() string {
	if c.Agents.PepperFile != "" {
		return c.Agents.PepperFile
	}
	return filepath.Join(c.DataDir, "agent.pepper")
}

func (c *Config) validateAgents(p *problems) {
	a := c.Agents
	p.want(slices.Contains(clientCerts, a.ClientCerts), "agents.client_certs", "%q is not one of %v", a.ClientCerts, clientCerts)
	p.want((a.ClientCerts == DefaultAgentsClientCerts) == (a.ClientCAFile == ""), "agents.client_ca_file",
		"goes together with agents.client_certs optional or required")
	p.want(a.ClientCAFile == "" || c.TLS.CertFile != "", "agents.client_certs", "needs tls.cert_file and tls.key_file")
	p.want(a.PepperFile == "" || filepath.IsAbs(a.PepperFile), "agents.pepper_file", "%q is not an absolute path", a.PepperFile)
	p.want(a.Pepper == "" || a.PepperFile == "", "agents.pepper_file", "is set beside the pepper itself; keep one")
	p.want(a.PepperVault == "" || a.Pepper == "" && a.PepperFile == "", "agents.pepper_vault", "is set beside another place of the pepper; keep one")
	p.want(a.PepperVault == "" || c.KMS.Kind == KMSVault, "agents.pepper_vault", "needs kms.kind=%s: it is read from that server with that token", KMSVault)
	p.want(a.PerAddress >= 1, "agents.connections_per_address", "must be positive, got %d", a.PerAddress)
	p.want(a.TenantRate >= 1, "agents.tenant_samples_per_second", "must be positive, got %d", a.TenantRate)
	p.want(a.AgentRate >= 1, "agents.agent_samples_per_second", "must be positive, got %d", a.AgentRate)
}
