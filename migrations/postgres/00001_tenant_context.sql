-- The tenant context: which tenants a transaction may touch (docs/security.md).
--
-- A program that holds a context key signs a token naming a set of tenants and
-- enters it per transaction with sec.enter. The policies of all tenant tables
-- ask sec.tenant() or sec.tenants(), which give the set only if it was entered
-- in this very transaction. Anything else is an error, never zero rows: SQL
-- that was injected can neither sign a token nor replay one.

-- +goose Up
-- +goose StatementBegin
do $$
declare r text;
begin
  foreach r in array array['tallystick_app', 'tallystick_ledger', 'tallystick_processors'] loop
    if not exists (select from pg_roles where rolname = r) then
      begin
        execute format('create role %I nologin nobypassrls nosuperuser', r);
      exception when duplicate_object or unique_violation then
        null; -- another database of the cluster was migrated at the same moment
      end;
    end if;
  end loop;
end $$;
-- +goose StatementEnd

create schema sec;
revoke all on schema sec from public;
grant usage on schema sec to tallystick_app, tallystick_ledger, tallystick_processors;

-- Keys that sign tokens, as the two padded blocks of HMAC-SHA-256 (RFC 2104), so
-- that the built-in sha256 is enough and no extension is needed. No role but
-- the owner reads this table.
create table sec.context_key (
  kid  int primary key,
  ipad bytea not null check (length(ipad) = 64),
  opad bytea not null check (length(opad) = 64)
);
revoke all on sec.context_key from public;

-- +goose StatementBegin
create function sec.hmac(k int, message text) returns bytea
language sql stable strict set search_path = pg_catalog, pg_temp as $$
  select sha256(opad || sha256(ipad || convert_to(message, 'UTF8'))) from sec.context_key where kid = k
$$;
-- +goose StatementEnd
revoke all on function sec.hmac(int, text) from public;

-- What a context is bound to: this backend and this transaction.
-- +goose StatementBegin
create function sec.binding(tenants text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select 'bind|' || pg_backend_pid() || '|' || extract(epoch from transaction_timestamp()) || '|' || tenants
$$;
-- +goose StatementEnd
revoke all on function sec.binding(text) from public;

-- sec.enter checks a token 'v1|kid|expiry|tenant,tenant…|hex mac' and makes its
-- tenants those of the transaction. expiry is in unix seconds; the MAC is over
-- everything before its bar.
-- +goose StatementBegin
create function sec.enter(token text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  part text[] := string_to_array(token, '|');
  k int;
begin
  if coalesce(array_length(part, 1), 0) <> 5 or part[1] <> 'v1' or part[2] !~ '^[0-9]{1,9}$'
     or part[3] !~ '^[0-9]{1,12}$' or part[4] = '' then
    raise exception 'tenant context: malformed token' using errcode = '42501';
  end if;
  k := part[2]::int;
  -- Comparing hashes of the two MACs tells nothing about where they differ.
  if sha256(coalesce(sec.hmac(k, array_to_string(part[1:4], '|')), ''::bytea))
     is distinct from sha256(decode(case when part[5] ~ '^[0-9a-f]{64}$' then part[5] else '' end, 'hex')) then
    raise exception 'tenant context: bad signature' using errcode = '42501';
  end if;
  if part[3]::bigint < extract(epoch from clock_timestamp()) then
    raise exception 'tenant context: expired token' using errcode = '42501', detail = 'expired';
  end if;
  perform set_config('tallystick.context',
    k || '|' || part[4] || '|' || encode(sec.hmac(k, sec.binding(part[4])), 'hex'), true);
  -- For readers of the logs; nothing trusts it.
  perform set_config('app.tenant_id', case when part[4] like '%,%' then '' else part[4] end, true);
end $$;
-- +goose StatementEnd
revoke all on function sec.enter(text) from public;
grant execute on function sec.enter(text) to tallystick_app, tallystick_ledger, tallystick_processors;

-- sec.tenants is the set of tenants that was entered in this transaction.
-- +goose StatementBegin
create function sec.tenants() returns text[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  part text[] := string_to_array(current_setting('tallystick.context', true), '|');
begin
  if coalesce(array_length(part, 1), 0) <> 3 or part[1] !~ '^[0-9]{1,9}$' then
    raise exception 'tenant context: none was entered in this transaction' using errcode = '42501';
  end if;
  if encode(coalesce(sec.hmac(part[1]::int, sec.binding(part[2])), ''::bytea), 'hex') <> part[3] then
    raise exception 'tenant context: forged, or entered in another transaction' using errcode = '42501';
  end if;
  return string_to_array(part[2], ',');
end $$;
-- +goose StatementEnd
revoke all on function sec.tenants() from public;
grant execute on function sec.tenants() to tallystick_app, tallystick_ledger, tallystick_processors;

-- sec.tenant is the one tenant of the transaction; a set of several is an error.
-- +goose StatementBegin
create function sec.tenant() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  t text[] := sec.tenants();
begin
  if array_length(t, 1) <> 1 then
    raise exception 'tenant context: names several tenants where one is needed' using errcode = '42501';
  end if;
  return t[1];
end $$;
-- +goose StatementEnd
revoke all on function sec.tenant() from public;
grant execute on function sec.tenant() to tallystick_app, tallystick_ledger, tallystick_processors;

-- The statement trigger of tables that COPY writes to: COPY is refused under a
-- policy, so such a leaf has none and this checks every row that a statement
-- inserted against the set, once per statement.
-- +goose StatementBegin
create function sec.check_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  allowed text[] := sec.tenants();
begin
  if exists (select from inserted where tenant_id <> all (allowed)) then
    raise exception 'tenant context: a row of %.% belongs to no tenant of the transaction', tg_table_schema, tg_table_name
      using errcode = '42501';
  end if;
  return null;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'a ledger is never migrated down'::int;
