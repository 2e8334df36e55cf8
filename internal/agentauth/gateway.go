package agentauth

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// NonceLife is how long a nonce is remembered: two clock windows of 300 s, in
// which a request may pass, and a minute for clocks of gateways that differ.
const NonceLife = 660 * time.Second

// Standing is what the register says of an agent that has proved who it is.
type Standing struct {
	// Live: it is registered and not revoked.
	Live bool
	// AckedSeq is through which frame of the epoch Kafka is known to have
	// everything.
	AckedSeq int64
}

// Ask names an agent and the epoch that it is in.
type Ask struct {
	Agent string
	Epoch int64
}

// Standings says how agents of one tenant stand, in the order asked, in one
// round trip.
func (r *Register) Standings(ctx context.Context, id tenant.ID, asks []Ask) ([]Standing, error) {
	agents, epochs := make([]string, len(asks)), make([]int64, len(asks))
	for i, a := range asks {
		agents[i], epochs[i] = a.Agent, a.Epoch
	}
	out := make([]Standing, len(asks))
	err := r.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select a.n::int, coalesce(p.acked_seq, 0)
			from unnest($2::text[], $3::bigint[]) with ordinality a (agent_id, epoch, n)
			join agent.credential c on c.tenant_id = $1 and c.agent_id = a.agent_id and c.revoked_at is null
			left join agent.producer p on p.tenant_id = $1 and p.agent_id = a.agent_id and p.epoch = a.epoch`, string(id), agents, epochs)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var n int
			s := Standing{Live: true}
			if err := rows.Scan(&n, &s.AckedSeq); err != nil {
				return err
			}
			out[n-1] = s
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return out, nil
}

// UseNonce uses up a nonce of an agent and says how the agent stands. Errors:
// ErrRefused when the nonce was used before or the agent is not in force;
// ErrUnavailable.
func (r *Register) UseNonce(ctx context.Context, k Key, epoch int64, nonce []byte) (Standing, error) {
	s := Standing{}
	err := r.db.InTenantsWrite(ctx, []string{string(k.Tenant)}, func(tx postgres.Tx) error {
		// One statement: the nonce is used up only of an agent in force, and of two
		// requests with one nonce the second waits for the first and inserts nothing.
		return tx.QueryRow(ctx, `
			with used as (
			  insert into agent.nonce (tenant_id, agent_id, nonce)
			  select c.tenant_id, c.agent_id, $3 from agent.credential c
			  where c.tenant_id = $1 and c.agent_id = $2 and c.revoked_at is null
			  on conflict do nothing returning 1)
			select exists (select from used), coalesce((select acked_seq from agent.producer where tenant_id = $1 and agent_id = $2 and epoch = $4), 0)`,
			string(k.Tenant), k.Agent, nonce, epoch).Scan(&s.Live, &s.AckedSeq)
	})
	switch {
	case err != nil:
		return Standing{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !s.Live:
		return Standing{}, ErrRefused
	}
	return s, nil
}

// SweepNonces forgets nonces of a tenant that are older than NonceLife by the
// database's clock, and says how many.
func (r *Register) SweepNonces(ctx context.Context, id tenant.ID) (n int64, err error) {
	err = r.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		tag, err := tx.Exec(ctx, `delete from agent.nonce where tenant_id = $1 and seen_at < now() - make_interval(secs => $2)`,
			string(id), NonceLife.Seconds())
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget nonces: %w", err)
	}
	return n, nil
}

// Revocations is a number that has changed when any agent was revoked.
func (r *Register) Revocations(ctx context.Context) (version int64, err error) {
	err = r.db.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select version from agent.revocations`).Scan(&version)
	})
	return version, err
}

// Revoked returns those of the agents of a tenant that are not in force. It is
// at least as new as any Revocations that was read before.
func (r *Register) Revoked(ctx context.Context, id tenant.ID, agents []string) (revoked []string, err error) {
	err = r.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select a from unnest($2::text[]) a
			where not exists (select from agent.credential c where c.tenant_id = $1 and c.agent_id = a and c.revoked_at is null)`, string(id), agents)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var agent string
			if err := rows.Scan(&agent); err != nil {
				return err
			}
			revoked = append(revoked, agent)
		}
		return rows.Err()
	})
	return revoked, err
}

// Report is what a gateway has seen and heard of one agent's epoch, all of it
// cumulative.
type Report struct {
	Agent    string
	Epoch    int64
	AckedSeq int64

	// Of this run of the gateway.
	AcceptedFrames, AcceptedSamples, DuplicateFrames int64
	RefusedSamples                                   map[string]int64 // by reason; they never come again
	DelayedFrames                                    map[string]int64 // by reason; they come again

	// The last heartbeat; nil when there was none in this run.
	Heartbeat *Heartbeat
	// The newest inventory; nil when there was none since the last report.
	Inventory *Inventory
}

// Heartbeat is what an agent says of itself.
type Heartbeat struct {
	EmittedSamples, EmittedFrames, AckedSamples, AckedFrames int64
	LostSamples                                              map[string]int64
	SpooledFrames, SpooledBytes, RefusedFrames, Reconnects   int64
	SentAt, ReceivedAt                                       time.Time
}

// Inventory is an Inventory message of telemetry.proto.
type Inventory struct {
	Content             []byte
	TakenAt, ReceivedAt time.Time
}

// Run names one run of a gateway.
type Run struct {
	Gateway string
	Epoch   int64 // greater than at its last start
}

// Save writes reports about agents of one tenant, each of another agent and
// epoch, all or none. Writing one again changes nothing, and an older heartbeat
// never takes back what a newer one said.
func (r *Register) Save(ctx context.Context, id tenant.ID, run Run, reports []Report) error {
	c, err := columnsOf(reports)
	if err != nil {
		return err
	}
	return r.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		if err := saveCounts(ctx, tx, id, run, c); err != nil {
			return fmt.Errorf("what was received: %w", err)
		}
		for i := range reports {
			if err := saveSaid(ctx, tx, id, &reports[i]); err != nil {
				return fmt.Errorf("agent %s: %w", reports[i].Agent, err)
			}
		}
		return nil
	})
}

// columns are reports as arrays, which one statement takes at once.
type columns struct {
	agents                                     []string
	epochs, acked, frames, samples, duplicates []int64
	refused, delayed                           []string // JSON objects
}

func columnsOf(reports []Report) (*columns, error) {
	c := &columns{}
	for i := range reports {
		r := &reports[i]
		refused, err := json.Marshal(counts(r.RefusedSamples))
		if err != nil {
			return nil, err
		}
		delayed, err := json.Marshal(counts(r.DelayedFrames))
		if err != nil {
			return nil, err
		}
		c.agents, c.epochs, c.acked = append(c.agents, r.Agent), append(c.epochs, r.Epoch), append(c.acked, r.AckedSeq)
		c.frames, c.samples = append(c.frames, r.AcceptedFrames), append(c.samples, r.AcceptedSamples)
		c.duplicates = append(c.duplicates, r.DuplicateFrames)
		c.refused, c.delayed = append(c.refused, string(refused)), append(c.delayed, string(delayed))
	}
	return c, nil
}

// saveCounts writes what the gateway itself knows. Rows are taken in one order,
// so that two gateways never wait for each other in a circle.
func saveCounts(ctx context.Context, tx postgres.Tx, id tenant.ID, run Run, c *columns) error {
	if _, err := tx.Exec(ctx, `
		insert into agent.producer as p (tenant_id, agent_id, epoch, acked_seq)
		select $1, a, e, s from unnest($2::text[], $3::bigint[], $4::bigint[]) x (a, e, s) order by a, e
		on conflict (tenant_id, agent_id, epoch) do update
		set acked_seq = greatest(p.acked_seq, excluded.acked_seq), updated_at = now()`, string(id), c.agents, c.epochs, c.acked); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `
		insert into agent.received (tenant_id, agent_id, epoch, gateway_id, gateway_epoch, accepted_frames, accepted_samples, duplicate_frames, refused_samples, delayed_frames)
		select $1, a, e, $4, $5, f, s, d, r::jsonb, w::jsonb
		from unnest($2::text[], $3::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[]) x (a, e, f, s, d, r, w) order by a, e
		on conflict (tenant_id, agent_id, epoch, gateway_id, gateway_epoch) do update
		set accepted_frames = excluded.accepted_frames, accepted_samples = excluded.accepted_samples,
		  duplicate_frames = excluded.duplicate_frames, refused_samples = excluded.refused_samples,
		  delayed_frames = excluded.delayed_frames, updated_at = now()`,
		string(id), c.agents, c.epochs, run.Gateway, run.Epoch, c.frames, c.samples, c.duplicates, c.refused, c.delayed)
	return err
}

// saveSaid writes what the agent itself says, where it said anything.
func saveSaid(ctx context.Context, tx postgres.Tx, id tenant.ID, r *Report) error {
	if h := r.Heartbeat; h != nil {
		// Counts of one epoch only grow, so the larger is the newer.
		if _, err := tx.Exec(ctx, `
			update agent.producer set emitted_samples = $4, emitted_frames = $5, acked_samples = $6, acked_frames = $7, lost_samples = $8,
			  spooled_frames = $9, spooled_bytes = $10, refused_frames = $11, reconnects = $12, sent_at = $13, reported_at = $14
			where tenant_id = $1 and agent_id = $2 and epoch = $3
			  and emitted_samples <= $4 and acked_samples <= $6 and (reported_at is null or reported_at <= $14)`,
			string(id), r.Agent, r.Epoch, h.EmittedSamples, h.EmittedFrames, h.AckedSamples, h.AckedFrames, counts(h.LostSamples),
			h.SpooledFrames, h.SpooledBytes, h.RefusedFrames, h.Reconnects, h.SentAt, h.ReceivedAt); err != nil {
			return err
		}
	}
	v := r.Inventory
	if v == nil {
		return nil
	}
	_, err := tx.Exec(ctx, `
		insert into agent.inventory as i (tenant_id, agent_id, taken_at, received_at, content) values ($1, $2, $3, $4, $5)
		on conflict (tenant_id, agent_id) do update
		set taken_at = excluded.taken_at, received_at = excluded.received_at, content = excluded.content
		where i.received_at <= excluded.received_at`, string(id), r.Agent, v.TakenAt, v.ReceivedAt, v.Content)
	return err
}

// counts is a map that is stored as an object, also when there is none.
func counts(m map[string]int64) map[string]int64 {
	if m == nil {
		return map[string]int64{}
	}
	return m
}
