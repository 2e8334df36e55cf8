-- Who owns what, who may step over row-level security, and contexts that are
-- signed for one transaction (docs/security.md).
--
-- tallystick_owner owns every table and function and cannot log in. A login
-- that migrates is a member of tallystick_migrator, one that runs RunAsBypass
-- of tallystick_bypass with the attribute BYPASSRLS, one that dumps the
-- database of tallystick_backup. Grants stand with each table.

-- +goose Up
-- +goose StatementBegin
do $$
declare r text;
begin
  foreach r in array array['tallystick_owner', 'tallystick_migrator', 'tallystick_bypass', 'tallystick_backup'] loop
    if not exists (select from pg_roles where rolname = r) then
      begin
        execute format('create role %I nologin nobypassrls nosuperuser', r);
      exception when duplicate_object or unique_violation then
        null; -- another database of the cluster was migrated at the same moment
      end;
    end if;
  end loop;
  -- Databases of one cluster share roles and their memberships.
  perform pg_advisory_xact_lock(hashtextextended('tallystick roles', 0));
  if not pg_has_role('tallystick_migrator', 'tallystick_owner', 'usage') then
    grant tallystick_owner to tallystick_migrator;
  end if;
  if not pg_has_role(current_user, 'tallystick_owner', 'usage') then
    execute format('grant tallystick_migrator to %I', current_user);
  end if;
  -- Reads everything, leaves without a policy too. Not a grant on each table:
  -- on a leaf that the writer COPYs into nobody has any but its INSERT.
  if (select rolsuper from pg_roles where rolname = current_user) and not pg_has_role('tallystick_backup', 'pg_read_all_data', 'member') then
    grant pg_read_all_data to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

grant usage on schema sec, ledger, processors to tallystick_bypass, tallystick_backup;

-- A context is a token 'v2|kid|expiry|pid|start|tenant,tenant…|hex mac', signed
-- for one transaction: in any other it is refused, so one that was seen is worth
-- nothing. pid is the backend's and start the transaction's; expiry is a time
-- that must lie after start. Both times are as timestamptz_send writes them, in
-- hexadecimal. The MAC is over everything before its bar. Whoever signs asks for
-- pid and start together with `begin`.
--
-- sec.enter only keeps the token. It is verified wherever a policy or a trigger
-- asks for the tenants, in one statement each, because a transaction pays anew
-- for every expression of these functions. The two must say the same. The MACs
-- are compared only when a hash of them is equal, so that the time it takes does
-- not tell how long their common beginning is.
--
-- app.tenant_id is for readers of the logs; nothing trusts it. sec.enter has no
-- search_path of its own so that it is inlined; it has no rights of its own.
drop function sec.enter(text);
create function sec.enter(token text) returns boolean
language sql volatile as $$
  select pg_catalog.set_config('app.tenant_id', pg_catalog.split_part(token, '|', 6), true) is not null
     and pg_catalog.set_config('tallystick.context', token, true) is not null
$$;
revoke all on function sec.enter(text) from public;
grant execute on function sec.enter(text) to tallystick_app, tallystick_ledger, tallystick_processors, tallystick_bypass;

-- sec.refusal is why a token was refused, for the error's detail: a caller whose
-- token expired on the way signs another.
-- +goose StatementBegin
create function sec.refusal(token text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when coalesce(token, '') = '' then 'none'
    when split_part(token, '|', 3) < encode(timestamptz_send(transaction_timestamp()), 'hex') then 'expired'
    else 'invalid' end
$$;
-- +goose StatementEnd
revoke all on function sec.refusal(text) from public;

-- sec.tenants is the set of tenants that was entered in this transaction.
-- +goose StatementBegin
create or replace function sec.tenants() returns text[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  token text := current_setting('tallystick.context', true);
  part text[] := string_to_array(token, '|');
  tenants text[];
  mac text;
begin
  select string_to_array(part[6], ','), encode(sha256(opad || sha256(ipad || convert_to(left(token, -65), 'UTF8'))), 'hex')
  into tenants, mac from sec.context_key
  where kid::text = part[2] and part[4] = pg_backend_pid()::text and part[5] = encode(timestamptz_send(transaction_timestamp()), 'hex')
    and part[3] >= part[5] and part[6] <> '';
  if tenants is null or part[7] is null or hashtextextended(mac, 0) <> hashtextextended(part[7], 0) or mac <> part[7] then
    raise exception 'tenant context: none of ours was entered in this transaction' using errcode = '42501', detail = sec.refusal(token);
  end if;
  return tenants;
end $$;
-- +goose StatementEnd
grant execute on function sec.tenants() to tallystick_bypass;

-- sec.tenant is the one tenant of the transaction; a set of several is an error.
-- +goose StatementBegin
create or replace function sec.tenant() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  token text := current_setting('tallystick.context', true);
  part text[] := string_to_array(token, '|');
  tenant text;
  mac text;
begin
  select part[6], encode(sha256(opad || sha256(ipad || convert_to(left(token, -65), 'UTF8'))), 'hex')
  into tenant, mac from sec.context_key
  where kid::text = part[2] and part[4] = pg_backend_pid()::text and part[5] = encode(timestamptz_send(transaction_timestamp()), 'hex')
    and part[3] >= part[5] and part[6] <> '';
  if tenant is null or part[7] is null or hashtextextended(mac, 0) <> hashtextextended(part[7], 0) or mac <> part[7] then
    raise exception 'tenant context: none of ours was entered in this transaction' using errcode = '42501', detail = sec.refusal(token);
  end if;
  if position(',' in tenant) > 0 then
    raise exception 'tenant context: names several tenants where one is needed' using errcode = '42501';
  end if;
  return tenant;
end $$;
-- +goose StatementEnd
grant execute on function sec.tenant() to tallystick_bypass;

drop function sec.binding(text);
drop function sec.hmac(int, text);
revoke all on function sec.check_inserted() from public;

-- The list of batches names tenants: it is for those who move entries on.
revoke select on ledger.batch from tallystick_app;

-- Every key of a tenant table begins with the tenant.
alter table processors.snapshot drop constraint snapshot_pkey, add primary key (tenant_id, partition, processor);

-- What RunAsBypass may read. What it may write stands with the table.
grant select on ledger.partition, ledger.control, ledger.batch, ledger.quarantine, ledger.head, ledger.entry, ledger.event_key,
  ledger.counter, processors.checkpoint, processors.coverage, processors.snapshot to tallystick_bypass;

-- sec.adopt gives tallystick_owner everything in our schemas: those that a role
-- of ours may use. Every migration run ends with it. It works only for whom
-- ALTER … OWNER works, so nobody gains by calling it.
-- +goose StatementBegin
create function sec.adopt() returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
  ours oid[] := array(
    select distinct n.oid from pg_namespace n, aclexplode(n.nspacl) a join pg_roles r on r.oid = a.grantee
    where r.rolname in ('tallystick_app', 'tallystick_ledger', 'tallystick_processors'));
  boss oid := 'tallystick_owner'::regrole;
  stmt text;
begin
  for stmt in
    select format('alter schema %I owner to tallystick_owner', nspname) from pg_namespace where oid = any (ours) and nspowner <> boss
  loop
    execute stmt;
  end loop;
  for stmt in
    -- A sequence of an identity column goes with its table, an index too.
    select format('alter table %s owner to tallystick_owner', c.oid::regclass) from pg_class c
    where c.relnamespace = any (ours) and c.relowner <> boss and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and not (c.relkind = 'S' and exists (select from pg_depend d where d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')))
    union all
    select format('alter routine %s owner to tallystick_owner', p.oid::regprocedure) from pg_proc p
    where p.pronamespace = any (ours) and p.proowner <> boss
    union all
    select format('alter type %s owner to tallystick_owner', t.oid::regtype) from pg_type t
    where t.typnamespace = any (ours) and t.typowner <> boss and t.typtype in ('d', 'e')
  loop
    execute stmt;
  end loop;
end $$;
-- +goose StatementEnd
revoke all on function sec.adopt() from public;

-- +goose Down
select 'a ledger is never migrated down'::int;
