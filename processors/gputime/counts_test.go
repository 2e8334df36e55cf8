package gputime

import (
	"context"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/postgres"
)

// CountsOf reads what became of a tenant's samples, by agent. The program does so in
// internal/agentauth, for whoever lists agents.
func (s *Store) CountsOf(ctx context.Context, tenant string) (map[string]Counts, error) {
	out := map[string]Counts{}
	err := s.db.InTenants(ctx, []string{tenant}, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select agent_id, accounted, duplicate, late, future, malformed, without_time, clipped_us
			from processors.gpu_count where tenant_id = $1`, tenant)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var agent string
			var c Counts
			if err := rows.Scan(&agent, &c.Accounted, &c.Duplicate, &c.Late, &c.Future, &c.Malformed, &c.WithoutTime, &c.ClippedMicros); err != nil {
				return err
			}
			out[agent] = c
		}
		return rows.Err()
	})
	return out, classify(err)
}

// Time that samples were sent for and that no event has is counted: what they claim
// beyond MaxGap, and looks that stand for nothing.
func TestGapsAreCounted(t *testing.T) {
	minutes := func(n int64, relayed bool, every time.Duration) []Sample {
		var out []Sample
		for i := range n {
			end := base + i*every.Microseconds()
			s := Sample{GPU: "g", Start: end - every.Microseconds(), End: end, Used: 0, Relayed: relayed}
			if relayed || i == 0 {
				s.Start = end
			}
			out = append(out, s)
		}
		return out
	}
	for name, tc := range map[string]struct {
		samples []Sample
		want    Counts
	}{
		"an agent that looks often":           {minutes(20, false, 10*time.Second), Counts{Accounted: 20, WithoutTime: 1}},
		"an agent that looks just enough":     {minutes(20, false, 20*time.Second), Counts{Accounted: 20, WithoutTime: 1}},
		"an agent that looks too seldom":      {minutes(20, false, 50*time.Second), Counts{Accounted: 20, WithoutTime: 1, ClippedMicros: 19 * 30 * second}},
		"a collector that scrapes often":      {minutes(20, true, 10*time.Second), Counts{Accounted: 20, WithoutTime: 1}},
		"a collector that scrapes enough":     {minutes(20, true, 20*time.Second), Counts{Accounted: 20, WithoutTime: 1}},
		"a collector that scrapes too seldom": {minutes(20, true, 21*time.Second), Counts{Accounted: 20, WithoutTime: 20}},
	} {
		w, claimed := newWorld(t, testOptions), int64(0)
		for i := range tc.samples {
			claimed += tc.samples[i].End - tc.samples[i].Start
			w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: tc.samples[i].End, Samples: tc.samples[i : i+1]})
			if i%3 == 0 {
				w.commit()
				w.die()
			}
		}
		w.flush()
		if w.counts != tc.want {
			t.Errorf("%s: %+v, want %+v", name, w.counts, tc.want)
		}
		accounted := int64(0)
		for _, v := range net(t, w.events) {
			accounted += v
		}
		if !tc.samples[0].Relayed && accounted != claimed-w.counts.ClippedMicros {
			t.Errorf("%s: of %d us %d are accounted, and %d counted as clipped", name, claimed, accounted, w.counts.ClippedMicros)
		}
	}
}
