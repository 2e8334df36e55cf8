-- The audit log: who did what, in a chain per tenant (docs/ledger-format.md,
-- "Audit log"). Append-only: no role may change or delete a row, the owner
-- neither. What belongs to no tenant stands in the chain system/0.

-- +goose Up
create schema audit;
revoke all on schema audit from public;
grant usage on schema audit to tallystick_app, tallystick_ledger, tallystick_processors;

-- The end of each chain. Whoever appends holds this row until the end of the
-- transaction, and takes it after every other lock.
create table audit.head (
  tenant_id text collate "C" primary key,
  seq       bigint not null check (seq >= 0),
  chain     bytea not null check (length(chain) = 32)
) with (fillfactor = 50);
alter table audit.head enable row level security;
alter table audit.head force row level security;
create policy app on audit.head to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
create policy ledger on audit.head to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
create policy processors on audit.head to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update on audit.head to tallystick_app, tallystick_ledger, tallystick_processors;

create table audit.event (
  tenant_id text collate "C" not null,
  seq       bigint not null check (seq > 0),
  at        timestamptz not null,
  key_epoch int not null check (key_epoch >= 0),
  canonical bytea not null check (length(canonical) between 3 and 4096),
  chain     bytea not null check (length(chain) = 32),
  mac       bytea not null check (length(mac) = 32),
  primary key (tenant_id, seq)
);
alter table audit.event enable row level security;
alter table audit.event force row level security;
create policy app on audit.event to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
create policy ledger on audit.event to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
create policy processors on audit.event to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert on audit.event to tallystick_app, tallystick_ledger, tallystick_processors;

create trigger append_only before update or delete or truncate on audit.event
  for each statement execute function ledger.refuse_change();

-- The role that steps over tenants (00005) writes why, in the same transaction;
-- it ignores the policies and still may change nothing.
-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_bypass') then
    grant usage on schema audit to tallystick_bypass;
    grant select, insert, update on audit.head to tallystick_bypass;
    grant select, insert on audit.event to tallystick_bypass;
  end if;
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant usage on schema audit to tallystick_backup;
    grant select on audit.head, audit.event to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'an audit log is never migrated down'::int;
