package postgres

import (
	"context"
	"fmt"
	"strings"
)

// Role is one of the roles that migrations grant privileges to. A login is a
// member of one of them.
type Role string

// The roles. RoleOwner owns everything and has no login.
const (
	RoleOwner      Role = "tallystick_owner"
	RoleMigrator   Role = "tallystick_migrator"   // migrates: may act as the owner
	RoleApp        Role = "tallystick_app"        // serves one tenant at a time
	RoleLedger     Role = "tallystick_ledger"     // the writer of hop 3
	RoleProcessors Role = "tallystick_processors" // plans and checkpoints of hops 5 and 6
	RoleBypass     Role = "tallystick_bypass"     // RunAsBypass; its logins have BYPASSRLS
	RoleBackup     Role = "tallystick_backup"     // pg_dump; its logins have BYPASSRLS
)

// Logins are the roles that Provision makes a login for.
func Logins() []Role {
	return []Role{RoleApp, RoleLedger, RoleProcessors, RoleBypass, RoleBackup}
}

// bypasses reports whether the role's logins need BYPASSRLS.
func (r Role) bypasses() bool { return r == RoleBypass || r == RoleBackup }

// checkRole refuses a login that could do more than its role: by an attribute
// of its own or of a role that it could become, by owning a table, or by a
// privilege that no policy holds back. Each row is one reason.
func (db *DB) checkRole(ctx context.Context, want Role) error {
	// What no login of ours may be, and what only other roles may be.
	const reasons = `
		with me as (select oid, rolname from pg_roles where rolname = current_user),
		become as (select r.* from pg_roles r, me where r.oid = me.oid or pg_has_role(me.oid, r.oid, 'member'))
		select 'superuser as ' || rolname from become where rolsuper
		union all select 'BYPASSRLS as ' || b.rolname from become b, me where b.rolbypassrls and not (b.oid = me.oid and $2)
		union all select 'CREATEROLE as ' || rolname from become where rolcreaterole
		union all select 'REPLICATION as ' || rolname from become where rolreplication
		union all select 'member of ' || rolname from become where not rolsuper and rolname in ('pg_read_all_data', 'pg_write_all_data', 'pg_read_server_files',
		  'pg_write_server_files', 'pg_execute_server_program', 'pg_maintain', 'tallystick_owner', 'tallystick_migrator', 'tallystick_bypass', 'tallystick_backup')
		  and rolname <> $1 and not (rolname = 'pg_read_all_data' and $1 = 'tallystick_backup')
		union all select 'member of ' || rolname from become where $1 <> '' and not rolsuper and rolname <> $1
		  and rolname in ('tallystick_app', 'tallystick_ledger', 'tallystick_processors')
		union all select 'not a member of ' || $1::text where $1 <> '' and not exists (select from become where rolname = $1)
		union all select 'no BYPASSRLS' where $2 and not exists (select from become b, me where b.oid = me.oid and b.rolbypassrls)
		union all
		(select 'owner of ' || c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
		 where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'v', 'm', 'f')
		   and pg_has_role(c.relowner, 'member') limit 1)
		union all
		(select 'may truncate ' || c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
		 where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'f')
		   and has_table_privilege(c.oid, 'truncate') limit 1)`
	rows, err := db.pool.Query(ctx, reasons, string(want), want.bypasses())
	if err != nil {
		return fmt.Errorf("check postgres role: %w", err)
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var reason string
		if err := rows.Scan(&reason); err != nil {
			return fmt.Errorf("check postgres role: %w", err)
		}
		found = append(found, reason)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("check postgres role: %w", err)
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: %s", ErrOverprivileged, strings.Join(found, ", "))
	}
	return nil
}
