package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

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

// Nodes reads nodes of one tenant's tree: one statement for all nodes of full
// tiles, one for the roots of tiles, one for each span of leaves that are hashed
// again (a tree has one), together with the context in one round trip.
func (s *Checkpoints) Nodes(ctx context.Context, log string, id tenant.ID, spans []checkpoint.Span, leaf func([]byte) checkpoint.Hash) ([][]byte, error) {
	q := nodesQuery{log: log, id: string(id), spans: spans, leaf: leaf, answers: make([][]byte, len(spans))}
	for i := range spans {
		q.sort(i)
	}
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error { return tx.SendBatch(ctx, q.batch()).Close() })
	return q.answers, checkpointError("read the tree", err)
}

// nodesQuery are the statements that answer spans, by where their nodes are.
type nodesQuery struct {
	log, id string
	spans   []checkpoint.Span
	leaf    func([]byte) checkpoint.Hash
	answers [][]byte

	parts, roots, leaves []int // of spans: of full tiles, roots of tiles, of records
}

func (q *nodesQuery) sort(i int) {
	switch s := &q.spans[i]; {
	case s.Stored:
		q.parts = append(q.parts, i)
	case s.Level > 0:
		q.roots = append(q.roots, i)
	default:
		q.leaves = append(q.leaves, i)
	}
}

// A look-up of each span by the primary key, whatever the planner thinks of the
// table's size; the policy's question is asked once a statement.
const (
	selectParts = `
		select (select substring(t.hashes from u.first for u.length) from ledger.tree_tile t
		        where t.tenant_id = $1 and t.log = $2 and t.level = u.level and t.index = u.index)
		from unnest($3::smallint[], $4::bigint[], $5::int[], $6::int[]) with ordinality as u(level, index, first, length, n) order by u.n`
	selectRoots = `
		select (select string_agg(t.root, ''::bytea order by t.index) from ledger.tree_tile t
		        where t.tenant_id = $1 and t.log = $2 and t.level = u.level and t.index >= u.first and t.index < u.before)
		from unnest($3::smallint[], $4::bigint[], $5::bigint[]) with ordinality as u(level, first, before, n) order by u.n`
	selectEntries     = `select seq, canonical from ledger.entry where tenant_id = $1 and seq > $2 and seq <= $3 order by tenant_id, seq`
	selectAuditEvents = `select seq, canonical from audit.event where tenant_id = $1 and seq > $2 and seq <= $3 order by tenant_id, seq`
)

func (q *nodesQuery) batch() *pgx.Batch {
	batch := &pgx.Batch{}
	if len(q.parts) > 0 {
		levels, indexes := make([]int16, len(q.parts)), make([]int64, len(q.parts))
		firsts, lengths := make([]int32, len(q.parts)), make([]int32, len(q.parts))
		for n, i := range q.parts {
			s := &q.spans[i]
			levels[n], indexes[n] = int16(s.Level), s.From/checkpoint.TileWidth
			firsts[n], lengths[n] = int32(s.From%checkpoint.TileWidth)*checkpoint.HashSize+1, int32(s.To-s.From)*checkpoint.HashSize
		}
		batch.Queue(selectParts, q.id, q.log, levels, indexes, firsts, lengths).Query(q.values(q.parts))
	}
	if len(q.roots) > 0 {
		levels, firsts, befores := make([]int16, len(q.roots)), make([]int64, len(q.roots)), make([]int64, len(q.roots))
		for n, i := range q.roots {
			s := &q.spans[i]
			levels[n], firsts[n], befores[n] = int16(s.Level-1), s.From, s.To
		}
		batch.Queue(selectRoots, q.id, q.log, levels, firsts, befores).Query(q.values(q.roots))
	}
	sql := selectEntries
	if q.log == checkpoint.AuditLog {
		sql = selectAuditEvents
	}
	for _, i := range q.leaves {
		batch.Queue(sql, q.id, q.spans[i].From, q.spans[i].To).Query(q.hashes(i))
	}
	return batch
}

// values takes one value for each of the spans.
func (q *nodesQuery) values(of []int) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		defer rows.Close()
		for n := 0; rows.Next(); n++ {
			if err := rows.Scan(&q.answers[of[n]]); err != nil {
				return err
			}
			if q.answers[of[n]] == nil {
				return fmt.Errorf("%w: a tile is missing", checkpoint.ErrTree)
			}
		}
		return rows.Err()
	}
}

// hashes hashes the records of a span.
func (q *nodesQuery) hashes(i int) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		defer rows.Close()
		next, out := q.spans[i].From+1, make([]byte, 0, checkpoint.TileWidth*checkpoint.HashSize)
		var seq int64
		var canonical pgtype.DriverBytes // read in place, before the next row
		for ; rows.Next(); next++ {
			if err := rows.Scan(&seq, &canonical); err != nil {
				return err
			}
			if seq != next {
				break
			}
			h := q.leaf(canonical)
			out = append(out, h[:]...)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if next <= q.spans[i].To {
			return fmt.Errorf("%w: %s of tenant %s: entry %d is missing", checkpoint.ErrTree, q.log, q.id, next)
		}
		q.answers[i] = out
		return nil
	}
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
