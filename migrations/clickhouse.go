package migrations

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/tallystick/tallystick/internal/clickhouse"
)

//go:embed clickhouse/*.sql
var clickhouseFiles embed.FS

// clickhouseVersions is the table of what has been applied. A version stands in
// it after the last statement of its file, so a migration that was killed runs
// again from the start of that file.
const clickhouseVersions = `CREATE TABLE IF NOT EXISTS schema_version (
	version UInt32,
	applied_at DateTime DEFAULT now()
) ENGINE = MergeTree ORDER BY version`

// clickhouseFile is one numbered file of statements.
type clickhouseFile struct {
	version    uint32
	name       string
	statements []string
}

// ClickHouseAlone is ClickHouse for several processes at once: one after the
// other, by a lock in the Postgres that they share. ClickHouse has no locks, and
// some migrations take a view away for a moment, in which nobody may insert and
// nobody else finds it.
func ClickHouseAlone(ctx context.Context, dsn, postgresDSN string) error {
	cfg, err := pgx.ParseConfig(postgresDSN)
	if err != nil {
		return fmt.Errorf("postgres DSN: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	release, err := lockMigrations(ctx, db, clickhouseLock)
	if err != nil {
		return err
	}
	defer release()
	return ClickHouse(ctx, dsn)
}

// ClickHouse migrates the database at the DSN to the newest schema, where no other
// process does. It may be run again at any time, also after it was killed: every
// statement is written so that repeating it changes nothing, which is needed
// because ClickHouse has no transactions over schema changes.
//
// Errors: [ErrNewerSchema], or what the server or the network says.
func ClickHouse(ctx context.Context, dsn string) error {
	files, err := readClickHouseFiles(clickhouseFiles)
	if err != nil {
		return err
	}
	db, err := clickhouse.Open(ctx, dsn, clickhouse.Writer)
	if err != nil {
		return err
	}
	return errors.Join(migrateClickHouse(ctx, db, files), db.Close())
}

func migrateClickHouse(ctx context.Context, db *clickhouse.DB, files []clickhouseFile) error {
	if err := db.Exec(ctx, clickhouseVersions); err != nil {
		return fmt.Errorf("migrate clickhouse: create schema_version: %w", err)
	}
	var current uint32
	if err := db.QueryRow(ctx, "SELECT max(version) FROM schema_version").Scan(&current); err != nil {
		return fmt.Errorf("migrate clickhouse: read schema version: %w", err)
	}
	if newest := files[len(files)-1].version; current > newest {
		return fmt.Errorf("%w: schema %d, newest known %d", ErrNewerSchema, current, newest)
	}
	for _, f := range files {
		if f.version <= current {
			continue
		}
		for i, statement := range f.statements {
			if err := db.Exec(ctx, statement); err != nil {
				return fmt.Errorf("migrate clickhouse: %s, statement %d: %w", f.name, i+1, err)
			}
		}
		version := ch.Context(ctx, ch.WithParameters(ch.Parameters{"version": strconv.FormatUint(uint64(f.version), 10)}))
		if err := db.Exec(version, "INSERT INTO schema_version (version) SELECT {version:UInt32}"); err != nil {
			return fmt.Errorf("migrate clickhouse: record version %d: %w", f.version, err)
		}
	}
	return nil
}

// readClickHouseFiles reads NNNNN_name.sql in order of number.
func readClickHouseFiles(files fs.FS) ([]clickhouseFile, error) {
	names, err := fs.Glob(files, "clickhouse/*.sql")
	if err != nil {
		return nil, err
	}
	var found []clickhouseFile
	for _, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		version, err := strconv.ParseUint(number, 10, 32)
		if err != nil || version == 0 {
			return nil, fmt.Errorf("migrate clickhouse: %s does not begin with a number", name)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		found = append(found, clickhouseFile{uint32(version), path.Base(name), splitStatements(string(text))})
	}
	if len(found) == 0 {
		return nil, errors.New("migrate clickhouse: no migrations in the binary")
	}
	slices.SortFunc(found, func(a, b clickhouseFile) int { return cmp.Compare(a.version, b.version) })
	return found, nil
}

// splitStatements cuts a file where a line ends with a semicolon, and drops
// lines that are comments. Statements are written to fit that rule.
func splitStatements(text string) []string {
	var statements []string
	var b strings.Builder
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "--") {
			continue
		}
		body, last := strings.CutSuffix(trimmed, ";")
		b.WriteString(body)
		b.WriteByte('\n')
		if last {
			statements = append(statements, b.String())
			b.Reset()
		}
	}
	if b.Len() > 0 {
		statements = append(statements, b.String())
	}
	return statements
}
