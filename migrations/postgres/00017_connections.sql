-- Connections to what customers own: where Amazon Bedrock's invocation logs lie,
-- and how far they were read (package comment of internal/connections).

-- +goose Up
create schema connection;
revoke all on schema connection from public;
grant usage on schema connection to tallystick_app;

-- No credential stands here: AWS gives us fifteen minutes at a time for role_arn
-- and external_id, which are no secrets.
create table connection.bedrock (
  tenant_id     text collate "C" not null,
  connection_id text collate "C" not null check (length(connection_id) between 1 and 64),
  name          text collate "C" not null check (octet_length(name) between 1 and 200),
  source        text not null check (source in ('s3', 'sqs', 'cloudwatch', 'directory')),
  bucket        text not null check (octet_length(bucket) <= 63),
  prefix        text not null check (octet_length(prefix) <= 1024), -- of keys; a directory's path
  queue         text not null check (octet_length(queue) <= 1024), -- its URL
  log_group     text not null check (octet_length(log_group) <= 512),
  region        text not null check (octet_length(region) <= 64),
  role_arn      text not null check (octet_length(role_arn) <= 2048),
  external_id   text not null check (octet_length(external_id) <= 1224),
  created_at    timestamptz not null,
  created_by    text not null,
  paused        boolean not null default false,
  removed_at    timestamptz,
  removed_by    text,
  -- State. A pass holds a lease; one that is over belongs to nobody.
  lease_owner   uuid,
  lease_until   timestamptz not null default '-infinity',
  due_at        timestamptz not null default '-infinity', -- of the next pass
  polled_at     timestamptz, -- end of the last pass
  succeeded_at  timestamptz, -- end of the last pass without an error
  failures      int not null default 0 check (failures >= 0), -- passes in a row
  failure       text not null default '' check (octet_length(failure) <= 500),
  objects       bigint not null default 0 check (objects >= 0),
  records       bigint not null default 0 check (records >= 0),
  accepted      bigint not null default 0 check (accepted >= 0),
  refused       bigint not null default 0 check (refused >= 0),
  malformed     bigint not null default 0 check (malformed >= 0),
  damaged       bigint not null default 0 check (damaged >= 0), -- objects
  primary key (tenant_id, connection_id),
  check ((removed_at is null) = (removed_by is null))
);
create unique index bedrock_in_force on connection.bedrock (tenant_id, name) where removed_at is null;
alter table connection.bedrock enable row level security;
alter table connection.bedrock force row level security;
create policy app on connection.bedrock to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (paused, removed_at, removed_by, lease_owner, lease_until, due_at, polled_at, succeeded_at, failures, failure,
  objects, records, accepted, refused, malformed, damaged) on connection.bedrock to tallystick_app;

-- How often any tenant's connections have changed, in one row: whoever reads them
-- asks for this number alone, and not every tenant. It tells nothing of any.
create table connection.bedrock_version (
  one     boolean primary key default true check (one),
  version bigint not null
);
insert into connection.bedrock_version (version) values (1);
revoke all on connection.bedrock_version from public;
grant select on connection.bedrock_version to tallystick_app;

-- +goose StatementBegin
create function connection.count_bedrock() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update connection.bedrock_version set version = version + 1;
  return null;
end $$;
-- +goose StatementEnd
revoke all on function connection.count_bedrock() from public;
create trigger count_change after insert or update of paused, removed_at on connection.bedrock
  for each statement execute function connection.count_bedrock();

-- How far each series of a connection was read: a key, or a place in a log
-- stream. What is before it was read or is too old; what is behind it and was
-- read stands in connection.bedrock_object.
create table connection.bedrock_cursor (
  tenant_id     text collate "C" not null,
  connection_id text collate "C" not null,
  series        text collate "C" not null check (octet_length(series) <= 1024),
  position      text collate "C" not null check (octet_length(position) <= 2048),
  primary key (tenant_id, connection_id, series),
  foreign key (tenant_id, connection_id) references connection.bedrock (tenant_id, connection_id)
);
alter table connection.bedrock_cursor enable row level security;
alter table connection.bedrock_cursor force row level security;
create policy app on connection.bedrock_cursor to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (position) on connection.bedrock_cursor to tallystick_app;

create table connection.bedrock_object (
  tenant_id     text collate "C" not null,
  connection_id text collate "C" not null,
  series        text collate "C" not null check (octet_length(series) <= 1024),
  object        text collate "C" not null check (octet_length(object) <= 1024),
  version       text not null check (octet_length(version) <= 200),
  read_at       timestamptz not null,
  primary key (tenant_id, connection_id, series, object),
  foreign key (tenant_id, connection_id) references connection.bedrock (tenant_id, connection_id)
);
alter table connection.bedrock_object enable row level security;
alter table connection.bedrock_object force row level security;
create policy app on connection.bedrock_object to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (version, read_at), delete on connection.bedrock_object to tallystick_app;

-- What a tenant lets its log records say. Without a row: everything that is no text.
create table connection.bedrock_setting (
  tenant_id        text collate "C" not null primary key,
  request_metadata boolean not null,
  changed_at       timestamptz not null,
  changed_by       text not null
);
alter table connection.bedrock_setting enable row level security;
alter table connection.bedrock_setting force row level security;
create policy app on connection.bedrock_setting to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (request_metadata, changed_at, changed_by) on connection.bedrock_setting to tallystick_app;

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant usage on schema connection to tallystick_backup;
    grant select on connection.bedrock, connection.bedrock_cursor, connection.bedrock_object, connection.bedrock_setting, connection.bedrock_version to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
drop schema connection cascade;
