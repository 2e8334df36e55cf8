package pgread

import (
	"context"
	"fmt"
	"strings"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Note is a published checkpoint: the note with the signature lines of witnesses.
type Note struct {
	Size int64
	Root [32]byte
	Text []byte
}

// SigningKey is a key that checkpoints were signed with.
type SigningKey struct {
	Epoch     uint32
	VKey      string
	Statement []byte
}

// Checkpoints reads the published checkpoints of one log ("ledger", "audit") of a
// tenant as they stand, as the role postgres.RoleApp. It checks nothing.
type Checkpoints struct {
	db  *postgres.DB
	id  tenant.ID
	log string
}

// NewCheckpoints makes the reader.
func NewCheckpoints(db *postgres.DB, id tenant.ID, log string) *Checkpoints {
	return &Checkpoints{db, id, log}
}

// Newest is the checkpoint of the greatest size; false without any.
func (c *Checkpoints) Newest(ctx context.Context) (Note, bool, error) {
	return one(c.notes(ctx, `
		select size, root, note, array(select line from ledger.cosignature w where w.tenant_id = c.tenant_id and w.log = c.log and w.size = c.size order by w.witness)
		from ledger.checkpoint c where tenant_id = $1 and log = $2 order by size desc limit 1`))
}

// Covering is the smallest checkpoint of at least the size; false without one.
func (c *Checkpoints) Covering(ctx context.Context, size int64) (Note, bool, error) {
	return one(c.notes(ctx, `
		select size, root, note, array(select line from ledger.cosignature w where w.tenant_id = c.tenant_id and w.log = c.log and w.size = c.size order by w.witness)
		from ledger.checkpoint c where tenant_id = $1 and log = $2 and size >= $3 order by size limit 1`, size))
}

// Between are up to limit of the checkpoints with sizes from..to, spread evenly
// over them, in order of size; the greatest is among them.
func (c *Checkpoints) Between(ctx context.Context, from, to int64, limit int) ([]Note, error) {
	return c.notes(ctx, `
		with numbered as (
		  select size, root, note, tenant_id, log, row_number() over (order by size desc) - 1 as n, count(*) over () as total
		  from ledger.checkpoint where tenant_id = $1 and log = $2 and size between $3 and $4)
		select size, root, note, array(select line from ledger.cosignature w where w.tenant_id = c.tenant_id and w.log = c.log and w.size = c.size order by w.witness)
		from numbered c where n % greatest((total + $5 - 1) / $5, 1) = 0 order by size`, from, to, int64(limit))
}

func one(list []Note, err error) (Note, bool, error) {
	if err != nil || len(list) == 0 {
		return Note{}, false, err
	}
	return list[0], true, nil
}

func (c *Checkpoints) notes(ctx context.Context, sql string, args ...any) (list []Note, err error) {
	err = c.db.InTenant(ctx, c.id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, sql, append([]any{string(c.id), c.log}, args...)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var n Note
			var root []byte
			var text string
			var lines []string
			if err := rows.Scan(&n.Size, &root, &text, &lines); err != nil {
				return err
			}
			copy(n.Root[:], root)
			n.Text = []byte(withLines(text, lines))
			list = append(list, n)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints of the %s of %s: %w", c.log, c.id, err)
	}
	return list, nil
}

// withLines is the note with further signature lines.
func withLines(note string, lines []string) string {
	for _, line := range lines {
		note += strings.TrimSuffix(line, "\n") + "\n"
	}
	return note
}

// Keys are those that signed, in order of epoch.
func (c *Checkpoints) Keys(ctx context.Context) (list []SigningKey, err error) {
	err = c.db.InTenant(ctx, c.id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select epoch, vkey, statement from ledger.signing_key where tenant_id = $1 and log = $2 order by epoch`, string(c.id), c.log)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var k SigningKey
			var epoch int64
			var statement string
			if err := rows.Scan(&epoch, &k.VKey, &statement); err != nil {
				return err
			}
			k.Epoch, k.Statement = uint32(epoch), []byte(statement)
			list = append(list, k)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read the signing keys of the %s of %s: %w", c.log, c.id, err)
	}
	return list, nil
}

// Sizes are those of all checkpoints, in order.
func (c *Checkpoints) Sizes(ctx context.Context) (list []int64, err error) {
	err = c.db.InTenant(ctx, c.id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `
			select coalesce(array_agg(size order by size), '{}') from ledger.checkpoint where tenant_id = $1 and log = $2`,
			string(c.id), c.log).Scan(&list)
	})
	if err != nil {
		return nil, fmt.Errorf("read the sizes of checkpoints of the %s of %s: %w", c.log, c.id, err)
	}
	return list, nil
}
