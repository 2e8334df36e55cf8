package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Detectors of what stands beside a ledger; those of the ledger itself are in
// package verify.
const (
	byCorrections = "corrections" // what corrections say of their originals
	byPrices      = "prices"      // the price books that entries name
	byPublished   = "published"   // the topic `entries`
	bySealed      = "sealed"      // identities and confidential tags
	byReports     = "reports"     // the sums in ClickHouse
)

// beside holds a tenant's ledger against everything else that has a copy of a
// part of it, or that it names. A ledger that is rewritten behind its last
// checkpoint with stolen keys is intact in itself; these copies are not ours to
// rewrite with it.
type beside struct {
	app     *postgres.DB // as postgres.RoleApp
	ring    *keyring.Ring
	kafka   kafka.Config
	offsets topicOffsets
	reports interface {
		TimeSeries(ctx context.Context, q *report.TimeSeriesRequest) (*report.TimeSeries, error)
	}
}

// topicOffsets says how far a topic reaches; a *kafka.Admin does.
type topicOffsets interface {
	StartOffsets(ctx context.Context, topic string) ([]int64, error)
	EndOffsets(ctx context.Context, topic string) ([]int64, error)
}

// besideFault is where the ledger and something beside it part.
type besideFault struct {
	Detector string
	Seq      int64 // the first entry that it concerns, 0 when it is no single one
	Message  string
}

var _ api.Comparer = (*beside)(nil)

// Compare implements api.Comparer.
func (b *beside) Compare(ctx context.Context, id tenant.ID) ([]*pb.LedgerDifference, error) {
	faults, err := b.check(ctx, id)
	if err != nil {
		return nil, err
	}
	found := make([]*pb.LedgerDifference, len(faults))
	for i, f := range faults {
		found[i] = &pb.LedgerDifference{Detector: f.Detector, Seq: f.Seq, Message: f.Message}
	}
	return found, nil
}

// check runs all checks and returns the first fault of each. What Kafka has
// forgotten within its retention is not compared.
func (b *beside) check(ctx context.Context, id tenant.ID) (faults []besideFault, err error) {
	if !b.ring.Has(id) {
		return nil, api.ErrNotFound
	}
	for _, f := range []func(context.Context, tenant.ID) (*besideFault, error){
		b.checkPrices, b.checkCorrections, b.checkPublished, b.checkSubjects, b.checkTags, b.checkReports,
	} {
		fault, err := f(ctx, id)
		if err != nil {
			return faults, err
		}
		if fault != nil {
			faults = append(faults, *fault)
		}
	}
	return faults, nil
}

// checkPrices holds the stored content of each price book against the hash in
// the chain.
func (b *beside) checkPrices(ctx context.Context, id tenant.ID) (fault *besideFault, err error) {
	books := make(map[chain.Hash]int64) // the control entry that brought it
	var order []chain.Hash
	err = b.entries(ctx, id, chain.Control, func(e *chain.Entry) error {
		if e.ControlKind == event.ControlPriceBook && books[e.ControlHash] == 0 {
			books[e.ControlHash] = e.Seq
			order = append(order, e.ControlHash)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, want := range order {
		var content []byte
		err := b.app.InTenant(ctx, id, func(tx postgres.Tx) error {
			return tx.QueryRow(ctx, `select content from ledger.control where kind = $1 and content_hash = $2 limit 1`,
				event.ControlPriceBook, want[:]).Scan(&content)
		})
		switch {
		case postgres.IsNoRows(err):
			return &besideFault{byPrices, books[want], "the price book that the chain names is not stored"}, nil
		case err != nil:
			return nil, fmt.Errorf("read a price book: %w", err)
		case sha256.Sum256(content) != want:
			return &besideFault{byPrices, books[want], "the stored price book is not the one that the chain names"}, nil
		}
	}
	return nil, nil
}

// correctionPage is how many corrections are read at a time, with the originals
// of those that come first.
const correctionPage = 1000

// checkCorrections adds up what each corrected entry comes to, from one
// correction to the next. The writer finds the newest by an index that no chain
// covers; one that was tampered with shows here.
func (b *beside) checkCorrections(ctx context.Context, id tenant.ID) (fault *besideFault, err error) {
	net := make(map[int64]money.Pico) // by number of the original
	for after, more := int64(0), true; more && fault == nil; {
		err := b.app.InTenant(ctx, id, func(tx postgres.Tx) error {
			page, err := correctionsAfter(ctx, tx, id, after)
			if more = len(page) == correctionPage; err != nil || len(page) == 0 {
				return err
			}
			after = page[len(page)-1].Seq
			if err := addOriginals(ctx, tx, id, page, net); err != nil {
				return err
			}
			fault = firstMisstated(page, net)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read corrections: %w", err)
		}
	}
	return fault, nil
}

// correction is what of one is added up.
type correction struct {
	Seq, of        int64
	cost, netAfter money.Pico
}

func correctionsAfter(ctx context.Context, tx postgres.Tx, id tenant.ID, after int64) (page []correction, err error) {
	rows, err := tx.Query(ctx, `select canonical from ledger.entry where tenant_id = $1 and kind = $2 and seq > $3 order by seq limit $4`,
		string(id), int16(chain.Correction), after, correctionPage)
	if err != nil {
		return nil, err
	}
	err = decodeEach(rows, func(e *chain.Entry) error {
		page = append(page, correction{e.Seq, e.Corrected.Seq, e.Cost, e.Corrected.NetCost})
		return nil
	})
	return page, err
}

// addOriginals adds the costs of the originals that net does not have yet; an
// unpriced one has cost 0.
func addOriginals(ctx context.Context, tx postgres.Tx, id tenant.ID, page []correction, net map[int64]money.Pico) error {
	var wanted []int64
	for _, c := range page {
		if _, known := net[c.of]; !known {
			wanted = append(wanted, c.of)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `select canonical from ledger.entry where tenant_id = $1 and seq = any($2)`, string(id), wanted)
	if err != nil {
		return err
	}
	return decodeEach(rows, func(e *chain.Entry) error {
		net[e.Seq] = e.Cost
		return nil
	})
}

// firstMisstated moves net on by the corrections, and returns the first that
// says something else than what they come to.
func firstMisstated(page []correction, net map[int64]money.Pico) *besideFault {
	for _, c := range page {
		was, known := net[c.of]
		if !known {
			return &besideFault{byCorrections, c.Seq, fmt.Sprintf("it corrects entry %d, which is not stored", c.of)}
		}
		if now, err := was.Add(c.cost); err != nil || now != c.netAfter {
			return &besideFault{byCorrections, c.Seq, fmt.Sprintf("entry %d came to %s USD, and this correction adds %s and says %s", c.of, was, c.cost, c.netAfter)}
		}
		net[c.of] = c.netAfter
	}
	return nil
}

// decodeEach calls fn with every row's entry, valid during the call, and closes
// the rows.
func decodeEach(rows postgres.Rows, fn func(*chain.Entry) error) error {
	defer rows.Close()
	var canonical []byte
	var e chain.Entry
	for rows.Next() {
		if err := rows.Scan(&canonical); err != nil {
			return err
		}
		if err := e.Decode(canonical); err != nil {
			return err // verification has named it before
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
	return rows.Err()
}

// entries decodes the tenant's entries of one kind in order of number.
func (b *beside) entries(ctx context.Context, id tenant.ID, kind chain.Kind, fn func(*chain.Entry) error) error {
	return b.app.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select canonical from ledger.entry where tenant_id = $1 and kind = $2 order by seq`, string(id), int16(kind))
		if err != nil {
			return err
		}
		return decodeEach(rows, fn)
	})
}

// checkPublished holds the stored entries against what was published to the
// topic `entries`, as far as that still reaches.
func (b *beside) checkPublished(ctx context.Context, id tenant.ID) (*besideFault, error) {
	ends, err := b.offsets.EndOffsets(ctx, b.kafka.Topics().Entries)
	if err != nil {
		return nil, fmt.Errorf("entries topic: %w", err)
	}
	starts, err := b.offsets.StartOffsets(ctx, b.kafka.Topics().Entries)
	if err != nil {
		return nil, fmt.Errorf("entries topic: %w", err)
	}
	partition := id.Partition(int32(len(ends)))
	from, to := starts[partition], ends[partition]
	if from >= to {
		return nil, nil
	}
	var first *besideFault
	var f chain.Frame
	err = kafka.ReadRange(ctx, b.kafka, b.kafka.Topics().Entries, partition, kafka.Position{Offset: from}, to, func(recs []kafka.Record) error {
		for i := range recs {
			if err := f.Decode(recs[i].Value); err != nil || f.Tenant != string(id) {
				continue // of others, or put there by somebody else
			}
			fault, err := b.comparePublished(ctx, id, &f)
			if err != nil {
				return err
			}
			if fault != nil && (first == nil || fault.Seq < first.Seq) {
				first = fault
			}
		}
		return nil
	})
	return first, err
}

func (b *beside) comparePublished(ctx context.Context, id tenant.ID, f *chain.Frame) (fault *besideFault, err error) {
	next := f.FirstSeq
	last := f.FirstSeq + int64(len(f.Entries)) - 1
	err = b.app.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select seq, canonical from ledger.entry where tenant_id = $1 and seq between $2 and $3 order by seq`,
			string(id), f.FirstSeq, last)
		if err != nil {
			return err
		}
		defer rows.Close()
		for fault == nil && rows.Next() {
			var seq int64
			var canonical []byte
			if err := rows.Scan(&seq, &canonical); err != nil {
				return err
			}
			if seq != next || !bytes.Equal(canonical, f.Entries[seq-f.FirstSeq].Canonical) {
				fault = &besideFault{byPublished, next, "the stored entry is not the one that was published"}
			}
			next++
		}
		return rows.Err()
	})
	if err == nil && fault == nil && next <= last {
		fault = &besideFault{byPublished, next, "an entry that was published is not stored"}
	}
	return fault, err
}

// checkSubjects opens every sealed identity: each opens only in its own place.
func (b *beside) checkSubjects(ctx context.Context, id tenant.ID) (fault *besideFault, err error) {
	err = b.app.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select pseudonym, identity from ledger.subject where tenant_id = $1 and identity is not null order by pseudonym`, string(id))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var pseudonym string
			var sealed []byte
			if err := rows.Scan(&pseudonym, &sealed); err != nil {
				return err
			}
			at := keyring.Place{Table: "ledger.subject", Column: "identity", Row: pseudonym}
			if err := b.opens(id, keyring.SealSubject, at, sealed); err != nil {
				fault = &besideFault{bySealed, 0, fmt.Sprintf("the identity of %s does not open in its place: %v", pseudonym, err)}
				return nil
			}
		}
		return rows.Err()
	})
	return fault, err
}

// checkTags opens the sealed tags of every entry.
func (b *beside) checkTags(ctx context.Context, id tenant.ID) (fault *besideFault, err error) {
	err = b.entries(ctx, id, chain.Usage, func(e *chain.Entry) error {
		if len(e.Event.SealedTags) == 0 || fault != nil {
			return nil
		}
		at := keyring.Place{Table: "ledger.entry", Column: "sealed_tags", Row: e.Event.ID}
		if err := b.opens(id, keyring.SealTags, at, e.Event.SealedTags); err != nil {
			fault = &besideFault{bySealed, e.Seq, fmt.Sprintf("the sealed tags do not open in their place: %v", err)}
		}
		return nil
	})
	return fault, err
}

// opens tries to open a sealed value. One whose key was destroyed is no fault.
func (b *beside) opens(id tenant.ID, p keyring.Purpose, at keyring.Place, sealed []byte) error {
	_, err := b.ring.Open(nil, id, p, at, sealed)
	if errors.Is(err, keyring.ErrDestroyed) {
		return nil
	}
	return err
}

// hourSums are what an hour of a ledger comes to.
type hourSums struct {
	hour     int64 // since 1970
	requests int64
	cost     money.Sum
}

// checkReports holds the reports' sums by hour against the ledger's: those of
// the ledger as far as each report says that it reaches.
func (b *beside) checkReports(ctx context.Context, id tenant.ID) (*besideFault, error) {
	hours, to, err := b.ledgerHours(ctx, id, time.Time{}, math.MaxInt64)
	if err != nil || len(hours) == 0 {
		return nil, err
	}
	for len(hours) > 0 {
		n := 0
		for n < len(hours) && hours[n].hour < hours[0].hour+report.MaxBuckets {
			n++
		}
		fault, err := b.compareHours(ctx, id, hours[0].hour, hours[n-1].hour+1, to)
		if fault != nil || err != nil {
			return fault, err
		}
		hours = hours[n:]
	}
	return nil, nil
}

// ledgerHours are the sums of the hours from start on that have entries, of the
// entries up to number most, in order; and the number of the last one.
func (b *beside) ledgerHours(ctx context.Context, id tenant.ID, start time.Time, most int64) (hours []hourSums, to int64, err error) {
	err = b.app.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select floor(extract(epoch from occurred_at) / 3600)::bigint, count(*) filter (where kind = $2),
			       coalesce(sum(cost_usd), 0)::text, max(seq)
			from ledger.entry where tenant_id = $1 and kind in ($2, $3) and occurred_at >= $4 and seq <= $5
			group by 1 order by 1`, string(id), int16(chain.Usage), int16(chain.Correction), start, most)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var h hourSums
			var cost string
			var last int64
			if err := rows.Scan(&h.hour, &h.requests, &cost, &last); err != nil {
				return err
			}
			if err := h.cost.UnmarshalText([]byte(cost)); err != nil {
				return err
			}
			hours, to = append(hours, h), max(to, last)
		}
		return rows.Err()
	})
	return hours, to, err
}

// reportsLag is how long the reports may take to reach an entry that was in the
// ledger when the comparison began, asked for each reportsPause.
const (
	reportsLag   = 10 * time.Second
	reportsPause = 250 * time.Millisecond
)

// report reads the hours [start, end) once they cover entry to.
func (b *beside) report(ctx context.Context, id tenant.ID, start, end, to int64) (*report.TimeSeries, error) {
	for began := time.Now(); ; {
		got, err := b.reports.TimeSeries(ctx, &report.TimeSeriesRequest{
			Query: report.Query{Tenant: id, Exact: true, Window: report.Window{
				Start: time.Unix(start*3600, 0).UTC(), End: time.Unix(end*3600, 0).UTC(),
			}},
			Granularity: report.Hour,
		})
		if err != nil {
			return nil, fmt.Errorf("reports: %w", err)
		}
		if got.Coverage.ToSeq >= to {
			return got, nil
		}
		if time.Since(began) > reportsLag {
			return nil, fmt.Errorf("%w: reports reach entry %d, the ledger %d: ask again when they have caught up", api.ErrUnavailable, got.Coverage.ToSeq, to)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(reportsPause):
		}
	}
}

// compareHours compares the hours [start, end), of a ledger that had entry to.
func (b *beside) compareHours(ctx context.Context, id tenant.ID, start, end, to int64) (*besideFault, error) {
	got, err := b.report(ctx, id, start, end, to)
	if err != nil {
		return nil, err
	}
	hours, _, err := b.ledgerHours(ctx, id, time.Unix(start*3600, 0).UTC(), got.Coverage.ToSeq)
	if err != nil {
		return nil, err
	}
	requests, cost := make(map[int64]int64), make(map[int64]money.Sum)
	for _, s := range got.Series {
		for i, at := range got.Buckets {
			hour := at.Unix() / 3600
			requests[hour] += s.Requests[i]
			sum := cost[hour]
			if err := sum.Add(s.Cost[i]); err != nil {
				return nil, err
			}
			cost[hour] = sum
		}
	}
	known := make(map[int64]hourSums, len(hours))
	for _, h := range hours {
		known[h.hour] = h
	}
	for _, at := range got.Buckets {
		h := known[at.Unix()/3600] // zero where the ledger has nothing
		h.hour = at.Unix() / 3600
		if requests[h.hour] != h.requests || cost[h.hour] != h.cost {
			return &besideFault{byReports, 0, fmt.Sprintf("hour %s: the reports say %d requests and %s USD, the ledger %d and %s",
				time.Unix(h.hour*3600, 0).UTC().Format(time.RFC3339), requests[h.hour], cost[h.hour], h.requests, h.cost)}, nil
		}
	}
	return nil, nil
}
