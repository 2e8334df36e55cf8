package archtest

import (
	"fmt"
	"strings"
	"testing"
)

func TestTenancy(t *testing.T) {
	tree, _ := module(t)
	report(t, tree.Tenancy())
}

// TestBadTenancyIsFound is the positive control of TestTenancy.
func TestBadTenancyIsFound(t *testing.T) {
	const head = "package p\nconst why = \"because\"\nfunc f(b bypass, reason string) {\n"
	for _, c := range []struct{ name, file, body, want string }{
		{"listed", "ledger/a.go", "b.RunAsBypass(ctx, id, \"why\", fn)", ""},
		{"listed, named constant", "ledger/a.go", "b.RunAsBypass(ctx, id, why, fn)", ""},
		{"not listed", "ledger/b.go", "b.RunAsBypass(ctx, id, \"why\", fn)", "calls RunAsBypass"},
		{"reason from outside", "ledger/a.go", "b.RunAsBypass(ctx, id, reason, fn)", "no constant"},
		{"reason put together", "ledger/a.go", "b.RunAsBypass(ctx, id, why + reason, fn)", "no constant"},
		{"as a value", "ledger/a.go", "b.RunAsBypass(ctx, id, why, fn); g := b.RunAsBypass; g()", "as a value"},
		{"listed in vain", "ledger/c.go", "", "does not call it"},
		{"in a test", "ledger/b_test.go", "b.RunAsBypass(ctx, id, reason, fn)", "does not call it"},
		{"set role", "ledger/c.go", "q(`SET  ROLE x`)", "says SET  ROLE"},
		{"set session authorization", "ledger/c.go", "q(`set session authorization x`)", "says set session authorization"},
		{"row_security", "ledger/c.go", "q(`set row_security = off`)", "says row_security"},
		{"session set_config", "ledger/c.go", "q(`select set_config('app.tenant_id', $1, false)`)", "says set_config"},
		{"local set_config", "ledger/a.go", "b.RunAsBypass(ctx, id, why, fn); q(`select set_config('app.tenant_id', $1, true)`)", ""},
		{"session setting", "ledger/c.go", "q(`set tallystick.context = 'x'`)", "says set tallystick."},
		{"triggers off", "ledger/c.go", "q(`set session_replication_role = replica`)", "says session_replication_role"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := small(t, map[string]string{c.file: head + c.body + "\n}\n"})
			found := tree.tenancy(map[string]string{"ledger/a.go": "to test"})
			if c.want == "" && len(found) > 0 {
				t.Errorf("refused: %v", found)
			}
			if c.want != "" && !strings.Contains(fmt.Sprint(found), c.want) {
				t.Errorf("found %v, want %q", found, c.want)
			}
		})
	}
	sql := small(t, map[string]string{"migrations/postgres/1.sql": "-- set role is bad\nselect 1;\nset role x;\n"})
	if found := sql.tenancy(nil); len(found) != 1 || found[0].Where != "migrations/postgres/1.sql:3" {
		t.Errorf("in SQL: %v", found)
	}
	many := map[string]string{}
	for i := range maxBypassSites + 1 {
		many[fmt.Sprintf("ledger/s%d.go", i)] = "x"
	}
	if found := small(t, nil).tenancy(many); !strings.Contains(fmt.Sprint(found), "at most 6") {
		t.Errorf("too many sites: %v", found)
	}
}
