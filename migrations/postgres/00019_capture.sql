-- What of its calls a tenant lets the metering proxy keep (capture.go of
-- internal/provider). No row: nothing.

-- +goose Up
create table access.capture (
  tenant_id      text collate "C" not null primary key,
  prompt_digests boolean not null, -- keyed digests of prompts, in the tags of a call's entry
  set_at         timestamptz not null,
  set_by         text not null
);
alter table access.capture enable row level security;
alter table access.capture force row level security;
create policy app on access.capture to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (prompt_digests, set_at, set_by) on access.capture to tallystick_app;

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant select on access.capture to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'settings are never migrated down'::int;
