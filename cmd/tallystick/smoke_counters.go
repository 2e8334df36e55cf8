package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// checkCounters compares the duplicates and conflicts that the ledger counted,
// in the transactions of its offsets, with what was sent. They are read from the
// stopped server's own database: the figures of the API begin with the process.
//
// A request without an answer was sent again, and may have arrived both times:
// by as many more duplicates and conflicts may have been counted at most.
func (s *smoke) checkCounters(ctx context.Context) error {
	counts, err := s.readCounters(ctx)
	if err != nil {
		return fmt.Errorf("smoke: counters: %w", err)
	}
	var conflicts, rejections int64
	for _, t := range s.want.tenants {
		c, w := counts[t], s.want.Tenants[t]
		s.counted += c.duplicates
		conflicts += c.conflicts
		rejections += s.ledgers[t].kinds["rejected"]
		if c.duplicates < w.Duplicates {
			s.fault("tenant %s: %d duplicates counted, oracle %d", t, c.duplicates, w.Duplicates)
		}
		s.equal(t, "conflicts counted", c.conflicts, "ledger", s.ledgers[t].kinds["rejected"])
	}
	r := s.res.Retransmitted
	if most := s.want.Duplicates + r.Accepted + r.Duplicates; s.counted > most {
		s.fault("tenant all: %d duplicates counted, at most %d were sent", s.counted, most)
	}
	if most := s.want.Conflicts + r.Conflicts; rejections > most {
		s.fault("tenant all: %d rejections, at most %d were sent", rejections, most)
	}
	s.say("duplicates: %d injected, %d counted, at most %d sent again; conflicts: %d injected, %d counted, at most %d sent again",
		s.want.Duplicates, s.counted, r.Accepted+r.Duplicates, s.want.Conflicts, conflicts, r.Conflicts)
	return nil
}

type smokeCounts struct{ duplicates, conflicts int64 }

// readCounters starts the database that the server has left.
func (s *smoke) readCounters(ctx context.Context) (_ map[string]smokeCounts, err error) {
	data := s.srv.dataDir()
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{DataDir: filepath.Join(data, "postgres"), OwnProcessGroup: true})
	if err != nil {
		return nil, err
	}
	defer func() {
		if serr := pg.Stop(context.WithoutCancel(ctx)); err == nil {
			err = serr
		}
	}()
	ring, err := keyring.Open(filepath.Join(data, "keys"), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer ring.Close() //nolint:errcheck // only read
	db, err := openAsApp(ctx, ring, pg.DSN(embedded.PostgresSuperuser, "postgres"))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	counts := map[string]smokeCounts{}
	for _, t := range s.want.tenants {
		var c smokeCounts
		err := db.InTenant(ctx, tenant.ID(t), func(tx postgres.Tx) error {
			return tx.QueryRow(ctx, `select coalesce(sum(duplicates), 0)::bigint, coalesce(sum(conflicts), 0)::bigint from ledger.counter where tenant_id = $1`, t).
				Scan(&c.duplicates, &c.conflicts)
		})
		if err != nil {
			return nil, err
		}
		counts[t] = c
	}
	return counts, nil
}

// openAsApp opens the database as the role that reads one tenant at a time,
// with the keys of the server whose database it is.
func openAsApp(ctx context.Context, ring *keyring.Ring, dsn string) (*postgres.DB, error) {
	secret := ring.ContextSecret()
	signer := postgres.NewSigner(1, secret)
	dsns, err := postgres.Provision(ctx, dsn, signer, secret)
	if err != nil {
		return nil, err
	}
	return postgres.Open(ctx, dsns[postgres.RoleApp], signer, postgres.Options{MaxConns: 2, Name: "smoke"})
}
