package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

// signing is what signs this process's logs.
type signing struct {
	dir   *checkpoint.Dir
	logs  []*checkpoint.Checkpointer
	store *pgstore.Checkpoints
}

// signingKeys are the ring's keys of checkpoints.
type signingKeys struct{ ring *keyring.Ring }

func (k signingKeys) SigningEpoch(id tenant.ID) uint32 { return k.ring.Epoch(id, keyring.Checkpoint) }

func (k signingKeys) SigningKey(id tenant.ID, epoch uint32) (ed25519.PrivateKey, error) {
	return k.ring.SigningKey(id, epoch)
}

// openCheckpoints opens what signs both logs and returns the options of a writer
// that never undercuts what is signed.
func (a *app) openCheckpoints() (ledger.Options, error) {
	dir, err := checkpoint.OpenDir(a.cfg.CheckpointDir())
	if err != nil {
		return ledger.Options{}, err
	}
	opts := checkpoint.Options{
		Installation: a.cfg.Name, Interval: time.Duration(a.cfg.Checkpoints.IntervalSeconds) * time.Second, Tenants: a.signedTenants,
	}
	for _, s := range a.cfg.Checkpoints.Witnesses {
		w, err := checkpoint.ParseWitness(s)
		if err != nil {
			return ledger.Options{}, &exitError{exitUsage, fmt.Errorf("checkpoints.witnesses: %w", err)}
		}
		opts.Witnesses = append(opts.Witnesses, w)
	}
	keys, entries := signingKeys{a.ring}, pglog.NewLedger(a.ledgerDB, a.appDB)
	a.signing = signing{dir: dir, store: pgstore.NewCheckpoints(a.ledgerDB)}
	for _, source := range []checkpoint.Source{entries, pglog.NewAudit(a.ledgerDB, a.appDB)} {
		a.signing.logs = append(a.signing.logs, checkpoint.New(source, a.signing.store, dir, keys, opts, a.log))
	}
	ends := func(ctx context.Context) ([]int64, error) { return a.admin.EndOffsets(ctx, a.kafkaCfg.Topics().Events) }
	return ledger.Options{
		Floor:    checkpoint.NewFloor(entries, a.signing.store, dir, keys, a.cfg.Name, a.ring.Tenants),
		Recover:  a.cfg.Ledger.Recover,
		Recovery: pgstore.NewRecovery(a.ledgerDB, a.ring, ends),
		Tail:     ledger.NewKafkaTail(a.kafkaCfg, a.admin),
	}, nil
}

// startCheckpoints starts the signing of both logs. It comes before the writer:
// parts stop the newest first, so the last round is after the last commit.
func (a *app) startCheckpoints() {
	for _, c := range a.signing.logs {
		a.start("checkpoints of "+c.Status().Log, c.Run)
	}
}

// signedTenants are the tenants of the partitions that this process writes, but
// for partitions that are replayed after a restore: nothing of them is
// published before it is what was published.
func (a *app) signedTenants() []tenant.ID {
	places := a.writer.Stats().Places()
	var ids []tenant.ID
	for _, id := range a.ring.Tenants() {
		if place, ok := places[id.Partition(a.topic.Partitions)]; ok && !place.Recovering {
			ids = append(ids, id)
		}
	}
	return ids
}

// signingFaults are what status shows of checkpoints that are not signed, or not
// cosigned.
func (a *app) signingFaults() (list []string) {
	for _, c := range a.signing.logs {
		s := c.Status()
		for i := range s.Faults {
			list = append(list, "checkpoints: "+s.Faults[i].Error())
		}
		for _, alarm := range s.Alarms {
			list = append(list, "checkpoints: "+s.Log+": "+alarm)
		}
	}
	return list
}
