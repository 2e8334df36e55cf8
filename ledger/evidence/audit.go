package evidence

import (
	"context"
	"fmt"
	"time"
)

// auditPlan is the audit rows of a package.
type auditPlan struct {
	from, to   int64
	uncovered  int64
	checkpoint Checkpoint
	keys       []Key
}

// planAudit chooses the audit rows of a time: those under a checkpoint.
func (p *Plan) planAudit(ctx context.Context, from, to time.Time) (*auditPlan, error) {
	if p.stores.Audit == nil || p.stores.AuditTree == nil {
		return nil, nil
	}
	first, last, err := p.stores.Audit.Happened(ctx, from, to)
	if err != nil || first == 0 {
		return nil, err
	}
	newest, ok, err := p.stores.AuditTree.Newest(ctx)
	if err != nil || !ok || first > newest.Size {
		return nil, err
	}
	a := &auditPlan{from: first, to: min(last, newest.Size), uncovered: max(0, last-newest.Size)}
	if a.checkpoint, _, err = p.stores.AuditTree.Covering(ctx, a.to); err != nil {
		return nil, err
	}
	if a.keys, err = p.stores.AuditTree.Keys(ctx); err != nil {
		return nil, err
	}
	proofs, err := prove(ctx, p.stores.AuditTree, a.from, a.to, a.checkpoint.Size, nil)
	if err != nil {
		return nil, err
	}
	p.proofs[auditLog] = proofs
	return a, nil
}

// writeAudit writes the audit rows of the time that the entries arrived in, or
// of the days that were asked for.
func (p *Plan) writeAudit(ctx context.Context, z *zipWriter, m *Manifest) error {
	from, to, err := p.auditTime(m)
	if err != nil {
		return err
	}
	if p.audit, err = p.planAudit(ctx, from, to); err != nil || p.audit == nil {
		return err
	}
	w, err := z.begin(auditName)
	if err != nil {
		return err
	}
	if _, err := export(ctx, p.stores.Audit, auditMagic, p.req.Tenant, p.audit.from, p.audit.to, w, nil, nil); err != nil {
		return err
	}
	m.Audit = &AuditRef{p.audit.from, p.audit.to, p.audit.checkpoint.ref(auditLog), p.audit.uncovered}
	return z.end()
}

func (p *Plan) auditTime(m *Manifest) (from, to time.Time, err error) {
	if d := p.req.Dates; d != nil {
		return d.From, d.Before.Add(-1), nil
	}
	if m.Received.First == "" { // entries without a time: control entries alone
		return time.Time{}, time.Time{}, nil
	}
	if from, err = time.Parse(time.RFC3339Nano, m.Received.First); err != nil {
		return from, to, fmt.Errorf("received_at: %w", err)
	}
	to, err = time.Parse(time.RFC3339Nano, m.Received.Last)
	return from, to, err
}
