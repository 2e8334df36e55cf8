package main

import (
	"github.com/tallystick/tallystick/internal/provider"
)

// providerStore is what tenants let the proxy do, over the API's pool. What is
// changed here is in force in this process at once.
func (a *app) providerStore() *provider.Store {
	return provider.NewStore(a.appDB, a.ring, a.access.secrets, provider.Options{
		Private: a.cfg.Providers.PrivateNetworks, Changed: a.access.gate.Forget,
	})
}
