package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
)

// Checkpoints keeps signed checkpoints and the tiles of their trees. As the role
// postgres.RoleLedger it reads and adds; as postgres.RoleApp it reads one tenant
// at a time. Nothing is ever changed.
type Checkpoints struct{ db *postgres.DB }

var _ checkpoint.Store = (*Checkpoints)(nil)

// NewCheckpoints makes the store. The caller closes db.
func NewCheckpoints(db *postgres.DB) *Checkpoints { return &Checkpoints{db} }

// Newest reads the newest checkpoint of each tenant.
func (s *Checkpoints) Newest(ctx context.Context, log string, ids []tenant.ID) (map[tenant.ID]checkpoint.Published, error) {
	found := make(map[tenant.ID]checkpoint.Published, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	names := namesOf(ids)
	err := s.db.InTenants(ctx, names, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select c.tenant_id, c.size, c.root, c.chain, c.note, c.signed_at,
			       array(select line from ledger.cosignature w where w.tenant_id = c.tenant_id and w.log = c.log and w.size = c.size order by w.witness)
			from unnest($1::text[]) as u(tenant_id) cross join lateral
			     (select * from ledger.checkpoint k where k.tenant_id = u.tenant_id and k.log = $2 order by k.size desc limit 1) c`, names, log)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			p, err := scanPublished(rows, &id)
			if err != nil {
				return err
			}
			found[tenant.ID(id)] = p
		}
		return rows.Err()
	})
	return found, checkpointError("read checkpoints", err)
}

// List reads checkpoints of a tenant, the newest first, with sizes below before
// (0: any), at most limit.
func (s *Checkpoints) List(ctx context.Context, log string, id tenant.ID, before int64, limit int) ([]checkpoint.Published, error) {
	var list []checkpoint.Published
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select c.tenant_id, c.size, c.root, c.chain, c.note, c.signed_at,
			       array(select line from ledger.cosignature w where w.tenant_id = c.tenant_id and w.log = c.log and w.size = c.size order by w.witness)
			from ledger.checkpoint c where c.tenant_id = $1 and c.log = $2 and ($3 = 0 or c.size < $3)
			order by c.size desc limit $4`, string(id), log, before, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			p, err := scanPublished(rows, &name)
			if err != nil {
				return err
			}
			list = append(list, p)
		}
		return rows.Err()
	})
	return list, checkpointError("read checkpoints", err)
}

func scanPublished(row pgx.Rows, id *string) (p checkpoint.Published, err error) {
	var root, chain []byte
	if err := row.Scan(id, &p.Size, &root, &chain, &p.Note, &p.SignedAt, &p.Cosignatures); err != nil {
		return p, err
	}
	copy(p.Root[:], root)
	copy(p.Chain[:], chain)
	return p, nil
}

// Nodes reads nodes of one tenant's tree in one transaction.
func (s *Checkpoints) Nodes(ctx context.Context, log string, id tenant.ID, spans []checkpoint.Span) ([][]byte, error) {
	answers := make([][]byte, len(spans))
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		var batch pgx.Batch
		for i, span := range spans {
			queueSpan(&batch, log, id, span, &answers[i])
		}
		return tx.SendBatch(ctx, &batch).Close()
	})
	if postgres.IsNoRows(err) {
		err = fmt.Errorf("%w: a tile is missing", checkpoint.ErrTree)
	}
	return answers, checkpointError("read the tree", err)
}

// queueSpan asks for the nodes of a span: a part of a full tile, or the roots of
// the tiles below.
func queueSpan(batch *pgx.Batch, log string, id tenant.ID, span checkpoint.Span, answer *[]byte) {
	var q *pgx.QueuedQuery
	if span.Stored {
		tile := span.From / checkpoint.TileWidth
		first := span.From % checkpoint.TileWidth
		q = batch.Queue(`
			select substring(hashes from $5 for $6) from ledger.tree_tile
			where tenant_id = $1 and log = $2 and level = $3 and index = $4`,
			string(id), log, span.Level, tile, first*checkpoint.HashSize+1, (span.To-span.From)*checkpoint.HashSize)
	} else {
		q = batch.Queue(`
			select coalesce(string_agg(root, ''::bytea order by index), ''::bytea) from ledger.tree_tile
			where tenant_id = $1 and log = $2 and level = $3 and index >= $4 and index < $5`,
			string(id), log, span.Level-1, span.From, span.To)
	}
	q.QueryRow(func(row pgx.Row) error { return row.Scan(answer) })
}

// Publish adds the tiles and the checkpoint.
func (s *Checkpoints) Publish(ctx context.Context, log string, id tenant.ID, after int64, tiles []checkpoint.Tile, p *checkpoint.Published) error {
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		var newest int64
		var batch pgx.Batch
		// Publications of one tree come one after the other.
		batch.Queue(`select pg_advisory_xact_lock(hashtextextended('checkpoint/' || $1 || '/' || $2, 1))`, log, string(id))
		batch.Queue(`select coalesce(max(size), 0) from ledger.checkpoint where tenant_id = $1 and log = $2`, string(id), log).
			QueryRow(func(row pgx.Row) error { return row.Scan(&newest) })
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return err
		}
		if newest != after {
			return checkpoint.ErrMoved
		}
		for part := range slices.Chunk(tiles, tilesPerStatement) {
			if err := addTiles(ctx, tx, log, id, part); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `
			insert into ledger.checkpoint (tenant_id, log, size, root, chain, note) values ($1, $2, $3, $4, $5, $6)`,
			string(id), log, p.Size, p.Root[:], p.Chain[:], p.Note)
		return err
	})
	return checkpointError("publish a checkpoint", err)
}

// tilesPerStatement bounds the memory of one statement to half a megabyte.
const tilesPerStatement = 64

func addTiles(ctx context.Context, tx postgres.Tx, log string, id tenant.ID, tiles []checkpoint.Tile) error {
	levels, indexes := make([]int16, len(tiles)), make([]int64, len(tiles))
	roots, hashes := make([][]byte, len(tiles)), make([][]byte, len(tiles))
	for i := range tiles {
		levels[i], indexes[i], roots[i], hashes[i] = int16(tiles[i].Level), tiles[i].Index, tiles[i].Root[:], tiles[i].Hashes
	}
	_, err := tx.Exec(ctx, `
		insert into ledger.tree_tile (tenant_id, log, level, index, root, hashes)
		select $1, $2, u.level, u.index, u.root, u.hashes
		from unnest($3::smallint[], $4::bigint[], $5::bytea[], $6::bytea[]) as u(level, index, root, hashes)`,
		string(id), log, levels, indexes, roots, hashes)
	return err
}

// Statements reads the statements of a tenant's signing keys.
func (s *Checkpoints) Statements(ctx context.Context, log string, id tenant.ID) ([]checkpoint.Statement, error) {
	var list []checkpoint.Statement
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `
			select epoch, vkey, statement from ledger.signing_key where tenant_id = $1 and log = $2 order by epoch`, string(id), log)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (st checkpoint.Statement, err error) {
			err = row.Scan(&st.Epoch, &st.VKey, &st.Note)
			return st, err
		})
		return err
	})
	return list, checkpointError("read signing keys", err)
}

// AddStatement adds the statement of a signing key.
func (s *Checkpoints) AddStatement(ctx context.Context, log string, id tenant.ID, st *checkpoint.Statement) error {
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into ledger.signing_key (tenant_id, log, epoch, vkey, statement) values ($1, $2, $3, $4, $5)
			on conflict (tenant_id, log, epoch) do nothing`, string(id), log, int64(st.Epoch), st.VKey, st.Note)
		return err
	})
	return checkpointError("state a signing key", err)
}

// AddCosignature keeps a witness's first answer.
func (s *Checkpoints) AddCosignature(ctx context.Context, log string, id tenant.ID, size int64, witness, line string) error {
	err := s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into ledger.cosignature (tenant_id, log, size, witness, line) values ($1, $2, $3, $4, $5)
			on conflict (tenant_id, log, size, witness) do nothing`, string(id), log, size, witness, line)
		return err
	})
	return checkpointError("keep a cosignature", err)
}

func namesOf(ids []tenant.ID) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	return names
}

// checkpointError names what failed. A row that is there already means that
// another process was faster.
func checkpointError(what string, err error) error {
	switch {
	case err == nil, errors.Is(err, checkpoint.ErrMoved):
		return err
	case postgres.SQLState(err) == "23505":
		return fmt.Errorf("%s: %w: %w", what, checkpoint.ErrMoved, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}
