package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// RerateJob prices the usage of one tenant anew that occurred in [From, To):
// what differs from the price under the book in force gets a correction.
type RerateJob struct {
	Tenant   string
	ID       string // a UUID
	From, To int64  // unix nanoseconds
	// DryRun counts and adds up, and asks for no correction.
	DryRun  bool
	AskedAt int64 // unix nanoseconds; what the book knew by then counts
	// Candidate prices under a candidate in place of the book in force, and PriceAt
	// (unix nanoseconds), when not 0, as of that time in place of the usage's own.
	// Both go with DryRun only.
	Candidate string
	PriceAt   int64
	// Last is the last entry that is looked at, Cursor the last that is done. The
	// sums below are of the entries up to Planned: they are stored before the
	// corrections are asked for, so that a job that is killed in between and asks
	// again counts nothing twice and misses nothing.
	Last, Cursor, Planned int64

	LookedAt   int64     // usage entries in the time range
	Changed    int64     // of them, those whose price differs
	Difference money.Sum // what their prices change by
	Before     money.Sum // what those looked at cost, as far as they have a price
}

// RerateState is a usage entry in the newest form that the ledger has of it.
type RerateState struct {
	Seq       int64  // of the entry that says it
	Canonical []byte // of that entry
}

// RerateStore keeps jobs and reads what they are about. The lease of a job keeps
// two processes from working on it at once; should they, nothing is doubled.
type RerateStore interface {
	// ClaimRerate leases a job of the tenants to the owner, for a while: the one
	// that was asked for first and that nobody holds. ok is false without one.
	ClaimRerate(ctx context.Context, tenants []string, owner string, lease time.Duration) (job RerateJob, ok bool, err error)
	// SaveRerate stores the job's progress and renews its lease. ErrLease when it
	// is not the owner's any more.
	SaveRerate(ctx context.Context, job *RerateJob, owner string, lease time.Duration) error
	// EndRerate stores how the job ended; failure "" is well. ErrLease.
	EndRerate(ctx context.Context, job *RerateJob, owner, failure string) error
	// RerateStates reads the job's usage entries with numbers in (after, upTo],
	// in order, each in its newest form.
	RerateStates(ctx context.Context, job *RerateJob, after, upTo int64) ([]RerateState, error)
	// NewestBook is the price book in force in the partition, nil before the
	// first. When it is the one with the hash, content is nil.
	NewestBook(ctx context.Context, partition int32, have chain.Hash) (hash chain.Hash, content []byte, err error)
	// CandidateBook is the candidate's book.
	CandidateBook(ctx context.Context, id string) (content []byte, err error)
	// NextOffset is how far the partition is ledgered.
	NextOffset(ctx context.Context, partition int32) (int64, error)
}

// ErrLease says that a job belongs to another process by now, or has ended.
var ErrLease = errors.New("ledger: the re-rate job is no longer ours")

// errNoBook ends a job whose partition has no price book.
var errNoBook = errors.New("no price book is in force")

const (
	// rerateChunk is how many numbers of the chain a job looks at between two
	// notes of its progress, which bounds its memory.
	rerateChunk = 4_000
	// rerateAhead is how many corrections may wait for hop 3: the records of
	// other tenants of the partition wait behind them.
	rerateAhead = 20_000
	rerateLease = 10 * time.Second
	reratePoll  = 2 * time.Second // between looks for a job
	ledgerPoll  = 20 * time.Millisecond
	// rerateTenants is how many tenants one look for a job takes.
	rerateTenants = 1_000
)

// Rerater works on re-rate jobs, one at a time. It appends to no chain: it asks
// hop 3 for corrections through the log, under ids that depend on what they
// correct alone, so that a job which is killed and goes on asks for the same.
type Rerater struct {
	store RerateStore
	pub   Publisher
	topic Topic
	name  string // of the topic events
	owner string
	list  func() []tenant.ID
	log   *slog.Logger
	size  int64 // of a chunk, in numbers of the chain
	book  *pricing.Book
	// candidate is the one that book is of, "" for a book in force.
	candidate string
}

// NewRerater makes a Rerater. owner is unique to the process, a UUID; list gives
// the tenants whose jobs it may take.
func NewRerater(store RerateStore, pub Publisher, topics kafka.Topics, topic Topic, owner string, list func() []tenant.ID, log *slog.Logger) *Rerater {
	return &Rerater{store: store, pub: pub, topic: topic, name: topics.Events, owner: owner, size: rerateChunk, list: list, log: log}
}

// Run works on jobs until ctx ends. A job that fails for a reason that passes is
// taken up again when its lease is over.
func (r *Rerater) Run(ctx context.Context) error {
	for {
		worked, err := r.next(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "re-rate job interrupted", slog.Any("err", err))
		}
		if worked && err == nil {
			continue
		}
		if !sleep(ctx, reratePoll) {
			return nil
		}
	}
}

// next works on one job, if there is any.
func (r *Rerater) next(ctx context.Context) (worked bool, err error) {
	ids := r.list()
	for len(ids) > 0 {
		n := min(len(ids), rerateTenants)
		names := make([]string, n)
		for i, id := range ids[:n] {
			names[i] = string(id)
		}
		ids = ids[n:]
		job, ok, err := r.store.ClaimRerate(ctx, names, r.owner, rerateLease)
		if err != nil {
			return false, fmt.Errorf("look for a job: %w", err)
		}
		if ok {
			return true, r.work(ctx, &job)
		}
	}
	return false, nil
}

// work goes through the job's entries from its cursor on.
func (r *Rerater) work(ctx context.Context, job *RerateJob) error {
	r.log.LogAttrs(ctx, slog.LevelInfo, "re-rate job goes on", slog.String("tenant", job.Tenant), slog.String("job", job.ID),
		slog.Int64("cursor", job.Cursor), slog.Int64("last", job.Last), slog.Bool("dry_run", job.DryRun))
	partition := tenant.ID(job.Tenant).Partition(r.topic.Partitions)
	asked := int64(-1) // the offset of the last correction that was asked for
	for job.Cursor < job.Last {
		upTo := min(job.Last, job.Cursor+r.size)
		if job.Planned > job.Cursor {
			upTo = job.Planned
		}
		recs, err := r.chunk(ctx, job, partition, upTo)
		if errors.Is(err, errNoBook) {
			return r.store.EndRerate(ctx, job, r.owner, err.Error())
		}
		if err != nil {
			return err
		}
		if err := r.store.SaveRerate(ctx, job, r.owner, rerateLease); err != nil {
			return err
		}
		offset, err := r.ask(ctx, recs)
		if err != nil {
			return err
		}
		asked, job.Cursor = max(asked, offset), upTo
		if err := r.await(ctx, job, partition, asked-rerateAhead); err != nil {
			return err
		}
	}
	if err := r.await(ctx, job, partition, asked); err != nil {
		return err
	}
	return r.store.EndRerate(ctx, job, r.owner, "")
}

// await waits until the offset is ledgered, and keeps the lease meanwhile.
func (r *Rerater) await(ctx context.Context, job *RerateJob, partition int32, offset int64) error {
	for renewed := time.Now(); ; {
		next, err := r.store.NextOffset(ctx, partition)
		if err != nil || next > offset {
			return err
		}
		if time.Since(renewed) > rerateLease/4 {
			if err := r.store.SaveRerate(ctx, job, r.owner, rerateLease); err != nil {
				return err
			}
			renewed = time.Now()
		}
		if !sleep(ctx, ledgerPoll) {
			return ctx.Err()
		}
	}
}

// chunk makes the records that ask for the corrections of the job's entries up
// to a number, and adds those to the job's sums unless they are in there.
func (r *Rerater) chunk(ctx context.Context, job *RerateJob, partition int32, upTo int64) (recs []kafka.Record, err error) {
	if err := r.refresh(ctx, job, partition); err != nil {
		return nil, err
	}
	states, err := r.store.RerateStates(ctx, job, job.Cursor, upTo)
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	counted := job.Planned >= upTo
	job.Planned = upTo
	now := time.Now().UnixMilli() // the record's own time, for Kafka's retention
	var e chain.Entry
	for i := range states {
		if err := e.Decode(states[i].Canonical); err != nil {
			return nil, fmt.Errorf("stored entry %d of tenant %s: %w", states[i].Seq, job.Tenant, err)
		}
		rr, delta, differs := r.reprice(job, &e)
		if !counted {
			if err := job.add(&e, delta, differs); err != nil {
				return nil, err
			}
		}
		if differs && !job.DryRun {
			recs = append(recs, kafka.Record{
				Topic: r.name, Partition: partition, Key: []byte(job.Tenant), Value: event.AppendRerateRecord(nil, &rr), TimestampMs: now,
			})
		}
	}
	return recs, nil
}

// add counts an entry that was looked at.
func (j *RerateJob) add(e *chain.Entry, delta money.Pico, differs bool) error {
	j.LookedAt++
	if net, ok := e.Net(); ok && net.Priced {
		if err := j.Before.AddPico(net.Cost); err != nil {
			return err
		}
	}
	if !differs {
		return nil
	}
	j.Changed++
	return j.Difference.AddPico(delta)
}

// ask writes the records and returns the offset of the last.
func (r *Rerater) ask(ctx context.Context, recs []kafka.Record) (int64, error) {
	if len(recs) == 0 {
		return -1, nil
	}
	results := make([]kafka.Result, len(recs))
	if err := r.pub.ProduceBatch(ctx, recs, results); err != nil {
		return -1, fmt.Errorf("ask for corrections: %w", err)
	}
	return results[len(results)-1].Offset, nil
}

// refresh takes the job's candidate, or the book in force in the partition.
func (r *Rerater) refresh(ctx context.Context, job *RerateJob, partition int32) error {
	if job.Candidate != "" {
		return r.refreshCandidate(ctx, job.Candidate)
	}
	r.candidate = ""
	have := chain.Hash{}
	if r.book != nil {
		have = r.book.Hash()
	}
	hash, content, err := r.store.NewestBook(ctx, partition, have)
	switch {
	case err != nil:
		return fmt.Errorf("read the price book: %w", err)
	case hash == have && r.book != nil:
		return nil
	case content == nil:
		return errNoBook
	}
	if r.book, err = pricing.ParseBook(content); err != nil {
		return fmt.Errorf("price book: %w", err)
	}
	return nil
}

// refreshCandidate takes a candidate, which never changes.
func (r *Rerater) refreshCandidate(ctx context.Context, id string) error {
	if r.candidate == id {
		return nil
	}
	content, err := r.store.CandidateBook(ctx, id)
	if err != nil {
		return fmt.Errorf("read the candidate %s: %w", id, err)
	}
	book, err := pricing.ParseBook(content)
	if err != nil {
		return fmt.Errorf("candidate %s: %w", id, err)
	}
	r.book, r.candidate = book, id
	return nil
}

// reprice compares what an entry costs with its price under the book in force.
// A price that the book does not have leaves the one that the entry has.
func (r *Rerater) reprice(job *RerateJob, e *chain.Entry) (rr event.Rerate, delta money.Pico, differs bool) {
	net, ok := e.Net()
	if !ok {
		return rr, 0, false
	}
	u := usageOf(&e.Event)
	u.KnownAt = job.AskedAt
	if job.PriceAt != 0 {
		u.At = job.PriceAt
	}
	price := r.book.Price(&u)
	if !price.Priced || net.Priced && price.Cost == net.Cost {
		return rr, 0, false
	}
	delta, err := price.Cost.Sub(net.Cost) // both are 0 or more
	if err != nil {
		return rr, 0, false
	}
	rr = event.Rerate{Tenant: job.Tenant, Corrects: e.Event.ID, AskedAt: job.AskedAt}
	if e.Kind == chain.Correction {
		rr.Corrects = e.Event.Corrects
	}
	rr.ID = rerateID(job.Tenant, net.Seq, e.Seq, r.book.Hash())
	return rr, delta, true
}

// rerateID is the id of the correction of an original by a price book, made of
// what stands there until now: whoever asks again before it is ledgered asks for
// the same, and who goes back to an earlier book later for another one. It is a
// UUID of version 8 over
//
//	SHA-256("tallystick/rerate/v1" ‖ 0x00 ‖ tenant ‖ 0x00 ‖ original u64 ‖ newest u64 ‖ book hash)
func rerateID(tenantID string, original, newest int64, book [sha256.Size]byte) string {
	b := append([]byte("tallystick/rerate/v1\x00"), tenantID...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(original))
	b = binary.BigEndian.AppendUint64(b, uint64(newest))
	sum := sha256.Sum256(append(b, book[:]...))
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// usageOf is what pricing needs to know of an event.
func usageOf(ev *event.Event) pricing.Usage {
	return pricing.Usage{
		Provider: ev.Provider, Model: ev.Model, Region: ev.Region, ServiceTier: ev.ServiceTier,
		Tokens: ev.Tokens, ContextTokens: ev.ContextTokens, At: ev.OccurredAt, KnownAt: ev.ReceivedAt,
		GPU: ev.IsGPU(), GPUMicros: ev.GPUMicros, Purchase: ev.PurchaseOption,
	}
}
