package isolation

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/testenv"
)

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// TestCatalogue holds every table of the migrated database against the rules,
// and shows that each of six holes in each table would be found.
func TestCatalogue(t *testing.T) {
	ctx := t.Context()
	conn := connect(t, testenv.MigratedPostgres(t).AdminDSN)
	sound, err := readCatalogue(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range sound.check() {
		t.Error(what)
	}
	count(func() { counts.tables = len(sound.relations) })
	if t.Failed() {
		return // a mutant would be found for the wrong reason
	}
	for name := range noTenant {
		if !strings.Contains(names(sound), " "+name+" ") {
			t.Errorf("%s is listed as a table without a tenant and does not exist", name)
		}
	}
	for i := range sound.relations {
		r := &sound.relations[i]
		for _, m := range sound.mutants(r) {
			found, err := mutate(ctx, conn, m)
			if err != nil {
				t.Errorf("%s, %s: the mutant cannot be made: %v", r.Name, m.name, err)
			}
			if len(found) == 0 {
				t.Errorf("%s, %s: not found", r.Name, m.name)
			}
			count(func() {
				counts.mutants++
				if len(found) > 0 {
					counts.caught++
				}
			})
		}
	}
}

func names(c *catalogue) string {
	var b strings.Builder
	for i := range c.relations {
		b.WriteString(" " + c.relations[i].Name + " ")
	}
	return b.String()
}

// mutate says what the rules find in the mutant, which is then undone.
func mutate(ctx context.Context, conn *pgx.Conn, m mutant) ([]string, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(ctx)
	for _, sql := range m.sql {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	c, err := readCatalogue(ctx, tx)
	if err != nil {
		return nil, err
	}
	return c.check(), nil
}
