-- Mapping rules: whom a tenant's calls are for where their producers do not say
-- (package comment of internal/mapping).

-- +goose Up
create schema mapping;
revoke all on schema mapping from public;
grant usage on schema mapping to tallystick_app;

-- Each version of a tenant's rules, the newest in force. The row is also the
-- outbox: said is when its control record was in Kafka.
create table mapping.rules (
  tenant_id  text collate "C" not null,
  version    bigint not null check (version between 1 and 2147483647),
  content    text not null check (octet_length(content) between 2 and 65536),
  created_at timestamptz not null default clock_timestamp(),
  created_by text not null check (octet_length(created_by) between 1 and 200),
  said       timestamptz,
  primary key (tenant_id, version)
);
alter table mapping.rules enable row level security;
alter table mapping.rules force row level security;
create policy app on mapping.rules to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert (tenant_id, version, content, created_by), update (said) on mapping.rules to tallystick_app;

-- How often any tenant's rules have changed, in one row: an edge that keeps rules
-- in memory asks for this number alone. It tells nothing of any tenant.
create table mapping.changes (
  one     boolean primary key default true check (one),
  version bigint not null
);
insert into mapping.changes (version) values (1);
revoke all on mapping.changes from public;
grant select on mapping.changes to tallystick_app;

-- +goose StatementBegin
create function mapping.count_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update mapping.changes set version = version + 1;
  return null;
end $$;
-- +goose StatementEnd
revoke all on function mapping.count_change() from public;
create trigger count_change after insert on mapping.rules
  for each statement execute function mapping.count_change();

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant usage on schema mapping to tallystick_backup;
    grant select on mapping.rules, mapping.changes to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'a ledger is never migrated down'::int;
