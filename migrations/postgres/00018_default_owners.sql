-- Default owners: whom reports show a tenant's untagged usage as, when they are
-- asked to (owners.go of internal/mapping). No entry depends on them.

-- +goose Up
-- Each version of a tenant's default owners. At a time, the newest version of
-- those that are in force from then or before counts.
create table mapping.default_owners (
  tenant_id      text collate "C" not null,
  version        bigint not null check (version between 1 and 2147483647),
  content        text not null check (octet_length(content) between 2 and 65536),
  effective_from timestamptz not null,
  created_at     timestamptz not null default clock_timestamp(),
  created_by     text not null check (octet_length(created_by) between 1 and 200),
  primary key (tenant_id, version)
);
alter table mapping.default_owners enable row level security;
alter table mapping.default_owners force row level security;
create policy app on mapping.default_owners to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert (tenant_id, version, content, effective_from, created_by) on mapping.default_owners to tallystick_app;

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant select on mapping.default_owners to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'a ledger is never migrated down'::int;
