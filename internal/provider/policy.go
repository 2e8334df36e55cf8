package provider

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"
)

// policy is what a tenant had set at one time. Nothing of it changes.
type policy struct {
	asked    time.Time
	keys     map[string]*usable // the one that is used, by provider
	switches []Switch           // in force
	limits   map[string]Limit   // by key
	caps     []Cap              // with what other processes have spent
	capture  Capture
	month    time.Time // of caps
}

// usable is a provider key that calls go with.
type usable struct {
	base   string
	values []secrets.Sealed // live, the newest first
}

func (u *usable) id() string { return u.values[0].SecretID }

// readPolicy reads what a tenant has set. writer is whose spending is left out.
func readPolicy(ctx context.Context, db *postgres.DB, id tenant.ID, writer string, now time.Time) (*policy, error) {
	p := &policy{asked: now, keys: map[string]*usable{}, limits: map[string]Limit{}, month: monthOf(now)}
	err := db.InTenant(ctx, id, func(tx postgres.Tx) error {
		if err := p.readKeys(ctx, tx, id, now); err != nil {
			return err
		}
		if err := p.readSwitches(ctx, tx, id); err != nil {
			return err
		}
		limits, err := readLimits(ctx, tx, id, "", MaxRules)
		if err != nil {
			return err
		}
		for _, l := range limits {
			p.limits[l.KeyID] = l
		}
		if p.caps, err = readCaps(ctx, tx, id, p.month, writer); err != nil {
			return err
		}
		p.capture, err = readCapture(ctx, tx, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return p, nil
}

// readKeys picks one key of each provider: the one that has the provider's name,
// else the first by name.
func (p *policy) readKeys(ctx context.Context, tx postgres.Tx, id tenant.ID, now time.Time) error {
	live, err := secrets.LiveSealed(ctx, tx, id, secretKind, now)
	if err != nil || len(live) == 0 {
		return err
	}
	type place struct{ provider, base string }
	at := map[string]place{}
	rows, err := tx.Query(ctx, `select secret_id, provider, base_url from access.provider_key where tenant_id = $1`, string(id))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var secretID string
		var v place
		if err := rows.Scan(&secretID, &v.provider, &v.base); err != nil {
			return err
		}
		at[secretID] = v
	}
	for i := range live {
		v, ok := at[live[i].SecretID]
		if !ok {
			continue // a secret that was not added as a provider key
		}
		switch now := p.keys[v.provider]; {
		case now == nil, live[i].Name == v.provider && now.values[0].Name != v.provider:
			p.keys[v.provider] = &usable{v.base, live[i : i+1 : i+1]}
		case now.id() == live[i].SecretID:
			now.values = append(now.values, live[i])
		}
	}
	return rows.Err()
}

func (p *policy) readSwitches(ctx context.Context, tx postgres.Tx, id tenant.ID) error {
	rows, err := tx.Query(ctx, `select switch_id, scope, subject, reason from access.kill_switch
		where tenant_id = $1 and revoked_at is null order by created_at, switch_id`, string(id))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		w := Switch{Tenant: id}
		if err := rows.Scan(&w.ID, &w.Scope, &w.Subject, &w.Reason); err != nil {
			return err
		}
		p.switches = append(p.switches, w)
	}
	return rows.Err()
}

// keyID is the provider key that a call goes with, "" when there is none.
func (p *policy) keyID(c *Call) string {
	if k := p.keys[c.Provider]; k != nil {
		return k.id()
	}
	return ""
}

// stopped finds the switch that stops a call.
func (p *policy) stopped(c *Call) (Switch, bool) {
	for i := range p.switches {
		if w := &p.switches[i]; p.about(w.Scope, w.Subject, c) {
			return *w, true
		}
	}
	return Switch{}, false
}

// about reports whether a rule is about a call.
func (p *policy) about(scope, subject string, c *Call) bool {
	switch scope {
	case ScopeTenant:
		return true
	case ScopeKey:
		return subject == c.Credential || subject == p.keyID(c)
	case ScopeTeam:
		return subject == c.Team
	case ScopeModel:
		if start, ok := strings.CutSuffix(subject, "*"); ok {
			return strings.HasPrefix(c.Model, start)
		}
		return subject == c.Model
	}
	return false
}
