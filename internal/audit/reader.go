package audit

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Head is the number and chain hash of the tenant's last event; 0 and the
// genesis when there is none.
func (l *Log) Head(ctx context.Context, id tenant.ID) (seq int64, chain Hash, err error) {
	chain = Genesis(id)
	err = l.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		var hash []byte
		err := tx.QueryRow(ctx, `select seq, chain from audit.head where tenant_id = $1`, string(id)).Scan(&seq, &hash)
		if err == nil {
			copy(chain[:], hash)
		}
		return err
	})
	if postgres.IsNoRows(err) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("read the audit head of %s: %w", id, err)
	}
	return seq, chain, err
}

// Rows reads up to limit rows of a tenant in order of number: those from `from`
// on, or from `from` downwards when descending, from the last one when it is 0.
func (l *Log) Rows(ctx context.Context, id tenant.ID, from int64, limit int, descending bool) ([]Row, error) {
	const (
		up = `select seq, key_epoch, canonical, chain, mac from audit.event
			where tenant_id = $1 and seq >= $2 order by seq limit $3`
		down = `select seq, key_epoch, canonical, chain, mac from audit.event
			where tenant_id = $1 and ($2 = 0 or seq <= $2) order by seq desc limit $3`
	)
	sql := up
	if descending {
		sql = down
	}
	var list []Row
	err := l.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, sql, string(id), from, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			r := Row{Tenant: id}
			var chain, mac []byte
			if err := rows.Scan(&r.Seq, &r.KeyEpoch, &r.Canonical, &chain, &mac); err != nil {
				return err
			}
			copy(r.Chain[:], chain)
			copy(r.MAC[:], mac)
			list = append(list, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read the audit log of %s: %w", id, err)
	}
	return list, nil
}

// BrokenError says where a chain is not what was written.
type BrokenError struct {
	Tenant tenant.ID
	Seq    int64
	Reason string // "gap", "hash", "MAC", "format", "truncated"
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("audit: the log of %s is broken at %d: %s", e.Tenant, e.Seq, e.Reason)
}

// Checker follows a chain from an event on and says where it breaks.
type Checker struct {
	id   tenant.ID
	seq  int64
	prev Hash
	keys Keys // nil checks no MACs
}

// NewChecker begins behind event seq, whose chain hash is given; 0 and the
// genesis check a whole chain. Without keys no MAC is checked.
func NewChecker(id tenant.ID, seq int64, chain Hash, keys Keys) *Checker {
	return &Checker{id, seq, chain, keys}
}

// Next checks the next row and decodes it. Errors: *BrokenError, or that a key
// cannot be had.
func (c *Checker) Next(r *Row) (Event, error) {
	broken := func(reason string) error { return &BrokenError{c.id, c.seq + 1, reason} }
	if r.Seq != c.seq+1 {
		return Event{}, broken("gap")
	}
	ev, seq, err := Decode(r.Canonical)
	if err != nil || seq != r.Seq || ev.Tenant != c.id {
		return Event{}, broken("format")
	}
	chain := Next(c.prev, Leaf(r.Canonical))
	if chain != r.Chain {
		return Event{}, broken("hash")
	}
	if c.keys != nil {
		key, err := c.keys.Derive(c.id, keyring.Audit, r.KeyEpoch)
		if err != nil {
			return Event{}, err
		}
		if want := MAC(key, r.KeyEpoch, r.Seq, chain); !hmac.Equal(want[:], r.MAC[:]) {
			return Event{}, broken("MAC")
		}
	}
	c.seq, c.prev = r.Seq, chain
	return ev, nil
}

// Verify checks the tenant's whole chain as it is stored, against its head, and
// says how many events it has. Errors: *BrokenError, or that it cannot be read.
func (l *Log) Verify(ctx context.Context, id tenant.ID) (n int64, err error) {
	const page = 1000
	last, chain, err := l.Head(ctx, id)
	if err != nil {
		return 0, err
	}
	c := NewChecker(id, 0, Genesis(id), l.keys)
	for c.seq < last {
		rows, err := l.Rows(ctx, id, c.seq+1, page, false)
		if err != nil {
			return c.seq, err
		}
		if len(rows) == 0 {
			return c.seq, &BrokenError{id, c.seq + 1, "truncated"}
		}
		for i := range rows {
			if rows[i].Seq > last {
				break // written since
			}
			if _, err := c.Next(&rows[i]); err != nil {
				return c.seq, err
			}
		}
	}
	if c.prev != chain {
		return c.seq, &BrokenError{id, last, "hash"}
	}
	return c.seq, nil
}

// IsBroken reports that an error says that a chain is broken, rather than that
// it could not be read.
func IsBroken(err error) bool {
	var b *BrokenError
	return errors.As(err, &b)
}
