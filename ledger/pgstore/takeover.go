package pgstore

import (
	"context"
	"time"

	"github.com/tallystick/tallystick/internal/postgres"
)

// takeoverPatience is how long an assignment waits for the transaction of an
// earlier owner. A commit takes milliseconds; one that takes this long belongs
// to a process that was stopped, or is cut off, with the partition's row locked,
// and its server process would wait for it for ever.
const takeoverPatience = 5 * time.Second

// evictBlockers ends, after takeoverPatience, the server processes that the
// backend with the pid waits for, until the returned function is called. Only
// those of the writer's own login can be ended. What such an owner was
// committing is rolled back, or was durable already: either way the epoch that
// we are about to raise fences it.
func (s *Store) evictBlockers(ctx context.Context, pid uint32) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(takeoverPatience, func() {
		// An error leaves us waiting as before; the caller's context bounds that.
		_ = s.db.Tx(ctx, func(tx postgres.Tx) error {
			_, err := tx.Exec(ctx, `
				select pg_terminate_backend(b.pid) from unnest(pg_blocking_pids($1)) as b(pid)
				join pg_stat_activity a on a.pid = b.pid where a.usename = session_user`, int32(pid))
			return err
		})
	})
	return func() {
		timer.Stop()
		cancel()
	}
}
