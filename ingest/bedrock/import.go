package bedrock

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// Summary is what became of the records of objects.
type Summary struct {
	Objects   int64
	Records   int64 // that are some
	Accepted  int64 // events, those that the ledger has already too
	Malformed int64 // lines that are no record
	Damaged   int64 // objects that could not be read to their end
	Estimated int64 // events whose tokens are an estimate
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
	// Pauses are slept, one after the other, before events that are not durable
	// are submitted again; when they are used up the import ends with the error.
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
		im := &importing{job: j, sink: sink, name: name, dec: NewDecoder(src, j.Key), sum: sum}
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
			return im.submit(ctx)
		case err != nil:
			// What was read of it counts all the same.
			if lost := im.submit(ctx); lost != nil {
				return lost
			}
			return err
		}
		if err := im.record(ctx); err != nil {
			return err
		}
		if len(im.events) == batchEvents {
			if err := im.submit(ctx); err != nil {
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
	im.sum.Statuses[e.Status]++
	for c, n := range e.Tokens {
		im.sum.Tokens[c] += n
	}
	if e.Estimated {
		im.sum.Estimated++
	}
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

// submit sends the events at hand, again and again while they are not durable.
func (im *importing) submit(ctx context.Context) error {
	if len(im.events) == 0 {
		return nil
	}
	for pauses := im.job.Pauses; ; pauses = pauses[1:] {
		out, err := im.sink.Submit(ctx, im.job.Who, im.events)
		if err == nil {
			im.sum.Accepted += int64(out.Accepted)
			for _, r := range out.Refusals {
				im.sum.Refused[r.Rule+"."+r.Field]++
			}
			im.events = im.events[:0]
			return nil
		}
		if !errors.Is(err, ingest.ErrUnavailable) || len(pauses) == 0 {
			return err
		}
		if err := sleep(ctx, pauses[0]); err != nil {
			return err
		}
	}
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
