package agentauth

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// CollectorPrefix begins the name under which a collector's samples are counted. No
// agent has such an id.
const CollectorPrefix = "otlp/"

// maxCollectors bounds those that are listed.
const maxCollectors = 1000

// SampleCounts say what became of the samples of an agent or of a collector. What was
// acknowledged is in one of the first five a second or so after.
type SampleCounts struct {
	// Accounted are in GPU time, Duplicate were there already. Late came when they
	// were older than the horizon, Future ended too far ahead, Malformed are none
	// that time can be accounted by.
	Accounted, Duplicate, Late, Future, Malformed int64
	// WithoutTime of the accounted ones stood for no time, and ClippedMicros of time
	// is more than one sample may stand for: gputime.Counts says when.
	WithoutTime, ClippedMicros int64
	// Refused were not taken, by rule, and Lost never sent, by reason, as the agent
	// says. Of a collector both are empty: it is told in the answer.
	Refused, Lost map[string]int64
}

// Collector is whoever sends samples without being an agent.
type Collector struct {
	// Name is that of its token.
	Name    string
	Samples SampleCounts
}

// Collectors returns those whose samples were taken for a tenant, in order of name,
// the first thousand.
func (r *Register) Collectors(ctx context.Context, id tenant.ID) ([]Collector, error) {
	var list []Collector
	err := r.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select substr(agent_id, length($2) + 1), accounted, duplicate, late, future, malformed, without_time, clipped_us
			from processors.gpu_count where tenant_id = $1 and starts_with(agent_id, $2) order by agent_id limit $3`,
			string(id), CollectorPrefix, maxCollectors)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var c Collector
			if err := rows.Scan(append([]any{&c.Name}, c.Samples.processed()...)...); err != nil {
				return err
			}
			list = append(list, c)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list collectors: %w", err)
	}
	return list, nil
}

// processed are the fields that the processor counts, in the order of its columns.
func (c *SampleCounts) processed() []any {
	return []any{&c.Accounted, &c.Duplicate, &c.Late, &c.Future, &c.Malformed, &c.WithoutTime, &c.ClippedMicros}
}
