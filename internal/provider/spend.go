package provider

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// flushInterval is how often settled sums are written.
	flushInterval = time.Second
	flushLimit    = 10 * time.Second
)

// accountKey is one cap in one month.
type accountKey struct {
	scope, subject string
	month          time.Time
}

// account is what this process has spent and set aside under a cap. Both are
// protected by the tenant's mu. Where a sum would overflow it stays, which no sum
// of calls that fit a cap does.
type account struct {
	spent, reserved money.Sum
	written         money.Sum // of spent
	others          money.Sum // as of the newest policy
	usd             money.Sum // the cap, as of the newest policy
	holds           int       // reservations that are not settled
}

// Reservation is what was set aside for one call. Settle it exactly once.
type Reservation struct {
	g        *Gate
	h        *held
	limits   [2]Limit // of the credential and of the provider key
	prompt   int64
	estimate money.Sum
	accounts []*account
	settled  atomic.Bool
}

// Reserve sets the estimate of a call aside under every cap that is about it, or
// under none and refuses it. Errors: ErrBudget, ErrUnavailable.
func (g *Gate) Reserve(ctx context.Context, c *Call, estimate money.Pico) (*Reservation, error) {
	h, p, err := g.policy(ctx, c.Tenant)
	if err != nil {
		return nil, err
	}
	r := &Reservation{g: g, h: h, prompt: max(1, c.PromptTokens), estimate: money.SumOf(max(0, estimate))}
	if len(p.limits) > 0 {
		r.limits = [2]Limit{p.limits[c.Credential], p.limits[p.keyID(c)]}
	}
	if len(p.caps) == 0 {
		return r, nil
	}
	month := monthOf(g.now())
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range p.caps {
		cap := &p.caps[i]
		if !p.about(cap.Scope, cap.Subject, c) {
			continue
		}
		a := h.account(accountKey{cap.Scope, cap.Subject, month})
		a.usd, a.others = cap.USD, money.Sum{}
		if p.month.Equal(month) {
			a.others = cap.Spent
		}
		// A cap that is used up refuses calls of no known price too.
		if left := a.left(); left.Cmp(r.estimate) < 0 || left.Sign() <= 0 {
			return nil, fmt.Errorf("%w: usd per month of %s", ErrBudget, strings.TrimSpace(cap.Scope+" "+cap.Subject))
		}
		r.accounts = append(r.accounts, a)
	}
	for _, a := range r.accounts {
		a.holds++
		add(&a.reserved, r.estimate)
	}
	return r, nil
}

// account finds or makes an account. h.mu is held.
func (h *held) account(k accountKey) *account {
	a := h.accounts[k]
	if a == nil {
		a = &account{}
		h.accounts[k] = a
	}
	return a
}

// left is what may still be set aside; negative when more was spent than the cap.
func (a *account) left() money.Sum {
	left := a.usd
	for _, s := range [...]money.Sum{a.others, a.spent, a.reserved} {
		if left.Sub(s) != nil {
			return money.SumOf(-1)
		}
	}
	return left
}

// add adds to a sum; one that would overflow stays.
func add(to *money.Sum, s money.Sum) {
	sum := *to
	if sum.Add(s) == nil {
		*to = sum
	}
}

// Settle replaces the estimate with what the call used and cost. known is false
// where it could not be priced: then the estimate counts, so that a cap is never
// too generous. It does not wait for a store. Further calls do nothing.
func (r *Reservation) Settle(tokens int64, cost money.Pico, known bool) {
	if r.settled.Swap(true) {
		return
	}
	now := r.g.now()
	paid := r.estimate
	if known {
		paid = money.SumOf(max(0, cost))
	}
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	for _, l := range r.limits {
		if l.TokensPerMinute > 0 {
			r.h.bucket(l.KeyID, true).change(tokens-r.prompt, l.TokensPerMinute, now)
		}
	}
	for _, a := range r.accounts {
		a.holds--
		add(&a.reserved, r.estimate.Neg())
		add(&a.spent, paid)
	}
}

// Remaining is what the tightest cap of the call has left; ok is false when there
// is none. It is negative when more was spent than a cap.
func (r *Reservation) Remaining() (left money.Pico, ok bool) {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	for _, a := range r.accounts {
		v, err := a.left().Pico()
		if err != nil {
			continue // more than a call can cost
		}
		if !ok || v < left {
			left, ok = v, true
		}
	}
	return left, ok
}

// Run writes what was settled every second until ctx ends, and once more then. It
// forgets tenants without calls. It returns nil.
func (g *Gate) Run(ctx context.Context) error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
			defer cancel()
			g.Flush(last)
			return nil
		case <-tick.C:
			limited, cancel := context.WithTimeout(ctx, flushLimit)
			g.Flush(limited)
			cancel()
		}
	}
}

// settledSum is what a process has spent under one cap in one month.
type settledSum struct {
	accountKey
	usd money.Sum
}

// Flush writes the sums that have changed, at once. What cannot be written stays, and is
// written whole the next time.
func (g *Gate) Flush(ctx context.Context) {
	g.mu.RLock()
	list := make([]*held, 0, len(g.tenants))
	for _, h := range g.tenants {
		list = append(list, h)
	}
	g.mu.RUnlock()
	now := g.now()
	for _, h := range list {
		changed := h.changed()
		if len(changed) > 0 {
			if err := g.write(ctx, h.id, changed); err != nil {
				g.log.Warn("what was spent under caps is not written; it is tried again", "tenant", h.id, "err", err)
				continue
			}
			h.wrote(changed)
		}
		h.sweep(monthOf(now))
		g.drop(h, now)
	}
}

// changed are the sums that are to be written.
func (h *held) changed() (list []settledSum) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, a := range h.accounts {
		if a.spent != a.written {
			list = append(list, settledSum{k, a.spent})
		}
	}
	return list
}

func (h *held) wrote(list []settledSum) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range list {
		h.accounts[s.accountKey].written = s.usd
	}
}

// write upserts this process's own rows with whole sums: again changes nothing.
func (g *Gate) write(ctx context.Context, id tenant.ID, list []settledSum) error {
	return g.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		for _, s := range list {
			_, err := tx.Exec(ctx, `
				insert into access.spend (tenant_id, scope, subject, month, writer, usd) values ($1, $2, $3, $4, $5, $6::text::numeric)
				on conflict (tenant_id, scope, subject, month, writer) do update set usd = greatest(access.spend.usd, excluded.usd)`,
				string(id), s.scope, s.subject, s.month, g.writer, s.usd.String())
			if err != nil {
				return fmt.Errorf("write what was spent: %w", err)
			}
		}
		return nil
	})
}

// sweep forgets accounts of months that are over.
func (h *held) sweep(month time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, a := range h.accounts {
		if k.month.Before(month) && a.holds == 0 && a.spent == a.written {
			delete(h.accounts, k)
		}
	}
}

// drop forgets a tenant without calls.
func (g *Gate) drop(h *held, now time.Time) {
	if now.Sub(time.Unix(0, h.used.Load())) < idleLife {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.accounts {
		if a.holds > 0 || a.spent != a.written || a.spent.Sign() != 0 {
			return // its sum is written whole, so it is kept while the month lasts
		}
	}
	if now.Sub(time.Unix(0, h.used.Load())) >= idleLife {
		delete(g.tenants, h.id)
	}
}
