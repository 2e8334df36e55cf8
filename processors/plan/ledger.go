package plan

import (
	"context"
	"fmt"
	"strings"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors"
)

// Bounds of one read of the ledger: a single commit may be larger.
const (
	readCommits = 500
	readRows    = 10_000
	readTenants = 2_000
)

// Ledger reads committed entries from Postgres. It is a processors.Ledger and
// safe for concurrent use.
type Ledger struct{ db *postgres.DB }

var _ processors.Ledger = (*Ledger)(nil)

// NewLedger makes a Ledger on a database opened as postgres.RoleProcessors.
func NewLedger(db *postgres.DB) *Ledger { return &Ledger{db} }

// LastCommits is the number of the newest commit of each partition.
func (l *Ledger) LastCommits(ctx context.Context) (map[int32]int64, error) {
	last := make(map[int32]int64)
	err := l.db.Tx(ctx, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select partition, last_batch from ledger.partition`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var partition int32
			var n int64
			if err := rows.Scan(&partition, &n); err != nil {
				return err
			}
			last[partition] = n
		}
		return rows.Err()
	})
	return last, classify(err)
}

// group is the entries of one tenant in one commit.
type group struct {
	tenant string
	first  int64
	count  int32
}

// committed is one commit of the ledger.
type committed struct {
	number int64
	groups []group
	rows   int
}

// Frames reads commits and passes one frame per tenant and commit. Each read
// takes as many commits as fit its bounds, in two round trips of which the
// second is in the signed context of their tenants.
func (l *Ledger) Frames(ctx context.Context, partition int32, from, to int64, fn func(*chain.Frame) error) error {
	var sealed []chain.Sealed
	for from <= to {
		commits, err := l.commits(ctx, partition, from, min(to, from+readCommits-1))
		if err != nil {
			return err
		}
		for len(commits) > 0 {
			n := fitting(commits)
			if sealed, err = l.entries(ctx, partition, commits[:n], sealed[:0]); err != nil {
				return err
			}
			if err := pass(partition, commits[:n], sealed, fn); err != nil {
				return err
			}
			from, commits = from+int64(n), commits[n:]
		}
	}
	return nil
}

// fitting is how many of the commits one read takes, at least one.
func fitting(commits []committed) int {
	n, rows, tenants := 0, 0, 0
	for n < len(commits) {
		rows, tenants = rows+commits[n].rows, tenants+len(commits[n].groups)
		if n > 0 && (rows > readRows || tenants > readTenants) {
			break
		}
		n++
	}
	return n
}

// commits reads what the commits hold, all of them.
func (l *Ledger) commits(ctx context.Context, partition int32, from, to int64) ([]committed, error) {
	var commits []committed
	var last int64
	err := l.db.Tx(ctx, func(tx postgres.Tx) error {
		commits = commits[:0]
		err := tx.QueryRow(ctx, `select coalesce(max(last_batch), 0) from ledger.partition where partition = $1`, partition).Scan(&last)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			select batch, tenants, first_seqs, counts from ledger.batch
			where partition = $1 and batch between $2 and $3 order by batch`, partition, from, to)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var c committed
			var tenants []string
			var firsts []int64
			var counts []int32
			if err := rows.Scan(&c.number, &tenants, &firsts, &counts); err != nil {
				return err
			}
			for i := range tenants {
				if counts[i] > 0 {
					c.groups = append(c.groups, group{tenants[i], firsts[i], counts[i]})
					c.rows += int(counts[i])
				}
			}
			commits = append(commits, c)
		}
		return rows.Err()
	})
	switch {
	case err != nil:
		return nil, classify(err)
	case last < to:
		return nil, fmt.Errorf("%w: partition %d has %d commits, wanted are %d to %d", processors.ErrLedgerBehind, partition, last, from, to)
	case int64(len(commits)) != to-from+1:
		return nil, fmt.Errorf("%w: partition %d has %d of the commits %d to %d", processors.ErrMissing, partition, len(commits), from, to)
	}
	return commits, nil
}

// entries appends the entries of the commits to out, in order of publication.
func (l *Ledger) entries(ctx context.Context, partition int32, commits []committed, out []chain.Sealed) ([]chain.Sealed, error) {
	var tenants []string
	var firsts []int64
	var counts []int32
	var starts []int // where in out each group begins
	distinct := map[string]struct{}{}
	total := 0
	for _, c := range commits {
		for _, g := range c.groups {
			tenants, firsts, counts = append(tenants, g.tenant), append(firsts, g.first), append(counts, g.count)
			starts = append(starts, total)
			total += int(g.count)
			distinct[g.tenant] = struct{}{}
		}
	}
	if total == 0 {
		return out, nil
	}
	ids := make([]string, 0, len(distinct))
	for id := range distinct {
		ids = append(ids, id)
	}
	// Rows come in any order and are put in their places here, which spares the
	// server a sort.
	out = append(out, make([]chain.Sealed, total)...)
	read := 0
	err := l.db.InTenants(ctx, ids, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select u.n, e.seq, e.key_epoch, e.canonical, e.chain, e.mac
			from unnest($1::text[], $2::bigint[], $3::int[]) with ordinality as u(tenant, first, count, n)
			join ledger.entry e on e.tenant_id = u.tenant and e.seq >= u.first and e.seq < u.first + u.count`, tenants, firsts, counts)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var n, seq int64
			var epoch uint32
			var canonical, hash, mac []byte
			if err := rows.Scan(&n, &seq, &epoch, &canonical, &hash, &mac); err != nil {
				return err
			}
			if len(hash) != chain.HashSize || len(mac) != chain.HashSize {
				return fmt.Errorf("%w: tenant %s entry %d: a hash of %d and a MAC of %d bytes", processors.ErrCorrupt, tenants[n-1], seq, len(hash), len(mac))
			}
			s := &out[starts[n-1]+int(seq-firsts[n-1])]
			s.Canonical, s.Chain, s.MAC, s.Epoch = canonical, chain.Hash(hash), chain.Hash(mac), epoch
			read++
		}
		return rows.Err()
	})
	if err == nil && read != total {
		err = fmt.Errorf("%w: partition %d commits %d to %d: %d of %d entries (%s)", processors.ErrMissing, partition,
			commits[0].number, commits[len(commits)-1].number, read, total, summary(ids))
	}
	return out, classify(err)
}

// summary names some tenants in an error.
func summary(ids []string) string {
	if len(ids) > 3 {
		return fmt.Sprintf("%s and %d more tenants", strings.Join(ids[:3], ", "), len(ids)-3)
	}
	return strings.Join(ids, ", ")
}

// pass calls fn with a frame for each group.
func pass(partition int32, commits []committed, sealed []chain.Sealed, fn func(*chain.Frame) error) error {
	for _, c := range commits {
		index := int32(0)
		for _, g := range c.groups {
			f := chain.Frame{
				Tenant: g.tenant, Partition: partition, Batch: c.number, Index: index, Total: int32(c.rows),
				FirstSeq: g.first, Entries: sealed[:g.count:g.count],
			}
			if err := fn(&f); err != nil {
				return err
			}
			index, sealed = index+g.count, sealed[g.count:]
		}
	}
	return nil
}
