package isolation

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
)

// The tenants of the tests. Both of the first two have rows; victim is whose
// rows are wanted, newcomer who has none and in whose name rows are written.
const (
	intruder  = "acme"
	victim    = "bravo"
	newcomer  = "delta"
	bystander = "echo"
)

// column of a table, and what the role may do with it.
type column struct {
	Name, Value            string // SQL of a value, where $I is the row's number
	Key                    bool   // of the primary key
	Select, Insert, Update bool
}

// target is a table as one role may use it.
type target struct {
	name    string // quoted
	plain   string
	role    string
	columns []column
	single  bool // the role may be of one tenant only
	del     bool
	trunc   bool
	leaf    bool // no policy: whose rows a trigger checks
	// copyLine is a row of the newcomer for COPY, of the insertable columns.
	copyLine string
}

func (t *target) list(may func(*column) bool) (names []string) {
	for i := range t.columns {
		if may(&t.columns[i]) {
			names = append(names, quoteIdent(t.columns[i].Name))
		}
	}
	return names
}

// values are those of a row of the tenant with a number, for the columns named.
func (t *target) values(of []string, tenant string, i int) string {
	var values []string
	for _, name := range of {
		at := slices.IndexFunc(t.columns, func(c column) bool { return quoteIdent(c.Name) == name })
		if t.columns[at].Name == "tenant_id" {
			values = append(values, "'"+tenant+"'")
			continue
		}
		values = append(values, strings.ReplaceAll(t.columns[at].Value, "$I", fmt.Sprint(i)))
	}
	return strings.Join(values, ", ")
}

// selectable are the columns that a SELECT of the role names, all where it has
// the right to none, so that it is refused for that.
func (t *target) selectable() string {
	names := t.list(func(c *column) bool { return c.Select })
	if len(names) == 0 {
		names = t.list(func(*column) bool { return true })
	}
	return strings.Join(names, ", ")
}

func (t *target) insertable() []string {
	names := t.list(func(c *column) bool { return c.Insert })
	if !slices.Contains(names, `"tenant_id"`) {
		names = t.list(func(*column) bool { return true })
	}
	return names
}

// updatable is a column that the role may change, or else any that is no key.
func (t *target) updatable() string {
	for _, may := range []func(*column) bool{
		func(c *column) bool { return c.Update && !c.Key },
		func(c *column) bool { return !c.Key },
		func(c *column) bool { return c.Name == "tenant_id" },
	} {
		if names := t.list(may); len(names) > 0 {
			return names[0]
		}
	}
	return `"tenant_id"`
}

func (t *target) keys() string {
	return strings.Join(t.list(func(c *column) bool { return c.Key }), ", ")
}

func (t *target) may(check func(*column) bool, name string) bool {
	return slices.ContainsFunc(t.columns, func(c column) bool { return quoteIdent(c.Name) == name && check(&c) })
}

func mayUpdate(c *column) bool { return c.Update }
func maySelect(c *column) bool { return c.Select }
func mayInsert(c *column) bool { return c.Insert }

// what an outcome means
type outcome int

const (
	gone    outcome = iota // nothing was seen and nothing was done
	refused                // an error that says no
	reached                // a row of the victim was seen or touched
)

// verb is one way to a table's rows.
type verb struct {
	name string
	// whose rows it wants: the tenant that may rightfully do it.
	wants string
	// may reports whether the role has the privileges that it takes; without
	// them the statement is refused whatever the context, and its control is run
	// by the superuser.
	may func(t *target) bool
	// sql makes the statements; the last one is what counts.
	sql    func(t *target) []string
	copyIn bool // the statement is COPY FROM STDIN of a row of the newcomer
	// tells is the SQLSTATE of an error that only a row of the victim makes.
	tells string
	// done says that success without a count of rows is success: TRUNCATE.
	done bool
}

func reads(t *target) bool  { return t.may(maySelect, `"tenant_id"`) }
func writes(t *target) bool { return reads(t) && t.may(mayUpdate, t.updatable()) }
func adds(t *target) bool {
	return t.may(mayInsert, `"tenant_id"`)
}

func one(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }

// verbs are all ways. A statement that reads gives the tenant of each row that
// it saw as its first column.
var verbs = []verb{
	{name: "select", wants: victim, may: reads, sql: func(t *target) []string { return one("select tenant_id, %s from %s", t.selectable(), t.name) }},
	{name: "select where", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select tenant_id, %s from %s where tenant_id = '%s'", t.selectable(), t.name, victim)
	}},
	{name: "select or true", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select tenant_id from %s where tenant_id = '%s' or true", t.name, intruder)
	}},
	{name: "count", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select tenant_id, count(*) from %s group by tenant_id", t.name)
	}},
	{name: "exists", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select '%s' where exists (select from %s where tenant_id = '%s')", victim, t.name, victim)
	}},
	{name: "union", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select null::text where false union all select tenant_id from %s", t.name)
	}},
	{name: "cte", wants: victim, may: reads, sql: func(t *target) []string {
		return one("with x as materialized (select * from (select tenant_id from %s) y) select tenant_id from x", t.name)
	}},
	{name: "join", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select b.tenant_id from (values ('%s'), ('%s')) a (k) left join %s b on b.tenant_id = a.k where b.tenant_id is not null", victim, intruder, t.name)
	}},
	{name: "lateral", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select b.tenant_id from (values ('%s')) a (k), lateral (select tenant_id from %s where tenant_id = a.k) b", victim, t.name)
	}},
	{name: "tablesample", wants: victim, may: func(t *target) bool { return reads(t) }, sql: func(t *target) []string {
		return one("select tenant_id from %s tablesample system (100)", t.name)
	}},
	{name: "error as an oracle", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select null from %s where 1 / (case when tenant_id = '%s' then length(tenant_id) - length(tenant_id) else 1 end) = 1", t.name, victim)
	}, tells: "22012"},
	{name: "window", wants: victim, may: reads, sql: func(t *target) []string {
		return one("select first_value(tenant_id) over (partition by tenant_id order by tenant_id) from %s", t.name)
	}},
	{name: "cursor", wants: victim, may: reads, sql: func(t *target) []string {
		return []string{fmt.Sprintf("declare c scroll cursor for select tenant_id from %s", t.name), "fetch all from c"}
	}},
	{name: "for share", wants: victim, may: writes, sql: func(t *target) []string {
		return one("select tenant_id from %s where tenant_id = '%s' for share", t.name, victim)
	}},
	{name: "for update", wants: victim, may: writes, sql: func(t *target) []string {
		return one("select tenant_id from %s where tenant_id = '%s' for update", t.name, victim)
	}},
	{name: "copy out", wants: victim, may: reads, sql: func(t *target) []string {
		return one("copy (select tenant_id from %s) to stdout", t.name)
	}},
	{name: "insert", wants: newcomer, may: adds, sql: func(t *target) []string {
		names := t.insertable()
		return one("insert into %s (%s) select %s", t.name, strings.Join(names, ", "), t.values(names, newcomer, 1))
	}},
	{name: "copy in", wants: newcomer, may: func(t *target) bool { return t.leaf && adds(t) }, sql: func(t *target) []string {
		return one("copy %s (%s) from stdin", t.name, strings.Join(t.insertable(), ", "))
	}, copyIn: true},
	{name: "upsert", wants: victim, may: func(t *target) bool {
		return adds(t) && writes(t) && len(t.keys()) > 0 && !slices.ContainsFunc(t.columns, func(c column) bool { return c.Key && (!c.Insert || !c.Select) })
	}, sql: func(t *target) []string {
		names := t.insertable()
		for _, k := range t.list(func(c *column) bool { return c.Key }) {
			if !slices.Contains(names, k) {
				names = append(names, k)
			}
		}
		return one("insert into %s as x (%s) select %s on conflict (%s) do update set %s = x.%s", t.name, strings.Join(names, ", "), t.values(names, victim, 1), t.keys(), t.updatable(), t.updatable())
	}},
	{name: "update", wants: victim, may: writes, sql: func(t *target) []string {
		return one("update %s set %s = %s where tenant_id = '%s'", t.name, t.updatable(), t.updatable(), victim)
	}},
	{name: "update all, returning", wants: victim, may: writes, sql: func(t *target) []string {
		return one("update %s set %s = %s returning tenant_id", t.name, t.updatable(), t.updatable())
	}},
	{name: "take a row over", wants: victim, may: func(t *target) bool { return !t.single && reads(t) && t.may(mayUpdate, `"tenant_id"`) }, sql: func(t *target) []string {
		return one("update %s set tenant_id = '%s' where tenant_id = '%s'", t.name, newcomer, victim)
	}},
	{name: "give a row away", wants: newcomer, may: func(t *target) bool { return !t.single && reads(t) && t.may(mayUpdate, `"tenant_id"`) }, sql: func(t *target) []string {
		return one("update %s set tenant_id = '%s' where tenant_id = '%s'", t.name, newcomer, intruder)
	}},
	{name: "merge", wants: victim, may: writes, sql: func(t *target) []string {
		return one("merge into %s x using (values ('%s')) s (k) on x.tenant_id = s.k when matched then update set %s = x.%s", t.name, victim, t.updatable(), t.updatable())
	}},
	{name: "delete", wants: victim, may: func(t *target) bool { return reads(t) && t.del }, sql: func(t *target) []string {
		return one("delete from %s where tenant_id = '%s'", t.name, victim)
	}},
	{name: "delete all, returning", wants: victim, may: func(t *target) bool { return reads(t) && t.del }, sql: func(t *target) []string {
		return one("delete from %s returning tenant_id", t.name)
	}},
	{name: "truncate", wants: victim, may: func(t *target) bool { return t.trunc }, sql: func(t *target) []string { return one("truncate %s cascade", t.name) }, done: true},
	{name: "disable", wants: victim, may: nobody, sql: func(t *target) []string { return one("alter table %s disable row level security", t.name) }, done: true},
	{name: "no force", wants: victim, may: nobody, sql: func(t *target) []string { return one("alter table %s no force row level security", t.name) }, done: true},
	{name: "create policy", wants: victim, may: nobody, sql: func(t *target) []string { return one("create policy open on %s using (true)", t.name) }, done: true},
	{name: "become owner", wants: victim, may: nobody, sql: func(t *target) []string { return one("alter table %s owner to current_user", t.name) }, done: true},
	{name: "disable triggers", wants: victim, may: nobody, sql: func(t *target) []string { return one("alter table %s disable trigger user", t.name) }, done: true},
	{name: "no triggers here", wants: victim, may: nobody, sql: func(t *target) []string {
		return []string{"set local session_replication_role = replica", "select tenant_id from " + t.name}
	}},
	{name: "as the owner", wants: victim, may: nobody, sql: func(t *target) []string {
		return []string{"set local role tallystick_owner", "alter table " + t.name + " no force row level security", "select tenant_id from " + t.name}
	}},
	{name: "as the bypass", wants: victim, may: nobody, sql: func(t *target) []string {
		return []string{"set local role tallystick_bypass", "set local role none", "select tenant_id from " + t.name}
	}},
	{name: "view", wants: victim, may: nobody, sql: func(t *target) []string {
		return []string{"create view sec.open as select * from " + t.name, "select tenant_id from sec.open"}
	}},
	{name: "drop", wants: victim, may: nobody, sql: func(t *target) []string { return one("drop table %s cascade", t.name) }, done: true},
}

func nobody(*target) bool { return false }

// run runs the verb's statements and reports what they reached for the tenant.
func (v *verb) run(ctx context.Context, conn *pgx.Conn, t *target, statements []string) (outcome, error) {
	last := len(statements) - 1
	for _, sql := range statements[:last] {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return refused, err
		}
	}
	switch sql := statements[last]; {
	case v.copyIn:
		tag, err := conn.PgConn().CopyFrom(ctx, strings.NewReader(t.copyLine), sql)
		if err != nil {
			return refused, err
		}
		return outcomeIf(tag.RowsAffected() > 0), nil
	case strings.HasPrefix(sql, "copy ("):
		var out strings.Builder
		if _, err := conn.PgConn().CopyTo(ctx, &out, sql); err != nil {
			return refused, err
		}
		return outcomeIf(strings.Contains("\n"+out.String(), "\n"+v.wants+"\n")), nil
	default:
		return v.query(ctx, conn, sql)
	}
}

func (v *verb) query(ctx context.Context, conn *pgx.Conn, sql string) (outcome, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return refused, err
	}
	defer rows.Close()
	seen, returns := false, len(rows.FieldDescriptions()) > 0
	for rows.Next() {
		seen = seen || v.tells == "" && string(rows.RawValues()[0]) == v.wants
	}
	if err := rows.Err(); err != nil {
		if v.tells != "" && postgres.SQLState(err) == v.tells {
			return reached, nil
		}
		return refused, err
	}
	if !returns {
		seen = v.done || rows.CommandTag().RowsAffected() > 0
	}
	return outcomeIf(seen), nil
}

func outcomeIf(seen bool) outcome {
	if seen {
		return reached
	}
	return gone
}
