-- API tokens and secrets (package comments of internal/authn and
-- internal/secrets).

-- +goose Up
create schema access;
revoke all on schema access from public;
grant usage on schema access to tallystick_app;

-- Of a token only the digest is kept: SHA-256 of a text with 256 random bits.
-- A token names its tenant, so it is looked up in that tenant's context.
create table access.token (
  tenant_id  text collate "C" not null,
  token_id   text collate "C" not null check (length(token_id) between 1 and 64),
  digest     bytea not null check (length(digest) = 32),
  name       text not null check (octet_length(name) between 1 and 200),
  scopes     text[] not null check (cardinality(scopes) between 1 and 16),
  created_at timestamptz not null,
  created_by text not null,
  expires_at timestamptz not null check (expires_at > created_at),
  revoked_at timestamptz,
  revoked_by text,
  primary key (tenant_id, token_id),
  unique (tenant_id, digest),
  check ((revoked_at is null) = (revoked_by is null))
);
alter table access.token enable row level security;
alter table access.token force row level security;
create policy app on access.token to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (revoked_at, revoked_by) on access.token to tallystick_app;

-- What was revoked stays revoked.
-- +goose StatementBegin
create function access.keep_revoked() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if old.revoked_at is not null then
    raise exception 'revoked is revoked' using errcode = '42501';
  end if;
  return new;
end $$;
-- +goose StatementEnd
revoke all on function access.keep_revoked() from public;
create trigger keep_revoked before update on access.token
  for each row execute function access.keep_revoked();

-- What a tenant has given us to keep: provider keys, webhook addresses, cloud
-- credentials. prefix and last4 are what is shown of the value.
create table access.secret (
  tenant_id  text collate "C" not null,
  secret_id  text collate "C" not null check (length(secret_id) between 1 and 64),
  kind       text collate "C" not null check (kind ~ '^[a-z][a-z0-9_]{0,62}$'),
  name       text collate "C" not null check (octet_length(name) between 1 and 200),
  created_at timestamptz not null,
  created_by text not null,
  rotate_by  timestamptz not null,
  revoked_at timestamptz,
  revoked_by text,
  primary key (tenant_id, secret_id),
  check ((revoked_at is null) = (revoked_by is null))
);
create unique index secret_in_force on access.secret (tenant_id, kind, name) where revoked_at is null;
alter table access.secret enable row level security;
alter table access.secret force row level security;
create policy app on access.secret to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (rotate_by, revoked_at, revoked_by) on access.secret to tallystick_app;
create trigger keep_revoked before update on access.secret
  for each row execute function access.keep_revoked();

-- Its values, sealed under a subkey of the tenant's sealing root with the row as
-- additional data. Two are live for a day after a rotation; the value of one
-- that is not live is taken out.
create table access.secret_version (
  tenant_id  text collate "C" not null,
  secret_id  text collate "C" not null,
  version    int not null check (version > 0),
  sealed     bytea check (length(sealed) between 1 and 70000),
  prefix     text not null check (octet_length(prefix) <= 16),
  last4      text not null check (octet_length(last4) <= 16),
  created_at timestamptz not null,
  created_by text not null,
  live_until timestamptz, -- null for the newest
  primary key (tenant_id, secret_id, version),
  foreign key (tenant_id, secret_id) references access.secret (tenant_id, secret_id)
);
alter table access.secret_version enable row level security;
alter table access.secret_version force row level security;
create policy app on access.secret_version to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (sealed, live_until) on access.secret_version to tallystick_app;

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant usage on schema access to tallystick_backup;
    grant select on access.token, access.secret, access.secret_version to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'credentials are never migrated down'::int;
