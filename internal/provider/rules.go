package provider

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// MaxPerMinute bounds a rate limit.
	MaxPerMinute = 100_000_000
	// MaxRules bounds a tenant's switches in force, its limits and its caps, each.
	MaxRules        = 1000
	maxSubjectBytes = 256
	maxReasonBytes  = 500
)

// Scopes of a rule: all calls of the tenant, or those with a key (a credential
// "tok_…" or a provider key "sec_…"), of a team, or for a model.
const (
	ScopeTenant = "tenant"
	ScopeKey    = "key"
	ScopeTeam   = "team"
	ScopeModel  = "model"
)

// Scopes lists what a rule can be about.
func Scopes() []string { return []string{ScopeTenant, ScopeKey, ScopeTeam, ScopeModel} }

// Switch stops calls. A subject of the scope model may end in *, which stands
// for any end.
type Switch struct {
	ID             string // "swi_…"
	Tenant         tenant.ID
	Scope, Subject string
	Reason         string
	CreatedAt      time.Time
	CreatedBy      string
	LiftedAt       time.Time // zero while it is in force
	LiftedBy       string
}

// Limit is how much one key may do in a minute; 0 is no limit.
type Limit struct {
	Tenant            tenant.ID
	KeyID             string // "tok_…" or "sec_…"
	RequestsPerMinute int64
	TokensPerMinute   int64
	SetAt             time.Time
	SetBy             string
}

// Cap is what may be spent in a calendar month (UTC).
type Cap struct {
	Tenant         tenant.ID
	Scope, Subject string
	USD            money.Sum
	// Spent is what was settled in the current month, by all processes.
	Spent money.Sum
	SetAt time.Time
	SetBy string
}

// checkSubject says what is wrong with what a rule is about.
func checkSubject(scope, subject string) error {
	switch {
	case !slices.Contains(Scopes(), scope):
		return wrong("scope", "in", "the scope is one of %s", strings.Join(Scopes(), ", "))
	case scope == ScopeTenant && subject != "":
		return wrong("subject", "empty", "the scope tenant has no subject")
	case scope != ScopeTenant && (subject == "" || len(subject) > maxSubjectBytes || !utf8.ValidString(subject)):
		return wrong("subject", "length", "a subject has 1 to %d bytes of UTF-8", maxSubjectBytes)
	}
	return nil
}

// Kill throws a switch: calls are refused everywhere within CacheLife. Errors:
// ErrInvalid, ErrExists.
func (s *Store) Kill(ctx context.Context, by authn.Principal, id tenant.ID, scope, subject, reason string) (Switch, error) {
	if err := checkSubject(scope, subject); err != nil {
		return Switch{}, err
	}
	if reason == "" || len(reason) > maxReasonBytes || !utf8.ValidString(reason) {
		return Switch{}, wrong("reason", "length", "a reason of 1 to %d bytes is needed", maxReasonBytes)
	}
	w := Switch{ID: "swi_" + strings.ToLower(rand.Text()), Tenant: id, Scope: scope, Subject: subject, Reason: reason, CreatedAt: s.clock(), CreatedBy: by.Subject}
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		var others int
		var taken bool
		err := tx.QueryRow(ctx, `select count(*), coalesce(bool_or(scope = $2 and subject = $3), false)
			from access.kill_switch where tenant_id = $1 and revoked_at is null`, string(id), scope, subject).Scan(&others, &taken)
		switch {
		case err != nil:
			return fmt.Errorf("throw a switch: %w", err)
		case taken:
			return ErrExists
		case others >= MaxRules:
			return wrong("tenant_id", "limit", "the tenant has %d switches; lift some", MaxRules)
		}
		tag, err := tx.Exec(ctx, `
			insert into access.kill_switch (tenant_id, switch_id, scope, subject, reason, created_at, created_by) values ($1, $2, $3, $4, $5, $6, $7)
			on conflict (tenant_id, scope, subject) where revoked_at is null do nothing`,
			string(id), w.ID, scope, subject, reason, w.CreatedAt, w.CreatedBy)
		if err != nil {
			return fmt.Errorf("throw a switch: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrExists // by another, meanwhile
		}
		return s.append(ctx, tx, by, id, "kill_switch.throw", "kill_switch/"+w.ID, strings.TrimSpace(scope+" "+subject)+": "+reason)
	})
	if err != nil {
		return Switch{}, err
	}
	s.opts.Changed(id)
	return w, nil
}

// Lift ends a switch. Errors: ErrNotFound, also for one that was lifted before.
func (s *Store) Lift(ctx context.Context, by authn.Principal, id tenant.ID, switchID string) error {
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `update access.kill_switch set revoked_at = $3, revoked_by = $4
			where tenant_id = $1 and switch_id = $2 and revoked_at is null`, string(id), switchID, s.clock(), by.Subject)
		if err != nil {
			return fmt.Errorf("lift a switch: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrNotFound
		}
		return s.append(ctx, tx, by, id, "kill_switch.lift", "kill_switch/"+switchID, "")
	})
	if err != nil {
		return err
	}
	s.opts.Changed(id)
	return nil
}

// Switches returns up to limit switches of a tenant in order of id, those after
// `after`, lifted ones too.
func (s *Store) Switches(ctx context.Context, id tenant.ID, after string, limit int) (list []Switch, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select switch_id, scope, subject, reason, created_at, created_by, revoked_at, coalesce(revoked_by, '')
			from access.kill_switch where tenant_id = $1 and switch_id > $2 order by switch_id limit $3`, string(id), after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			w := Switch{Tenant: id}
			var lifted *time.Time
			if err := rows.Scan(&w.ID, &w.Scope, &w.Subject, &w.Reason, &w.CreatedAt, &w.CreatedBy, &lifted, &w.LiftedBy); err != nil {
				return err
			}
			if lifted != nil {
				w.LiftedAt = lifted.UTC()
			}
			w.CreatedAt = w.CreatedAt.UTC()
			list = append(list, w)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list switches: %w", err)
	}
	return list, nil
}

// SetLimit sets what one key may do in a minute; two zeros end its limits.
// Errors: ErrInvalid.
func (s *Store) SetLimit(ctx context.Context, by authn.Principal, l Limit) (Limit, error) {
	if !strings.HasPrefix(l.KeyID, "tok_") && !strings.HasPrefix(l.KeyID, "sec_") || len(l.KeyID) > 64 {
		return Limit{}, wrong("key_id", "pattern", `a limit is of a token "tok_…" or a provider key "sec_…"`)
	}
	for field, n := range map[string]int64{"requests_per_minute": l.RequestsPerMinute, "tokens_per_minute": l.TokensPerMinute} {
		if n < 0 || n > MaxPerMinute {
			return Limit{}, wrong(field, "range", "a limit is 1 to %d per minute, or 0 for none", MaxPerMinute)
		}
	}
	l.SetAt, l.SetBy = s.clock(), by.Subject
	err := s.db.InTenantsWrite(ctx, []string{string(l.Tenant)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			insert into access.key_limit (tenant_id, key_id, requests_per_minute, tokens_per_minute, set_at, set_by)
			select $1, $2, nullif($3::bigint, 0), nullif($4::bigint, 0), $5, $6
			where (select count(*) from access.key_limit where tenant_id = $1 and key_id <> $2) < $7
			on conflict (tenant_id, key_id) do update set requests_per_minute = excluded.requests_per_minute,
				tokens_per_minute = excluded.tokens_per_minute, set_at = excluded.set_at, set_by = excluded.set_by`,
			string(l.Tenant), l.KeyID, l.RequestsPerMinute, l.TokensPerMinute, l.SetAt, l.SetBy, MaxRules)
		if err != nil {
			return fmt.Errorf("set a limit: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return wrong("tenant_id", "limit", "the tenant has limits for %d keys", MaxRules)
		}
		return s.append(ctx, tx, by, l.Tenant, "key_limit.set", "key/"+l.KeyID,
			fmt.Sprintf("%d requests and %d tokens per minute; 0 is no limit", l.RequestsPerMinute, l.TokensPerMinute))
	})
	if err != nil {
		return Limit{}, err
	}
	s.opts.Changed(l.Tenant)
	return l, nil
}

// Limits returns up to limit limits of a tenant in order of key, those after
// `after`.
func (s *Store) Limits(ctx context.Context, id tenant.ID, after string, limit int) (list []Limit, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		list, err = readLimits(ctx, tx, id, after, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list limits: %w", err)
	}
	return list, nil
}

// readLimits reads limits that are set, in a transaction of their tenant.
func readLimits(ctx context.Context, tx postgres.Tx, id tenant.ID, after string, limit int) (list []Limit, err error) {
	rows, err := tx.Query(ctx, `select key_id, coalesce(requests_per_minute, 0), coalesce(tokens_per_minute, 0), set_at, set_by
		from access.key_limit where tenant_id = $1 and key_id > $2 and (requests_per_minute is not null or tokens_per_minute is not null)
		order by key_id limit $3`, string(id), after, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		l := Limit{Tenant: id}
		if err := rows.Scan(&l.KeyID, &l.RequestsPerMinute, &l.TokensPerMinute, &l.SetAt, &l.SetBy); err != nil {
			return nil, err
		}
		l.SetAt = l.SetAt.UTC()
		list = append(list, l)
	}
	return list, rows.Err()
}

// SetCap sets what may be spent in a month under a scope; nil ends the cap. It
// counts from when it is first set. Errors: ErrInvalid.
func (s *Store) SetCap(ctx context.Context, by authn.Principal, id tenant.ID, scope, subject string, usd *money.Sum) error {
	if err := checkSubject(scope, subject); err != nil {
		return err
	}
	if usd != nil && usd.Sign() < 0 {
		return wrong("usd_per_month", "range", "a cap is not negative")
	}
	var text *string // a Sum has at most 26 digits before the point, as the column
	says := "no cap"
	if usd != nil {
		v := usd.String()
		text, says = &v, v+" USD a month"
	}
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			insert into access.spend_cap (tenant_id, scope, subject, usd, set_at, set_by)
			select $1, $2, $3, $4::text::numeric, $5, $6
			where (select count(*) from access.spend_cap where tenant_id = $1 and (scope, subject) <> ($2, $3)) < $7
			on conflict (tenant_id, scope, subject) do update set usd = excluded.usd, set_at = excluded.set_at, set_by = excluded.set_by`,
			string(id), scope, subject, text, s.clock(), by.Subject, MaxRules)
		if postgres.SQLState(err) == "22003" {
			return wrong("usd_per_month", "range", "the cap is too large")
		}
		if err != nil {
			return fmt.Errorf("set a cap: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return wrong("tenant_id", "limit", "the tenant has %d caps", MaxRules)
		}
		return s.append(ctx, tx, by, id, "spend_cap.set", "spend_cap/"+strings.TrimSuffix(scope+"/"+subject, "/"), says)
	})
	if err != nil {
		return err
	}
	s.opts.Changed(id)
	return nil
}

// Caps returns a tenant's caps with what the current month has spent, in order
// of scope and subject. There are at most MaxRules.
func (s *Store) Caps(ctx context.Context, id tenant.ID) (list []Cap, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		list, err = readCaps(ctx, tx, id, monthOf(s.clock()), "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list caps: %w", err)
	}
	return list, nil
}

// readCaps reads caps and what the month has spent under them but for what one
// writer did, in a transaction of their tenant.
func readCaps(ctx context.Context, tx postgres.Tx, id tenant.ID, month time.Time, but string) (list []Cap, err error) {
	rows, err := tx.Query(ctx, `
		select c.scope, c.subject, c.usd::text, c.set_at, c.set_by,
		       coalesce((select sum(s.usd) from access.spend s where s.tenant_id = c.tenant_id and s.scope = c.scope
		                 and s.subject = c.subject and s.month = $2 and s.writer <> $3), 0)::text
		from access.spend_cap c where c.tenant_id = $1 and c.usd is not null order by c.scope, c.subject`, string(id), month, but)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		c := Cap{Tenant: id}
		var usd, spent string
		if err := rows.Scan(&c.Scope, &c.Subject, &usd, &c.SetAt, &c.SetBy, &spent); err != nil {
			return nil, err
		}
		if c.USD, err = money.ParseSum(usd); err != nil {
			return nil, err
		}
		if c.Spent, err = money.ParseSum(spent); err != nil {
			return nil, err
		}
		c.SetAt = c.SetAt.UTC()
		list = append(list, c)
	}
	return list, rows.Err()
}

// monthOf is the first day of a time's month, UTC.
func monthOf(t time.Time) time.Time {
	y, m, _ := t.UTC().Date()
	return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)
}
