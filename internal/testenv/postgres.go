package testenv

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	// pgconn is used directly because the tests inside internal/postgres use
	// this package: it must not import that one.
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallystick/tallystick/internal/embedded"
)

// postgresTestSettings fit several test processes at once on a small machine.
// Durability settings stay as they are everywhere.
var postgresTestSettings = map[string]string{
	"shared_buffers":  "128MB",
	"wal_buffers":     "16MB",
	"max_wal_size":    "1GB",
	"min_wal_size":    "80MB",
	"max_connections": "200",
}

// Postgres returns a superuser's DSN of a fresh, empty database, which is
// dropped when the test ends. Roles are shared by all databases of the server.
func Postgres(t testing.TB) string {
	t.Helper()
	admin := postgresAdminDSN(t)
	name := uniqueName()
	runSQL(t, admin, "CREATE DATABASE "+name)
	t.Cleanup(func() { runSQL(t, admin, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") })
	dsn, err := withDatabase(admin, name)
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

func postgresAdminDSN(t testing.TB) string {
	t.Helper()
	if dsn := os.Getenv("TALLYSTICK_TEST_POSTGRES_DSN"); dsn != "" {
		return dsn
	}
	server := start(t, &env.postgres, "postgres", func(ctx context.Context, dir string) (*embedded.Postgres, func() error, error) {
		p, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{
			DataDir:     dir,
			TemplateDir: templateDir(),
			Settings:    postgresTestSettings,
			Logger:      logger(),
		})
		return p, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			return p.Stop(ctx)
		}, err
	})
	return server.DSN(embedded.PostgresSuperuser, "postgres")
}

// templateDir is where initdb's result is kept between test processes, or ""
// (initialise each time) when this user has no cache folder.
func templateDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "tallystick", "test-templates")
}

// runSQL executes one statement on a connection of its own. The DSN stays out
// of the message: it has a password.
func runSQL(t testing.TB, dsn, sql string) {
	t.Helper()
	// Not the test's context: that one is over when clean-ups run.
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		t.Fatalf("testenv: connecting to Postgres: %v", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
		t.Fatalf("testenv: %s: %v", sql, err)
	}
}

// withDatabase returns dsn, a URL or a keyword/value string, for another
// database.
func withDatabase(dsn, database string) (string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return dsn + " dbname=" + database, nil // the last of two wins
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", fmt.Errorf("TALLYSTICK_TEST_POSTGRES_DSN is not a URL that can be parsed")
	}
	u.Path = "/" + database
	q := u.Query()
	q.Del("dbname")
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// PostgresCopy makes a database with all that the one of dsn, a DSN of Postgres,
// holds, and returns its DSN. Nobody may be connected to the original meanwhile.
// The copy is dropped by drop, or when the test ends.
func PostgresCopy(t testing.TB, dsn string) (copied string, drop func()) {
	t.Helper()
	admin := postgresAdminDSN(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("testenv: the DSN is not a URL that can be parsed")
	}
	name := uniqueName()
	runSQL(t, admin, "CREATE DATABASE "+name+" TEMPLATE "+strings.TrimPrefix(u.Path, "/"))
	drop = func() { runSQL(t, admin, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") }
	t.Cleanup(drop)
	if copied, err = withDatabase(dsn, name); err != nil {
		t.Fatal(err)
	}
	return copied, drop
}
