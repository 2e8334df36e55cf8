package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/provider"
	"github.com/tallystick/tallystick/internal/tenant"
)

// providerStore is what tenants let the proxy do, over the API's pool. What is
// changed here is in force in this process at once.
func (a *app) providerStore() *provider.Store {
	return provider.NewStore(a.appDB, a.ring, a.access.secrets, provider.Options{
		Private: a.cfg.Providers.PrivateNetworks, Changed: a.access.gate.Forget,
	})
}

// proxyGate is the gate as the proxy's Keys, Switch, Limits and Budgets: only
// this file knows both.
type proxyGate struct{ *provider.Gate }

var (
	_ proxy.Keys    = proxyGate{}
	_ proxy.Switch  = proxyGate{}
	_ proxy.Limits  = proxyGate{}
	_ proxy.Budgets = proxyGate{}
)

// ProviderKey implements proxy.Keys.
func (g proxyGate) ProviderKey(ctx context.Context, id tenant.ID, name string) (proxy.ProviderKey, error) {
	k, err := g.Key(ctx, id, name)
	if errors.Is(err, provider.ErrNoKey) {
		return proxy.ProviderKey{}, fmt.Errorf("%w: %w", proxy.ErrNoProviderKey, err)
	}
	if err != nil {
		return proxy.ProviderKey{}, err
	}
	return proxy.ProviderKey{ID: k.ID, Base: k.Base, Secret: k.Secret}, nil
}

// Killed implements proxy.Switch.
func (g proxyGate) Killed(ctx context.Context, c *proxy.Call) (policy, reason string, killed bool, err error) {
	of := callOf(c)
	w, killed, err := g.Stopped(ctx, &of)
	if !killed || err != nil {
		return "", "", false, err
	}
	return "kill switch of " + strings.TrimSpace(w.Scope+" "+w.Subject), w.Reason, true, nil
}

// Take implements proxy.Limits.
func (g proxyGate) Take(ctx context.Context, c *proxy.Call) (wait time.Duration, policy string, err error) {
	of := callOf(c)
	return g.Gate.Take(ctx, &of)
}

// Reserve implements proxy.Budgets.
func (g proxyGate) Reserve(ctx context.Context, c *proxy.Call, estimate money.Pico) (proxy.Reservation, error) {
	of := callOf(c)
	r, err := g.Gate.Reserve(ctx, &of, estimate)
	if errors.Is(err, provider.ErrBudget) {
		return nil, fmt.Errorf("%w: %w", proxy.ErrOverBudget, err)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func callOf(c *proxy.Call) provider.Call {
	return provider.Call{
		Tenant: c.Tenant, Credential: c.Credential, Provider: c.Provider, Model: c.Model, Team: c.Team, PromptTokens: c.PromptTokens,
	}
}
