-- Where provider keys go, and what bounds the calls made with them (package
-- comment of internal/provider). The keys themselves are secrets (00010).

-- +goose Up
create table access.provider_key (
  tenant_id text collate "C" not null,
  secret_id text collate "C" not null,
  provider  text collate "C" not null check (provider ~ '^[a-z][a-z0-9_-]{0,62}$'),
  base_url  text not null check (length(base_url) <= 1024), -- '' is where the proxy knows the provider to be
  primary key (tenant_id, secret_id),
  foreign key (tenant_id, secret_id) references access.secret (tenant_id, secret_id)
);
alter table access.provider_key enable row level security;
alter table access.provider_key force row level security;
create policy app on access.provider_key to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert on access.provider_key to tallystick_app;

-- What is stopped: all calls of the tenant, of one key, team or model.
create table access.kill_switch (
  tenant_id  text collate "C" not null,
  switch_id  text collate "C" not null check (length(switch_id) between 1 and 64),
  scope      text collate "C" not null check (scope in ('tenant', 'key', 'team', 'model')),
  subject    text collate "C" not null check (octet_length(subject) <= 256 and (scope = 'tenant') = (subject = '')),
  reason     text not null check (octet_length(reason) between 1 and 500),
  created_at timestamptz not null,
  created_by text not null,
  revoked_at timestamptz,
  revoked_by text,
  primary key (tenant_id, switch_id),
  check ((revoked_at is null) = (revoked_by is null))
);
create unique index kill_switch_in_force on access.kill_switch (tenant_id, scope, subject) where revoked_at is null;
alter table access.kill_switch enable row level security;
alter table access.kill_switch force row level security;
create policy app on access.kill_switch to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (revoked_at, revoked_by) on access.kill_switch to tallystick_app;
create trigger keep_revoked before update on access.kill_switch
  for each row execute function access.keep_revoked();

-- How much one key may do in a minute; null is no limit.
create table access.key_limit (
  tenant_id           text collate "C" not null,
  key_id              text collate "C" not null check (length(key_id) between 1 and 64),
  requests_per_minute bigint check (requests_per_minute between 1 and 100000000),
  tokens_per_minute   bigint check (tokens_per_minute between 1 and 100000000),
  set_at              timestamptz not null,
  set_by              text not null,
  primary key (tenant_id, key_id)
);
alter table access.key_limit enable row level security;
alter table access.key_limit force row level security;
create policy app on access.key_limit to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (requests_per_minute, tokens_per_minute, set_at, set_by) on access.key_limit to tallystick_app;

-- What may be spent in a calendar month (UTC); null is no cap any more.
create table access.spend_cap (
  tenant_id text collate "C" not null,
  scope     text collate "C" not null check (scope in ('tenant', 'key', 'team', 'model')),
  subject   text collate "C" not null check (octet_length(subject) <= 256 and (scope = 'tenant') = (subject = '')),
  usd       numeric(38,12) check (usd >= 0),
  set_at    timestamptz not null,
  set_by    text not null,
  primary key (tenant_id, scope, subject)
);
alter table access.spend_cap enable row level security;
alter table access.spend_cap force row level security;
create policy app on access.spend_cap to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (usd, set_at, set_by) on access.spend_cap to tallystick_app;

-- What was spent under a cap. Each process writes its own sum of the month, so
-- that writing it again changes nothing.
create table access.spend (
  tenant_id text collate "C" not null,
  scope     text collate "C" not null,
  subject   text collate "C" not null,
  month     date not null check (extract(day from month) = 1),
  writer    text collate "C" not null check (length(writer) between 1 and 64),
  usd       numeric(38,12) not null check (usd >= 0),
  primary key (tenant_id, scope, subject, month, writer),
  foreign key (tenant_id, scope, subject) references access.spend_cap (tenant_id, scope, subject)
);
alter table access.spend enable row level security;
alter table access.spend force row level security;
create policy app on access.spend to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (usd) on access.spend to tallystick_app;

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant select on access.provider_key, access.kill_switch, access.key_limit, access.spend_cap, access.spend to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'credentials are never migrated down'::int;
