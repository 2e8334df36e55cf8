package audit

import (
	"context"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// TenantBypass is the action of stepping over tenants' isolation.
const TenantBypass = "tenant.bypass"

// BypassAppender writes the rows of postgres.RunAsBypass.
type BypassAppender struct {
	Keys  Keys
	Actor string // the part of the program, such as "processors"
}

var _ postgres.Appender = BypassAppender{}

// AppendBypass writes into the tenant's chain, or into that of the installation
// when all tenants are meant, in the bypassing transaction itself.
func (b BypassAppender) AppendBypass(ctx context.Context, tx postgres.Tx, id tenant.ID, reason string) error {
	return Append(ctx, tx, b.Keys, Event{Tenant: id, Actor: b.Actor, Action: TenantBypass, Outcome: OK, Reason: reason})
}
