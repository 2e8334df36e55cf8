package keyring

import (
	"context"
	"log/slog"
	"time"
)

// Rotator begins new epochs when they are due, and leads MAC epochs, whoever
// began them, through the ledger. It may run in several processes at once.
type Rotator struct {
	Ring     *Ring
	Schedule Schedule
	// Announce brings MAC epochs to the ledger and answers those that are in
	// force there. It is given the same ones until they are.
	Announce func(ctx context.Context, epochs []KeyEpoch) (inForce []KeyEpoch, err error)
	// Due is told before epochs begin because of their age. An error keeps them
	// from beginning: it is tried again. nil: nobody is told.
	Due func(ctx context.Context, epochs []KeyEpoch) error
	Log *slog.Logger
}

const (
	// rotatorTick is how often epochs that wait for the ledger are looked at, and
	// so how long an epoch that a command began waits for its control record.
	rotatorTick = 2 * time.Second
	// rotatorSchedule is how often ages are looked at.
	rotatorSchedule = 10 * time.Minute
	// rotatorRetry is how long after a failure: each try puts rows into the audit log.
	rotatorRetry = time.Minute
)

// Run works until ctx ends. What fails is logged and tried again.
func (o *Rotator) Run(ctx context.Context) error {
	tick := time.NewTicker(rotatorTick)
	defer tick.Stop()
	var next time.Time
	for {
		if now := time.Now(); !now.Before(next) {
			next = now.Add(rotatorSchedule)
			if err := o.rotate(ctx); err != nil && ctx.Err() == nil {
				next = now.Add(rotatorRetry)
				o.Log.LogAttrs(ctx, slog.LevelError, "keys are not rotated", slog.Any("err", err))
			}
		}
		if err := o.lead(ctx); err != nil && ctx.Err() == nil {
			o.Log.LogAttrs(ctx, slog.LevelWarn, "key epochs wait for the ledger", slog.Any("err", err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// rotate begins what is due.
func (o *Rotator) rotate(ctx context.Context) error {
	o.Ring.look()
	if _, due := o.Ring.due(o.Schedule); len(due) > 0 && o.Due != nil {
		if err := o.Due(ctx, due); err != nil {
			return err
		}
	}
	made, err := o.Ring.RotateDue(o.Schedule)
	for _, e := range made {
		o.Log.LogAttrs(ctx, slog.LevelInfo, "key epoch begins", slog.String("tenant", string(e.Tenant)),
			slog.String("series", e.Series.String()), slog.Uint64("epoch", uint64(e.Number)), slog.String("state", e.State.String()))
	}
	return err
}

// lead announces epochs that wait and puts to use those that are in force.
func (o *Rotator) lead(ctx context.Context) error {
	pending := o.Ring.Pending()
	if len(pending) == 0 {
		return nil
	}
	inForce, err := o.Announce(ctx, pending)
	if err != nil {
		return err
	}
	if len(inForce) == 0 {
		return nil
	}
	if err := o.Ring.Activate(inForce...); err != nil {
		return err
	}
	for _, e := range inForce {
		o.Log.LogAttrs(ctx, slog.LevelInfo, "key epoch is in force", slog.String("tenant", string(e.Tenant)), slog.Uint64("epoch", uint64(e.Number)))
	}
	return nil
}
