-- Persons and confidential tags (docs/ledger-format.md, "Persons and confidential
-- tags"; docs/security.md says what erasing one means).

-- +goose Up

-- The sealed identity behind each pseudonym. No entry depends on a row of this
-- table: it is the one part of the ledger's schema whose rows may be erased.
--
-- The ledger's role adds the row of a person it does not know and moves
-- last_seen, no more. Who serves the API may take an identity away (what is left
-- is a tombstone, which keeps the identity from coming back with the next event)
-- or the whole row. Days, not times: how long a person was seen is enough.
create table ledger.subject (
  tenant_id  text collate "C" not null,
  pseudonym  text collate "C" not null check (length(pseudonym) = 32),
  identity   bytea check (length(identity) between 1 and 512), -- sealed
  first_seen date,
  last_seen  date,
  erased_at  timestamptz,
  primary key (tenant_id, pseudonym),
  check ((identity is null) = (erased_at is not null))
);
alter table ledger.subject enable row level security;
alter table ledger.subject force row level security;
create policy app on ledger.subject to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
create policy ledger on ledger.subject to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select (tenant_id, pseudonym, last_seen, erased_at), insert, update (last_seen) on ledger.subject to tallystick_ledger;
grant select, delete, insert (tenant_id, pseudonym, erased_at), update (identity, erased_at) on ledger.subject to tallystick_app;

-- Which tag keys a tenant keeps confidential. The edge seals them and asks here;
-- a tenant without a row has none.
create table ledger.confidential (
  tenant_id text collate "C" primary key,
  tag_keys  text[] not null check (cardinality(tag_keys) between 0 and 32 and array_position(tag_keys, null) is null),
  set_at    timestamptz not null default clock_timestamp()
);
alter table ledger.confidential enable row level security;
alter table ledger.confidential force row level security;
create policy app on ledger.confidential to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update on ledger.confidential to tallystick_app;

-- How often any tenant's setting has changed, in one row: an edge that keeps
-- settings in memory asks for this number alone. It tells nothing of any tenant.
create table ledger.confidential_version (
  one     boolean primary key default true check (one),
  version bigint not null
);
insert into ledger.confidential_version (version) values (1);
revoke all on ledger.confidential_version from public;
grant select on ledger.confidential_version to tallystick_app;

-- +goose StatementBegin
create function ledger.count_confidential() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update ledger.confidential_version set version = version + 1;
  return null;
end $$;
-- +goose StatementEnd
revoke all on function ledger.count_confidential() from public;
create trigger count_change after insert or update or delete on ledger.confidential
  for each statement execute function ledger.count_confidential();

-- +goose Down
select 'a ledger is never migrated down'::int;
