package config

// Providers bounds where the proxy may send provider keys.
type Providers struct {
	// PrivateNetworks lets base URLs be in private networks and on this machine,
	// and http. Link-local addresses stay refused.
	PrivateNetworks bool `koanf:"private_networks"`
}
