package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Capture is what of its calls a tenant lets the proxy keep. A tenant that never
// said so lets it keep nothing. The installation bounds it: where proxy.digests is
// off, no tenant's prompts are digested.
type Capture struct {
	Tenant tenant.ID
	// PromptDigests are keyed digests of prompts; never their text.
	PromptDigests bool
	SetAt         time.Time // zero: never
	SetBy         string
}

// SetCapture sets it for the calls from then on, with its audit row in the same
// transaction; every Gate goes by it within CacheLife.
func (s *Store) SetCapture(ctx context.Context, by authn.Principal, id tenant.ID, promptDigests bool) (Capture, error) {
	c := Capture{Tenant: id, PromptDigests: promptDigests, SetAt: s.clock(), SetBy: by.Subject}
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into access.capture (tenant_id, prompt_digests, set_at, set_by) values ($1, $2, $3, $4)
			on conflict (tenant_id) do update set prompt_digests = excluded.prompt_digests, set_at = excluded.set_at, set_by = excluded.set_by`,
			string(id), promptDigests, c.SetAt, c.SetBy)
		if err != nil {
			return fmt.Errorf("set what is captured: %w", err)
		}
		says := map[bool]string{true: "on", false: "off"}[promptDigests]
		return s.append(ctx, tx, by, id, "capture.set", "capture/prompt_digests", says)
	})
	if err != nil {
		return Capture{}, err
	}
	s.opts.Changed(id)
	return c, nil
}

// Capture returns what a tenant has set.
func (s *Store) Capture(ctx context.Context, id tenant.ID) (c Capture, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		c, err = readCapture(ctx, tx, id)
		return err
	})
	if err != nil {
		return Capture{}, fmt.Errorf("read what is captured: %w", err)
	}
	return c, nil
}

// readCapture reads it in a transaction of its tenant.
func readCapture(ctx context.Context, tx postgres.Tx, id tenant.ID) (Capture, error) {
	c := Capture{Tenant: id}
	err := tx.QueryRow(ctx, `select prompt_digests, set_at, set_by from access.capture where tenant_id = $1`, string(id)).
		Scan(&c.PromptDigests, &c.SetAt, &c.SetBy)
	if postgres.IsNoRows(err) {
		return c, nil
	}
	c.SetAt = c.SetAt.UTC()
	return c, err
}

// Digests reports whether prompts of the tenant are to be digested. It waits only
// where nothing is known of the tenant, two seconds at most; what cannot be told
// is no.
func (g *Gate) Digests(ctx context.Context, id tenant.ID) bool {
	_, p, err := g.policy(ctx, id)
	return err == nil && p.capture.PromptDigests
}
