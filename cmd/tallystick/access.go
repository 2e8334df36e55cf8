package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/provider"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/transport"
)

// adminSubject is the administrator's token in the audit log.
const adminSubject = "admin-token"

// accessConns is the pool that credentials are looked up and audited with: apart
// from that of reports, so that a slow one locks nobody out.
const accessConns = 6

// sweepInterval is how often values of secrets that are not live any more are
// taken out.
const sweepInterval = time.Hour

// access is who may do what, and where it is kept.
type access struct {
	auth     authn.Authenticator
	tokens   *authn.Tokens
	cache    *authn.Cache
	secrets  *secrets.Store
	gate     *provider.Gate // what tenants let the proxy do
	log      *audit.Log
	recorder *audit.Recorder
}

// openAccess opens the audit log and the credentials over it. It starts the
// recorder first of all parts that serve, so that it ends after them.
func (a *app) openAccess(db *postgres.DB) error {
	if _, err := a.ring.Create(audit.Installation); err != nil {
		return fmt.Errorf("keys of the audit log: %w", err)
	}
	token, err := authn.LoadOrCreateToken(a.tokenPath())
	if err != nil {
		return err
	}
	x := &a.access
	x.log, x.tokens, x.secrets = audit.NewLog(db, a.ring), authn.NewTokens(db, a.ring), secrets.NewStore(db, a.ring)
	x.recorder, x.cache = audit.NewRecorder(x.log, a.log), authn.NewCache(x.tokens)
	admin := authn.NewStatic(token, authn.Principal{Subject: adminSubject, AllTenants: true, Scopes: authn.AllScopes})
	x.auth = authn.NewAudited(authn.First{admin, x.cache}, x.recorder)
	a.start("audit", x.recorder.Run)
	a.start("secrets", a.sweepSecrets)
	x.gate = provider.NewGate(db, a.ring, x.recorder, a.log)
	a.start("providers", x.gate.Run)
	return nil
}

// sweepSecrets takes out old values, now and then.
func (a *app) sweepSecrets(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if n, err := a.access.secrets.Sweep(ctx, a.ring.Tenants()); err != nil && ctx.Err() == nil {
			a.log.Error("old values of secrets stay; the next look takes them out", "err", err)
		} else if n > 0 {
			a.log.Info("old values of secrets taken out", "values", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// auditor is the API's Auditor.
type auditor struct {
	*audit.Log
	*audit.Recorder
}

// tokenStore has a token that is revoked here refused here at once; other
// processes follow within authn.CacheLife.
type tokenStore struct {
	*authn.Tokens
	cache *authn.Cache
}

// Revoke implements api.Tokens.
func (t tokenStore) Revoke(ctx context.Context, by authn.Principal, id tenant.ID, tokenID string) error {
	err := t.Tokens.Revoke(ctx, by, id, tokenID)
	if err == nil {
		t.cache.Forget()
	}
	return err
}

// deniedAtEdge audits what the ingest edge refuses a credential.
func (a *app) deniedAtEdge(p authn.Principal, from authn.Peer, reason string) {
	a.access.recorder.DeniedLater(audit.Event{
		Tenant: p.Chain(), Actor: p.Subject, Action: audit.Authorize, Resource: "tallystick.v1.IngestService/SendEvents",
		Reason: reason, Addr: from.Addr, Client: from.Client, RequestID: from.RequestID,
	})
}

// openTLS reads the certificate and has it renewed while the program runs; nil
// without one.
func (a *app) openTLS() (*tls.Config, error) {
	if a.cfg.TLS.CertFile == "" {
		return nil, nil
	}
	cert, err := transport.Load(a.cfg.TLS.CertFile, a.cfg.TLS.KeyFile, a.log)
	if err != nil {
		return nil, err
	}
	cert.OnChange(a.certificateChanged)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	a.start("certificate", func(ctx context.Context) error {
		defer signal.Stop(hup)
		return cert.Run(ctx, hup)
	})
	return cert.Config(), nil
}

func (a *app) certificateChanged(ctx context.Context, c transport.Change) {
	ev := audit.Event{Actor: "tallystick", Action: "certificate.renew", Resource: "certificate/" + c.Fingerprint, Outcome: audit.OK}
	if c.Err != nil {
		ev.Outcome, ev.Reason = audit.Failed, c.Err.Error()
	}
	// The old certificate ends soon: that this cannot be audited does not keep
	// the new one out.
	if err := a.access.log.Record(ctx, ev); err != nil {
		a.log.Error("a renewed certificate is not in the audit log", "err", err)
	}
}

// recordStart puts into the audit log that this process serves, and with which
// settings: their digest, secrets masked, so that a change of them shows. A
// process that cannot say so does not serve.
func (a *app) recordStart(ctx context.Context) error {
	settings, err := json.Marshal(a.cfg)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(settings)
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return a.access.log.Record(ctx, audit.Event{
		Actor: currentUser() + "@" + host, Action: "configuration.load", Resource: "configuration/" + hex.EncodeToString(sum[:]),
		Outcome: audit.OK, Reason: fmt.Sprintf("target %s, version %s", a.cfg.Target, versionString()), Client: "tallystick",
	})
}
