package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/tenant"
)

// agents are the register of GPU agents and the peppers of their secrets.
type agents struct {
	register *agentauth.Register
	peppers  *agentauth.Peppers // nil: this process knows none, and serves no agents
	gateway  *agent.Gateway
	addr     string
}

// openAgents reads the pepper where agents are registered or served. One that is
// named in the settings must be there; without a setting the embedded mode makes
// one, and other processes go without agents, which they say.
func (a *app) openAgents(ctx context.Context) error {
	if !a.cfg.Target.Runs(config.TargetAPI) && !a.cfg.Target.Runs(config.TargetIngest) {
		return nil
	}
	x, c := &a.agents, a.cfg.Agents
	x.register = agentauth.NewRegister(a.appDB, a.ring)
	source := agentauth.PepperFile(a.cfg.PepperPath())
	named := c.Pepper != "" || c.PepperFile != "" || c.PepperVault != ""
	var err error
	switch {
	case c.Pepper != "":
		source = agentauth.PepperText(c.Pepper.Reveal())
	case c.PepperVault != "":
		if source, err = pepperInVault(&a.cfg.KMS, c.PepperVault); err != nil {
			return fmt.Errorf("agents.pepper_vault: %w", err)
		}
	}
	if !named && a.cfg.Target == config.TargetAll {
		err = agentauth.CreatePepperFile(ctx, a.cfg.PepperPath(), x.register)
	}
	if err == nil {
		x.peppers, err = agentauth.LoadPeppers(ctx, source, x.register, a.log)
	}
	switch {
	case err == nil:
		a.start("agents' pepper", x.peppers.Run)
	case named || !errors.Is(err, agentauth.ErrPepper):
		return fmt.Errorf("the agents' pepper: %w", err)
	default:
		x.peppers = nil
		a.log.Error("GPU agents are not served: set agents.pepper_file", "err", err)
	}
	return nil
}

// startAgents serves the gateway of agents where the target has it.
func (a *app) startAgents(ctx context.Context, tlsConfig *tls.Config) (err error) {
	x, c := &a.agents, a.cfg.Agents
	if !a.cfg.Target.Runs(config.TargetIngest) || x.peppers == nil || c.Listen == "" {
		return nil
	}
	if tlsConfig != nil {
		if tlsConfig, err = agent.WithClientCerts(tlsConfig, c.ClientCerts, c.ClientCAFile); err != nil {
			return fmt.Errorf("agents.client_ca_file: %w", err)
		}
	}
	x.gateway, err = agent.New(a.edgeSink(), x.peppers, x.register, agent.Options{
		Topic: a.kafkaCfg.Topics().Telemetry, Partitions: a.telemetryPartitions, GatewayID: a.edgeID(), TLS: tlsConfig,
		TenantRate: c.TenantRate, StreamRate: c.AgentRate, PerAddress: c.PerAddress,
		MaxAge: gpuMaxAge(a.cfg.GPUTime), MaxGap: gpuTimeOptions(a.cfg.GPUTime).MaxGap,
		Served: func(id tenant.ID) bool { return !a.ring.Destroyed(id) }, Tenants: a.ring.Tenants,
		Admitted: a.agentAdmitted, Denied: a.agentDenied, Logger: a.log,
	})
	if err != nil {
		return err
	}
	a.start("agents", x.gateway.Run)
	x.addr, err = a.listen(ctx, "agents", c.Listen, tlsConfig != nil, func(ctx context.Context, l net.Listener) error {
		return x.gateway.Serve(ctx, l)
	})
	return err
}

// openGPURelay makes the way of samples that collectors send by OTLP. It takes them
// whether agents are served here or not.
func (a *app) openGPURelay() (err error) {
	a.gpuRelay, err = agent.NewRelay(a.edgeSink(), a.gpuRelayOptions())
	return err
}

func (a *app) gpuRelayOptions() agent.Options {
	return agent.Options{
		Topic: a.kafkaCfg.Topics().Telemetry, Partitions: a.telemetryPartitions, GatewayID: a.edgeID(), TenantRate: a.cfg.Agents.TenantRate,
		MaxAge: gpuMaxAge(a.cfg.GPUTime),
	}
}

// gatewayResource is the gateway in the audit log.
const gatewayResource = "tallystick.v1.AgentGateway"

func (a *app) agentAdmitted(id tenant.ID, name string, from authn.Peer) {
	a.access.recorder.Allowed(audit.Event{
		Tenant: id, Actor: "agent/" + name, Action: audit.Authenticate, Resource: gatewayResource, Addr: from.Addr,
	})
}

// agentDenied audits who was refused: in the installation's log, because whom
// they claimed to be is believed by nobody.
func (a *app) agentDenied(from authn.Peer, reason string) {
	a.access.recorder.DeniedLater(audit.Event{
		Actor: "agent", Action: audit.Authenticate, Resource: gatewayResource, Reason: reason, Addr: from.Addr,
	})
}

// issuer is the API's Agents; nil where no pepper is known.
func (x *agents) issuer() *agentauth.Issuer {
	if x.peppers == nil {
		return nil
	}
	return agentauth.NewIssuer(x.register, x.peppers)
}
