package analytics

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// ErrBehind says that not all that the ledger has of a tenant is in ClickHouse yet, so
// that an entry which is not found there may exist. Ask again later.
var ErrBehind = errors.New("analytics: ClickHouse does not have all of the tenant's entries yet")

// LongestCall bounds how long a call takes, and so how far apart the times are that its
// reporters give it. Bedrock ends one after an hour.
const LongestCall = time.Hour

const (
	// catchUp is how long a look-up waits for entries that are on their way, and
	// catchUpPause how often it looks.
	catchUp      = 5 * time.Second
	catchUpPause = 50 * time.Millisecond
)

// ProgressReader knows how far a tenant's ledger is, and how far of it is in
// ClickHouse.
type ProgressReader interface {
	// Progress returns the number of the newest entry in the ledger, and that of the
	// newest one which is stored with all before it.
	Progress(ctx context.Context, id tenant.ID) (newest, stored int64, err error)
}

// Metered knows the calls that the metering proxy has entries of, for those who read
// the provider's own logs of calls. It is safe for concurrent use.
type Metered struct {
	reporter *Reporter
	progress ProgressReader
}

// NewMetered makes a Metered that asks as the reporter does.
func NewMetered(reporter *Reporter, progress ProgressReader) *Metered {
	return &Metered{reporter, progress}
}

// CaughtUp waits a moment until all that the ledger has of the tenant now is in
// ClickHouse, and returns the number of the newest entry there; then the error is
// ErrBehind.
func (m *Metered) CaughtUp(ctx context.Context, id tenant.ID) (stored int64, err error) {
	goal := int64(-1)
	for deadline := time.Now().Add(catchUp); ; {
		newest, stored, err := m.progress.Progress(ctx, id)
		if err != nil {
			return 0, fmt.Errorf("read what ClickHouse covers: %w", err)
		}
		if goal < 0 {
			goal = newest
		}
		if stored >= goal {
			return stored, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%w: it has %d of %d", ErrBehind, stored, goal)
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(catchUpPause):
		}
	}
}

// Calls returns which of some calls, which a provider logged between two times, the
// proxy has entries of, among the tenant's entries up to the number that CaughtUp gave:
// by the provider's id of the request, with the tokens that the entry has in all. A call
// is known by tenant, provider, id and time within LongestCall. The error is ErrBehind
// for a store that has lost such entries.
func (m *Metered) Calls(ctx context.Context, id tenant.ID, stored int64, requests []string, first, last time.Time) (map[string]int64, error) {
	from, until := first.Add(-LongestCall), last.Add(LongestCall)
	announced, found := int64(0), map[string]int64{}
	params := map[string]string{"start": intParam(from.UnixMicro()), "end": intParam(until.UnixMicro()), "requests": stringsParam(requests)}
	err := m.reporter.read(ctx, id, meteredSQL, params, func(rows driver.Rows) error {
		for rows.Next() {
			var request string
			var used int64
			if err := rows.Scan(&request, &used); err != nil {
				return err
			}
			if request == "" {
				announced = used
				continue
			}
			found[request] = used
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	if announced < stored {
		return nil, fmt.Errorf("%w: of %d entries that it had it knows %d", ErrBehind, stored, announced)
	}
	return found, nil
}

// loggedProvider is the provider whose logs of calls are read by ingest/bedrock.
const loggedProvider = "bedrock"

// loggedRequest is the provider's id of a call that the proxy metered and that the
// provider logs as well, else "".
func loggedRequest(e *chain.Entry) string {
	ev := &e.Event
	if e.Kind != chain.Usage || ev.Provider != loggedProvider || !strings.HasPrefix(ev.ProducerID, event.ProxyProducer) {
		return ""
	}
	return ev.ProviderRequestID
}
