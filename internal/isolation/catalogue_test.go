package isolation

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// noTenant are the tables without a tenant, each with its reason. hidden ones
// nobody but the owner has any privilege on.
var noTenant = map[string]struct {
	reason string
	hidden bool
}{
	"public.goose_db_version":     {"which migrations have run", true},
	"sec.context_key":             {"the keys that contexts are signed with", true},
	"ledger.partition":            {"the fence and the place in the log, by partition of a topic", false},
	"ledger.control":              {"control records that are the same for all tenants: price books, rules", false},
	"ledger.batch":                {"the commits of a partition by number; it names tenants, so the app role has no privilege on it", false},
	"ledger.quarantine":           {"places in the log, decided by an operator", false},
	"ledger.price_candidate":      {"price books that wait for a human's yes: the same for all tenants", false},
	"ledger.recovery":             {"partitions that are being recovered", false},
	"ledger.confidential_version": {"one number: how often any tenant's setting has changed", false},
	"processors.checkpoint":       {"how far each partition is in ClickHouse", false},
	"processors.gpu_partition":    {"how far each partition of telemetry is read", false},
	"connection.bedrock_version":  {"one number: how often any connection was made, paused or removed", false},
	"mapping.changes":             {"one number: how often any tenant's mapping rules have changed", false},
	"agent.revocations":           {"one number: how often any agent was revoked", false},
	"agent.pepper":                {"when the peppers of agents' secrets were first seen; the same for all tenants", false},
}

// definers are the functions that run with their owner's rights, each with its
// reason.
var definers = map[string]string{
	"sec.tenant":                "reads the key that verifies the context",
	"sec.tenants":               "reads the key that verifies the context",
	"sec.check_inserted":        "asks sec.tenants for the writer",
	"connection.count_bedrock":  "adds one to a number that nobody may write",
	"ledger.count_confidential": "adds one to a number that nobody may write",
	"mapping.count_change":      "adds one to a number that nobody may write",
	"agent.count_revoked":       "adds one to a number that nobody may write",
}

const (
	ownerRole     = "tallystick_owner"
	checkInserted = "sec.check_inserted"
	ofTenant      = "(tenant_id = ( SELECT sec.tenant() AS tenant))"
	ofTenants     = "(tenant_id IN ( SELECT unnest(sec.tenants()) AS unnest))"
)

// policyForm is what the policies of each role may say.
var policyForm = map[string][]string{
	"tallystick_app":        {ofTenant},
	"tallystick_ledger":     {ofTenant, ofTenants},
	"tallystick_processors": {ofTenant, ofTenants},
}

// mayHold are the privileges that roles may hold on tables at all.
var mayHold = map[string][]string{
	"tallystick_app":        {"SELECT", "INSERT", "UPDATE", "DELETE"},
	"tallystick_ledger":     {"SELECT", "INSERT", "UPDATE", "DELETE"},
	"tallystick_processors": {"SELECT", "INSERT", "UPDATE", "DELETE"},
	"tallystick_bypass":     {"SELECT", "INSERT", "UPDATE", "DELETE"},
	"tallystick_backup":     {"SELECT"},
}

// relation is a table or view.
type relation struct {
	OID          uint32
	Name, Kind   string // schema.table; pg_class.relkind
	Owner        string
	RLS, Forced  bool
	Parent       string // of a partition
	Tenant       bool   // has a column tenant_id
	TenantOK     bool   // text collate "C" not null
	NamesTenants bool   // another column's name speaks of tenants
	Options      []string
	Rules        int // beside a view's own
}

type policy struct {
	Table, Name, Cmd string
	Permissive       bool
	Roles            []string
	Using, Check     string
}

// grant is one privilege on a table, or on a column of it.
type grant struct{ Table, Role, Privilege, Column string }

type trigger struct {
	Table, Name, Function string
	Kind                  int // pg_trigger.tgtype
	NewTable, Enabled     string
}

// catalogue is what the rules look at.
type catalogue struct {
	relations []relation
	policies  map[string][]policy
	grants    map[string][]grant
	triggers  map[string][]trigger
	findings  []string // by rules that are a query
}

// readCatalogue reads the catalogue as the connection, or transaction, sees it.
func readCatalogue(ctx context.Context, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}) (*catalogue, error) {
	c := &catalogue{policies: map[string][]policy{}, grants: map[string][]grant{}, triggers: map[string][]trigger{}}
	rows, err := q.Query(ctx, `
		select c.oid, n.nspname || '.' || c.relname, c.relkind::text, c.relowner::regrole::text, c.relrowsecurity, c.relforcerowsecurity,
		  coalesce((select pn.nspname || '.' || p.relname from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_namespace pn on pn.oid = p.relnamespace
		            where i.inhrelid = c.oid), ''),
		  exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped),
		  exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnotnull
		          and a.atttypid = 'text'::regtype and a.attcollation = '"C"'::regcollation),
		  exists (select from pg_attribute a where a.attrelid = c.oid and a.attname ~ 'tenant' and a.attname <> 'tenant_id' and not a.attisdropped),
		  coalesce(c.reloptions, '{}'),
		  (select count(*)::int from pg_rewrite r where r.ev_class = c.oid and r.rulename <> '_RETURN')
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by 2`)
	if err != nil {
		return nil, err
	}
	if c.relations, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (v relation, err error) {
		return v, r.Scan(&v.OID, &v.Name, &v.Kind, &v.Owner, &v.RLS, &v.Forced, &v.Parent, &v.Tenant, &v.TenantOK, &v.NamesTenants, &v.Options, &v.Rules)
	}); err != nil {
		return nil, err
	}
	if err := c.readRights(ctx, q.Query); err != nil {
		return nil, err
	}
	return c, c.readFindings(ctx, q.Query)
}

type queryFunc func(context.Context, string, ...any) (pgx.Rows, error)

func (c *catalogue) readRights(ctx context.Context, query queryFunc) error {
	rows, err := query(ctx, `
		select schemaname || '.' || tablename, policyname, cmd, permissive = 'PERMISSIVE', roles::text[], coalesce(qual, ''), coalesce(with_check, '')
		from pg_policies order by 1, 2`)
	if err != nil {
		return err
	}
	policies, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (v policy, err error) {
		return v, r.Scan(&v.Table, &v.Name, &v.Cmd, &v.Permissive, &v.Roles, &v.Using, &v.Check)
	})
	if err != nil {
		return err
	}
	for _, p := range policies {
		c.policies[p.Table] = append(c.policies[p.Table], p)
	}
	rows, err = query(ctx, `
		with t as (select c.oid, c.relacl, c.relowner, n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
		           where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
		select t.name, case when x.grantee = 0 then 'PUBLIC' else x.grantee::regrole::text end, x.privilege_type, ''
		from t, aclexplode(coalesce(t.relacl, acldefault('r', t.relowner))) x where x.grantee <> t.relowner
		union all
		select t.name, case when x.grantee = 0 then 'PUBLIC' else x.grantee::regrole::text end, x.privilege_type, a.attname
		from t join pg_attribute a on a.attrelid = t.oid, aclexplode(a.attacl) x where x.grantee <> t.relowner order by 1, 2, 3, 4`)
	if err != nil {
		return err
	}
	grants, err := pgx.CollectRows(rows, pgx.RowToStructByPos[grant])
	if err != nil {
		return err
	}
	for _, g := range grants {
		c.grants[g.Table] = append(c.grants[g.Table], g)
	}
	rows, err = query(ctx, `
		select n.nspname || '.' || c.relname, t.tgname, pn.nspname || '.' || p.proname, t.tgtype::int, coalesce(t.tgnewtable, ''), t.tgenabled::text
		from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
		join pg_proc p on p.oid = t.tgfoid join pg_namespace pn on pn.oid = p.pronamespace
		where not t.tgisinternal order by 1, 2`)
	if err != nil {
		return err
	}
	triggers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[trigger])
	for _, t := range triggers {
		c.triggers[t.Table] = append(c.triggers[t.Table], t)
	}
	return err
}

// findingQueries are rules that a query says best; each row is a finding.
var findingQueries = []string{
	// Keys of tenant tables begin with the tenant.
	`select i.indexrelid::regclass || ' of ' || i.indrelid::regclass || ' is unique without beginning with tenant_id'
	 from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
	 where i.indisunique and n.nspname !~ '^pg_' and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
	   and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnum = i.indkey[0])`,
	// A tenant table without any key at all is one nobody thought about.
	`select c.oid::regclass || ' has no primary key' from pg_class c join pg_namespace n on n.oid = c.relnamespace
	 where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
	   and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)`,
	// Foreign keys between tenant tables carry the tenant.
	`select k.conname || ' of ' || k.conrelid::regclass || ' refers to ' || k.confrelid::regclass || ' without its tenant'
	 from pg_constraint k
	 join pg_attribute a on a.attrelid = k.conrelid and a.attname = 'tenant_id' and not a.attisdropped
	 join pg_attribute b on b.attrelid = k.confrelid and b.attname = 'tenant_id' and not b.attisdropped
	 where k.contype = 'f' and not exists (select from unnest(k.conkey, k.confkey) as u (x, y) where u.x = a.attnum and u.y = b.attnum)`,
	// Functions.
	`select p.oid::regprocedure || ' may be executed by PUBLIC' from pg_proc p join pg_namespace n on n.oid = p.pronamespace,
	   aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
	 where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and x.grantee = 0`,
	`select p.oid::regprocedure || ' runs with its owner''s rights and no fixed search_path' from pg_proc p join pg_namespace n on n.oid = p.pronamespace
	 where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and p.prosecdef
	   and not coalesce(p.proconfig, '{}') @> array['search_path=pg_catalog, pg_temp']`,
	`select p.oid::regprocedure || ' belongs to ' || p.proowner::regrole from pg_proc p join pg_namespace n on n.oid = p.pronamespace
	 where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and p.proowner <> 'tallystick_owner'::regrole`,
	// Schemas.
	`select 'schema ' || n.nspname || ' is open to PUBLIC: ' || x.privilege_type from pg_namespace n, aclexplode(n.nspacl) x
	 where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and x.grantee = 0 and not (n.nspname = 'public' and x.privilege_type = 'USAGE')`,
	`select 'schema ' || n.nspname || ' belongs to ' || n.nspowner::regrole from pg_namespace n
	 where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'public') and n.nspowner <> 'tallystick_owner'::regrole`,
	// Roles.
	`select rolname || ' has an attribute that a role for grants must not have' from pg_roles
	 where rolname in ('tallystick_owner', 'tallystick_migrator', 'tallystick_app', 'tallystick_ledger', 'tallystick_processors', 'tallystick_bypass', 'tallystick_backup')
	   and (rolsuper or rolbypassrls or rolcanlogin or rolcreaterole or rolcreatedb or rolreplication)`,
	`select m.member::regrole || ' is a member of ' || m.roleid::regrole from pg_auth_members m join pg_roles r on r.oid = m.member
	 where r.rolname in ('tallystick_owner', 'tallystick_app', 'tallystick_ledger', 'tallystick_processors', 'tallystick_bypass')`,
	`select 'default privileges give ' || x.privilege_type || ' to PUBLIC' from pg_default_acl d, aclexplode(d.defaclacl) x where x.grantee = 0`,
}

func (c *catalogue) readFindings(ctx context.Context, query queryFunc) error {
	for _, sql := range findingQueries {
		rows, err := query(ctx, sql)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		c.findings = append(c.findings, found...)
	}
	rows, err := query(ctx, `select n.nspname || '.' || p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
		where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and p.prosecdef`)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		if definers[name] == "" {
			c.findings = append(c.findings, name+" runs with its owner's rights and is not listed")
		}
	}
	return err
}

// check holds every relation against the rules of docs/security.md.
func (c *catalogue) check() []string {
	found := slices.Clone(c.findings)
	for i := range c.relations {
		for _, what := range c.checkRelation(&c.relations[i]) {
			found = append(found, c.relations[i].Name+": "+what)
		}
	}
	return found
}

func (c *catalogue) checkRelation(r *relation) (found []string) {
	say := func(bad bool, format string, args ...any) {
		if bad {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	allowed, listed := noTenant[r.Name]
	// goose's own table stands in public and belongs to who migrates.
	say(r.Owner != ownerRole && (!strings.HasPrefix(r.Name, "public.") || mayHold[r.Owner] != nil), "belongs to %s", r.Owner)
	say(r.Rules > 0, "has a rule")
	for _, g := range c.grants[r.Name] {
		say(!slices.Contains(mayHold[g.Role], g.Privilege), "%s holds %s %s", g.Role, g.Privilege, g.Column)
		say(listed && allowed.hidden, "%s holds %s on a table that is the owner's alone", g.Role, g.Privilege)
		say(listed && r.NamesTenants && g.Role == "tallystick_app", "names tenants, and %s holds %s", g.Role, g.Privilege)
	}
	switch {
	case r.Kind == "v":
		say(!slices.Contains(r.Options, "security_invoker=true"), "is a view without security_invoker")
	case r.Kind == "m" || r.Kind == "f":
		say(true, "is of kind %s, which no policy holds back", r.Kind)
	case listed:
		say(r.Tenant, "is listed as one without a tenant and has a column tenant_id")
	case !r.Tenant:
		say(true, "has no tenant_id and is not listed with a reason")
	case c.isCopyLeaf(r):
	default:
		found = append(found, c.checkTenantTable(r)...)
	}
	return found
}

// isCopyLeaf reports whether the relation is exactly the one form of a table
// without policies: a partition of a forced parent, on which nobody holds any
// privilege but the writer INSERT, and whose rows a trigger checks.
func (c *catalogue) isCopyLeaf(r *relation) bool {
	grants, triggers := c.grants[r.Name], c.triggers[r.Name]
	// AFTER INSERT FOR EACH STATEMENT is the bit of insert alone.
	return r.Parent != "" && r.TenantOK && len(c.policies[r.Name]) == 0 && slices.ContainsFunc(c.relations, func(p relation) bool {
		return p.Name == r.Parent && p.Kind == "p" && p.RLS && p.Forced && len(c.policies[p.Name]) > 0
	}) &&
		len(grants) == 1 && grants[0] == (grant{r.Name, "tallystick_ledger", "INSERT", ""}) &&
		slices.ContainsFunc(triggers, func(t trigger) bool {
			return t.Function == checkInserted && t.Kind == 4 && t.NewTable == "inserted" && (t.Enabled == "O" || t.Enabled == "A")
		})
}

func (c *catalogue) checkTenantTable(r *relation) (found []string) {
	say := func(bad bool, format string, args ...any) {
		if bad {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	say(!r.TenantOK, "tenant_id is not text collate \"C\" not null")
	say(!r.RLS, "row-level security is not enabled")
	say(!r.Forced, "row-level security is not forced")
	for _, p := range c.policies[r.Name] {
		say(!p.Permissive, "policy %s is restrictive", p.Name)
		reads, writes := p.Cmd != "INSERT", p.Cmd != "SELECT" && p.Cmd != "DELETE"
		for _, role := range p.Roles {
			say(policyForm[role] == nil, "policy %s is for %s", p.Name, role)
			say(reads && !slices.Contains(policyForm[role], p.Using), "policy %s lets %s see %q", p.Name, role, p.Using)
			say(writes && !slices.Contains(policyForm[role], p.Check), "policy %s lets %s write %q", p.Name, role, p.Check)
			say(!reads && p.Using != "" || !writes && p.Check != "", "policy %s says too much", p.Name)
		}
	}
	// A privilege without a policy shows no rows, where an error is promised.
	for _, g := range c.grants[r.Name] {
		covered := policyForm[g.Role] == nil || slices.ContainsFunc(c.policies[r.Name], func(p policy) bool {
			return slices.Contains(p.Roles, g.Role) && (p.Cmd == "ALL" || p.Cmd == g.Privilege)
		})
		say(!covered, "%s holds %s and no policy is for it", g.Role, g.Privilege)
	}
	return found
}

// mutant is one hole made on purpose.
type mutant struct {
	name string
	sql  []string
}

// mutants are six of a relation: row-level security disabled, not forced, a
// policy dropped, one with using (true), one without its check, and a grant to
// PUBLIC. Where a table has no such thing, its place takes what would be as bad
// there.
func (c *catalogue) mutants(r *relation) []mutant {
	t := quoteName(r.Name)
	public := mutant{"grant to PUBLIC", []string{"grant select on " + t + " to public"}}
	switch {
	case !r.Tenant:
		column := "grant insert on " + t + " to public"
		return []mutant{
			{"for disable: becomes a tenant table", []string{"alter table " + t + " add column tenant_id text"}},
			{"for no force: belongs to a role that logs in", []string{"grant all on schema " + strings.Split(t, ".")[0] + " to tallystick_app", "alter table " + t + " owner to tallystick_app"}},
			{"for drop policy: TRUNCATE", []string{"grant truncate on " + t + " to tallystick_ledger"}},
			{"for using (true): rows in a view", []string{"create view sec.mutant as select * from " + t}},
			{"for drop check: a rule", []string{"create rule mutant as on insert to " + t + " do also nothing"}},
			{public.name, []string{column}},
		}
	case len(c.policies[r.Name]) == 0: // the leaf that is COPYed into
		trigger := quoteIdent(c.triggers[r.Name][0].Name)
		return []mutant{
			{"for disable: the trigger is disabled", []string{"alter table " + t + " disable trigger " + trigger}},
			{"for no force: the parent is not forced", []string{"alter table " + quoteName(r.Parent) + " no force row level security"}},
			{"for drop policy: the trigger is dropped", []string{"drop trigger " + trigger + " on " + t}},
			{"for using (true): the leaf is read", []string{"grant select on " + t + " to tallystick_ledger"}},
			{"for drop check: the trigger checks updates only", []string{"drop trigger " + trigger + " on " + t,
				"create trigger " + trigger + " after update on " + t + " referencing new table as inserted for each statement execute function sec.check_inserted()"}},
			public,
		}
	}
	policies := c.policies[r.Name]
	seeing := policies[slices.IndexFunc(policies, func(p policy) bool { return p.Cmd != "INSERT" })]
	check := []string{"create policy mutant on " + t + " for insert to tallystick_ledger with check (true)"}
	if i := slices.IndexFunc(policies, func(p policy) bool { return p.Check != "" }); i >= 0 {
		check = []string{"alter policy " + quoteIdent(policies[i].Name) + " on " + t + " with check (true)"}
	}
	return []mutant{
		{"disable", []string{"alter table " + t + " disable row level security"}},
		{"no force", []string{"alter table " + t + " no force row level security"}},
		{"drop policy", []string{"drop policy " + quoteIdent(policies[0].Name) + " on " + t}},
		{"using (true)", []string{"alter policy " + quoteIdent(seeing.Name) + " on " + t + " using (true)"}},
		{"drop check", check},
		public,
	}
}

func quoteIdent(name string) string { return pgx.Identifier{name}.Sanitize() }

// quoteName quotes schema.table.
func quoteName(name string) string { return pgx.Identifier(strings.SplitN(name, ".", 2)).Sanitize() }
