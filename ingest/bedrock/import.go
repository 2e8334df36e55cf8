package bedrock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// batchEvents is how many events are submitted at once.
const batchEvents = 500

// Sink takes the events; *ingest.Edge does.
type Sink interface {
	// Submit returns when each event is durable or refused; ingest.ErrUnavailable
	// says that some are neither and may be submitted again.
	Submit(ctx context.Context, who authn.Principal, events []event.Event) (ingest.Outcome, error)
}

// Keys derives the key of digests; *keyring.Ring does.
type Keys interface {
	Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error)
}

// Settings says what tenants let their records say; *connections.Store does.
type Settings interface {
	RequestMetadata(ctx context.Context, id tenant.ID) (bool, error)
}

// Calls knows the calls that the metering proxy has entries of; *analytics.Metered does.
type Calls interface {
	// Calls returns which of some calls of a tenant, logged between two times, the proxy
	// has entries of, as far as their events were in the log at asOf: by request id, with
	// the tokens of the entry. Any error means that it is not known.
	Calls(ctx context.Context, id tenant.ID, requests []string, first, last, asOf time.Time) (map[string]int64, error)
}

// ErrUnasked: it is not known which of the calls the metering proxy has entries of, so
// no events were made of them.
var ErrUnasked = errors.New("bedrock: it cannot be found out now which of the calls the metering proxy has entries of")

// Summary is what became of the records of objects.
type Summary struct {
	Objects   int64
	Records   int64 // that are some
	Accepted  int64 // events, those that the ledger has already too
	Malformed int64 // lines that are no record
	Damaged   int64 // objects that could not be read to their end
	Estimated int64 // events whose tokens are an estimate
	// Metered are records of calls that the metering proxy has entries of: they make no
	// event. Of Differing ones the record states another number of tokens.
	Metered, Differing int64
	// Refused are events that broke a rule, by "rule.field".
	Refused map[string]int64
	// Statuses counts the events by status, and Tokens adds their tokens up.
	Statuses map[string]int64
	Tokens   tokens.Vector
}

// RefusedTotal is how many events broke a rule.
func (s *Summary) RefusedTotal() (n int64) {
	for _, c := range s.Refused {
		n += c
	}
	return n
}

// Job is one tenant's importing: what its records are hashed under, and what may
// be kept of them.
type Job struct {
	Tenant tenant.ID
	Who    authn.Principal
	// Key is the tenant's of keyring.Digest.
	Key [keyring.KeyBytes]byte
	// Metadata keeps requestMetadata, identities, accounts and digests.
	Metadata bool
	// Follow opens an answer that a record refers to; nil follows none. Its error
	// ErrGone leaves the record with its own counts, any other ends the import.
	Follow func(ctx context.Context, ref string) (io.ReadCloser, error)
	// Calls is asked before events are made of records; nil is for tenants that have no
	// metering proxy.
	Calls Calls
	// Pauses are slept, one after the other, before events that are not durable are
	// submitted again, and before Calls is asked again; when they are used up the import
	// ends with the error.
	Pauses []time.Duration
}

// NewJob makes a job with the tenant's key and setting.
func NewJob(ctx context.Context, keys Keys, settings Settings, id tenant.ID, who authn.Principal) (Job, error) {
	key, err := keys.Derive(id, keyring.Digest, 0)
	if err != nil {
		return Job{}, fmt.Errorf("bedrock: the digest key of tenant %s: %w", id, err)
	}
	metadata, err := settings.RequestMetadata(ctx, id)
	if err != nil {
		return Job{}, err
	}
	return Job{Tenant: id, Who: who, Key: key, Metadata: metadata}, nil
}

// importing is the work on one object.
type importing struct {
	job    *Job
	sink   Sink
	name   string
	begun  time.Time
	dec    *Decoder
	rec    Record
	events []event.Event
	sum    *Summary
}

// Import turns an object into events and submits them, and adds what became of
// them to sum. Its name tells records without a request id apart; those of an
// object without a name are told apart by what they say. When it returns nil every event is durable or was refused. The
// object may be compressed by gzip or zstd. A damaged object gives what could be
// read of it, and no error.
func (j *Job) Import(ctx context.Context, sink Sink, name string, object io.Reader, sum *Summary) error {
	if sum.Refused == nil {
		sum.Refused, sum.Statuses = map[string]int64{}, map[string]int64{}
	}
	src, err := plain(object)
	if err == nil {
		defer src.Close()
		im := &importing{job: j, sink: sink, name: name, begun: time.Now(), dec: NewDecoder(src, j.Key), sum: sum}
		err = im.run(ctx)
	}
	if errors.Is(err, ErrDamaged) {
		sum.Damaged++
		err = nil
	}
	if err == nil {
		sum.Objects++
	}
	return err
}

func (im *importing) run(ctx context.Context) error {
	for {
		err := im.dec.Next(&im.rec)
		switch {
		case errors.Is(err, ErrMalformed):
			im.sum.Malformed++
			continue
		case errors.Is(err, io.EOF):
			return im.flush(ctx)
		case err != nil:
			// What was read of it counts all the same.
			if lost := im.flush(ctx); lost != nil {
				return lost
			}
			return err
		}
		if err := im.record(ctx); err != nil {
			return err
		}
		if len(im.events) == batchEvents {
			if err := im.flush(ctx); err != nil {
				return err
			}
		}
	}
}

// record makes the event of the record at hand.
func (im *importing) record(ctx context.Context) error {
	if im.rec.wantsAnswer() && im.job.Follow != nil {
		if err := im.follow(ctx); err != nil {
			return err
		}
	}
	var at Place
	if im.name != "" {
		at = Place{Object: im.name, Index: im.dec.Records()}
	}
	e, err := im.rec.Event(im.job.Tenant, at, im.job.Metadata)
	if err != nil {
		im.sum.Malformed++
		return nil
	}
	im.sum.Records++
	im.events = append(im.events, e)
	return nil
}

func (im *importing) follow(ctx context.Context) error {
	body, err := im.job.Follow(ctx, im.rec.OutputRef)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer body.Close()
	src, err := plain(body)
	if err == nil {
		defer src.Close()
		err = im.dec.Follow(&im.rec, src)
	}
	if errors.Is(err, ErrDamaged) {
		return nil
	}
	return err
}

// flush submits the events at hand, but for those of calls that the metering proxy has
// entries of.
func (im *importing) flush(ctx context.Context) error {
	if err := im.again(ctx, ErrUnasked, im.leaveMetered); err != nil {
		return err
	}
	for i := range im.events {
		e := &im.events[i]
		im.sum.Statuses[e.Status]++
		for c, n := range e.Tokens {
			im.sum.Tokens[c] += n
		}
		if e.Estimated {
			im.sum.Estimated++
		}
	}
	if len(im.events) == 0 {
		return nil
	}
	return im.again(ctx, ingest.ErrUnavailable, im.submit)
}

// again does something until it succeeds, fails by another error than the one that
// passes, or the job's pauses are used up.
func (im *importing) again(ctx context.Context, passes error, do func(context.Context) error) error {
	for pauses := im.job.Pauses; ; pauses = pauses[1:] {
		err := do(ctx)
		if err == nil || !errors.Is(err, passes) || len(pauses) == 0 {
			return err
		}
		if err := sleep(ctx, pauses[0]); err != nil {
			return err
		}
	}
}

// leaveMetered leaves out the events of calls that the metering proxy has entries of.
func (im *importing) leaveMetered(ctx context.Context) error {
	if im.job.Calls == nil {
		return nil
	}
	var requests []string
	first, last := int64(math.MaxInt64), int64(math.MinInt64)
	for i := range im.events {
		if e := &im.events[i]; e.ProviderRequestID != "" {
			requests = append(requests, e.ProviderRequestID)
			first, last = min(first, e.OccurredAt), max(last, e.OccurredAt)
		}
	}
	if len(requests) == 0 {
		return nil
	}
	metered, err := im.job.Calls.Calls(ctx, im.job.Tenant, requests, time.Unix(0, first), time.Unix(0, last), im.begun)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnasked, err)
	}
	im.events = slices.DeleteFunc(im.events, func(e event.Event) bool {
		used, known := metered[e.ProviderRequestID]
		if known {
			im.sum.Metered++
		}
		if known && used != e.Tokens.Total() {
			im.sum.Differing++
		}
		return known
	})
	return nil
}

// submit sends the events at hand.
func (im *importing) submit(ctx context.Context) error {
	out, err := im.sink.Submit(ctx, im.job.Who, im.events)
	if err != nil {
		return err
	}
	im.sum.Accepted += int64(out.Accepted)
	for _, r := range out.Refusals {
		im.sum.Refused[r.Rule+"."+r.Field]++
	}
	im.events = im.events[:0]
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
