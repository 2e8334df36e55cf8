package agentauth

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// MaxAgentsPerTenant bounds the agents of a tenant that are in force.
	MaxAgentsPerTenant = 50_000
	maxNameBytes       = 200
)

// Agent is what is told of an agent.
type Agent struct {
	Key
	Name      string
	CreatedAt time.Time
	CreatedBy string
	IssuedAt  time.Time // when its secret was last shown
	RevokedAt time.Time // zero while it is in force
	RevokedBy string
	// ReportedAt is the time of its last heartbeat; zero before the first.
	ReportedAt time.Time
	// Samples are summed over the agent's epochs.
	Samples SampleCounts
}

// Register is the agents in Postgres. Its methods may be called from many
// goroutines.
type Register struct {
	db   *postgres.DB
	keys audit.Keys
	now  func() time.Time
}

// NewRegister makes the register, over a login of postgres.RoleApp. keys are
// those of the audit log: what changes an agent is a row of it, in the same
// transaction.
func NewRegister(db *postgres.DB, keys audit.Keys) *Register {
	return &Register{db: db, keys: keys, now: time.Now}
}

// Issuer registers agents and shows their secrets.
type Issuer struct {
	*Register
	peppers *Peppers
}

// NewIssuer makes an issuer of secrets under the newest of the peppers.
func NewIssuer(r *Register, p *Peppers) *Issuer { return &Issuer{r, p} }

// Create registers an agent and returns it with its credential, which is shown
// this once. Errors: ErrAgent, audit.ErrUnwritten, or that of Postgres.
func (i *Issuer) Create(ctx context.Context, by authn.Principal, id tenant.ID, name string) (Agent, Credential, error) {
	switch {
	case !tenant.ValidID(string(id)) || !by.May(id):
		return Agent{}, Credential{}, fmt.Errorf("%w: not a tenant that you may act for", ErrAgent)
	case name == "" || len(name) > maxNameBytes || !utf8.ValidString(name):
		return Agent{}, Credential{}, fmt.Errorf("%w: a name of 1 to %d bytes is needed", ErrAgent, maxNameBytes)
	}
	now := i.now().UTC().Truncate(time.Microsecond)
	a := Agent{Key: Key{id, "agt_" + strings.ToLower(rand.Text())}, Name: name, CreatedAt: now, CreatedBy: by.Subject, IssuedAt: now}
	err := i.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			insert into agent.credential (tenant_id, agent_id, name, created_at, created_by, issued_at)
			select $1, $2, $3, $4, $5, $4
			where (select count(*) from agent.credential where tenant_id = $1 and revoked_at is null) < $6`,
			string(id), a.Agent, name, now, by.Subject, MaxAgentsPerTenant)
		if err != nil {
			return fmt.Errorf("register an agent: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return fmt.Errorf("%w: the tenant has %d in force; revoke some", ErrAgent, MaxAgentsPerTenant)
		}
		return i.append(ctx, tx, by, a.Key, "agent.create", fmt.Sprintf("name %q", name))
	})
	if err != nil {
		return Agent{}, Credential{}, err
	}
	return a, i.peppers.Credential(a.Key), nil
}

// Issue shows an agent's credential under the newest pepper, for a rotation. The
// audit log says so before anybody has it. Errors: ErrNoAgent, audit.ErrUnwritten.
func (i *Issuer) Issue(ctx context.Context, by authn.Principal, k Key) (Credential, error) {
	err := i.db.InTenantsWrite(ctx, []string{string(k.Tenant)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			update agent.credential set issued_at = $3 where tenant_id = $1 and agent_id = $2 and revoked_at is null`,
			string(k.Tenant), k.Agent, i.now().UTC())
		if err != nil {
			return fmt.Errorf("issue a secret: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrNoAgent
		}
		return i.append(ctx, tx, by, k, "agent.issue", "")
	})
	if err != nil {
		return Credential{}, err
	}
	return i.peppers.Credential(k), nil
}

// Revoke ends an agent for ever: gateways close its streams within seconds.
// Errors: ErrNoAgent, also for one that was revoked before; audit.ErrUnwritten.
func (r *Register) Revoke(ctx context.Context, by authn.Principal, k Key) error {
	return r.db.InTenantsWrite(ctx, []string{string(k.Tenant)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `
			update agent.credential set revoked_at = $3, revoked_by = $4
			where tenant_id = $1 and agent_id = $2 and revoked_at is null`, string(k.Tenant), k.Agent, r.now().UTC(), by.Subject)
		if err != nil {
			return fmt.Errorf("revoke an agent: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrNoAgent
		}
		return r.append(ctx, tx, by, k, "agent.revoke", "")
	})
}

// append writes an audit row about an agent.
func (r *Register) append(ctx context.Context, tx postgres.Tx, by authn.Principal, k Key, action, reason string) error {
	p := authn.PeerOf(ctx)
	return audit.Append(ctx, tx, r.keys, audit.Event{
		Tenant: k.Tenant, Actor: by.Subject, Action: action, Resource: "agent/" + k.Agent, Outcome: audit.OK, Reason: reason,
		Addr: p.Addr, Client: p.Client, RequestID: p.RequestID,
	})
}

// List returns up to limit agents of a tenant in order of id, those after
// `after`, revoked ones too.
func (r *Register) List(ctx context.Context, id tenant.ID, after string, limit int) ([]Agent, error) {
	var list []Agent
	err := r.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select c.agent_id, c.name, c.created_at, c.created_by, c.issued_at, c.revoked_at, coalesce(c.revoked_by, ''),
			  (select max(p.reported_at) from agent.producer p where p.tenant_id = c.tenant_id and p.agent_id = c.agent_id),
			  (select coalesce(jsonb_object_agg(s.reason, s.n), '{}') from (
			    select e.key as reason, sum(e.value::bigint) as n from agent.received v, jsonb_each_text(v.refused_samples) e
			    where v.tenant_id = c.tenant_id and v.agent_id = c.agent_id group by e.key) s),
			  (select coalesce(jsonb_object_agg(s.reason, s.n), '{}') from (
			    select e.key as reason, sum(e.value::bigint) as n from agent.producer p, jsonb_each_text(p.lost_samples) e
			    where p.tenant_id = c.tenant_id and p.agent_id = c.agent_id group by e.key) s),
			  coalesce(n.accounted, 0), coalesce(n.duplicate, 0), coalesce(n.late, 0), coalesce(n.future, 0), coalesce(n.malformed, 0),
			  coalesce(n.without_time, 0), coalesce(n.clipped_us, 0)
			from agent.credential c left join processors.gpu_count n on n.tenant_id = c.tenant_id and n.agent_id = c.agent_id
			where c.tenant_id = $1 and c.agent_id > $2 order by c.agent_id limit $3`, string(id), after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			a := Agent{Key: Key{Tenant: id}}
			var revoked, reported *time.Time
			fields := []any{&a.Agent, &a.Name, &a.CreatedAt, &a.CreatedBy, &a.IssuedAt, &revoked, &a.RevokedBy, &reported, &a.Samples.Refused, &a.Samples.Lost}
			if err := rows.Scan(append(fields, a.Samples.processed()...)...); err != nil {
				return err
			}
			a.CreatedAt, a.IssuedAt = a.CreatedAt.UTC(), a.IssuedAt.UTC()
			a.RevokedAt, a.ReportedAt = orZero(revoked), orZero(reported)
			list = append(list, a)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	return list, nil
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// FirstSeen implements PepperLog.
func (r *Register) FirstSeen(ctx context.Context, fingerprint []byte) (since time.Time, age time.Duration, err error) {
	err = r.db.Tx(ctx, func(tx postgres.Tx) error {
		if _, err := tx.Exec(ctx, `insert into agent.pepper (fingerprint) values ($1) on conflict do nothing`, fingerprint); err != nil {
			return err
		}
		var seconds float64
		if err := tx.QueryRow(ctx, `
			select first_seen, extract(epoch from now() - first_seen)::float8 from agent.pepper where fingerprint = $1`, fingerprint).
			Scan(&since, &seconds); err != nil {
			return err
		}
		age = time.Duration(seconds * float64(time.Second))
		return nil
	})
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("when the pepper was first seen: %w", err)
	}
	return since.UTC(), age, nil
}

// AnySeen implements PepperLog.
func (r *Register) AnySeen(ctx context.Context) (seen bool, err error) {
	err = r.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select exists (select from agent.pepper)`).Scan(&seen)
	})
	return seen, err
}
