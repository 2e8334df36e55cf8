-- GPU agents (package comments of internal/agentauth and ingest/agent).

-- +goose Up
create schema agent;
revoke all on schema agent from public;
grant usage on schema agent to tallystick_app;

-- An agent. Its secret is derived and stands nowhere; an id is never used again.
create table agent.credential (
  tenant_id  text collate "C" not null,
  agent_id   text collate "C" not null check (agent_id ~ '^[a-z0-9_-]{1,64}$'),
  name       text not null check (octet_length(name) between 1 and 200),
  created_at timestamptz not null,
  created_by text not null,
  issued_at  timestamptz not null, -- when its secret was last shown
  revoked_at timestamptz,
  revoked_by text,
  primary key (tenant_id, agent_id),
  check ((revoked_at is null) = (revoked_by is null))
);
create index credential_revoked on agent.credential (tenant_id, revoked_at) where revoked_at is not null;
alter table agent.credential enable row level security;
alter table agent.credential force row level security;
create policy app on agent.credential to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (issued_at, revoked_at, revoked_by) on agent.credential to tallystick_app;
create trigger keep_revoked before update on agent.credential
  for each row execute function access.keep_revoked();

-- How often any agent was revoked, in one row: a gateway asks for this number
-- alone. It tells nothing of any tenant.
create table agent.revocations (
  one     boolean primary key default true check (one),
  version bigint not null
);
insert into agent.revocations (version) values (1);
revoke all on agent.revocations from public;
grant select on agent.revocations to tallystick_app;

-- +goose StatementBegin
create function agent.count_revoked() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update agent.revocations set version = version + 1;
  return null;
end $$;
-- +goose StatementEnd
revoke all on function agent.count_revoked() from public;
create trigger count_revoked after update of revoked_at on agent.credential
  for each statement execute function agent.count_revoked();

-- Nonces of requests without a stream, kept longer than a clock lets one pass.
create table agent.nonce (
  tenant_id text collate "C" not null,
  agent_id  text collate "C" not null,
  nonce     bytea not null check (length(nonce) between 16 and 64),
  seen_at   timestamptz not null default now(),
  primary key (tenant_id, agent_id, nonce),
  foreign key (tenant_id, agent_id) references agent.credential (tenant_id, agent_id)
);
create index nonce_age on agent.nonce (tenant_id, seen_at);
alter table agent.nonce enable row level security;
alter table agent.nonce force row level security;
create policy app on agent.nonce to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, delete on agent.nonce to tallystick_app;

-- What an agent says of an epoch of its own, in its last heartbeat, and through
-- which frame a gateway saw Kafka acknowledge it. Counts are cumulative.
create table agent.producer (
  tenant_id       text collate "C" not null,
  agent_id        text collate "C" not null,
  epoch           bigint not null check (epoch > 0),
  acked_seq       bigint not null default 0 check (acked_seq >= 0),
  emitted_samples bigint not null default 0 check (emitted_samples >= 0),
  emitted_frames  bigint not null default 0 check (emitted_frames >= 0),
  acked_samples   bigint not null default 0 check (acked_samples >= 0),
  acked_frames    bigint not null default 0 check (acked_frames >= 0),
  lost_samples    jsonb not null default '{}',
  spooled_frames  bigint not null default 0 check (spooled_frames >= 0),
  spooled_bytes   bigint not null default 0 check (spooled_bytes >= 0),
  refused_frames  bigint not null default 0 check (refused_frames >= 0),
  reconnects      bigint not null default 0 check (reconnects >= 0),
  sent_at         timestamptz, -- by the agent's clock; null before the first heartbeat
  reported_at     timestamptz, -- by the gateway's
  updated_at      timestamptz not null default now(),
  primary key (tenant_id, agent_id, epoch),
  foreign key (tenant_id, agent_id) references agent.credential (tenant_id, agent_id)
);
alter table agent.producer enable row level security;
alter table agent.producer force row level security;
create policy app on agent.producer to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (acked_seq, emitted_samples, emitted_frames, acked_samples, acked_frames, lost_samples,
  spooled_frames, spooled_bytes, refused_frames, reconnects, sent_at, reported_at, updated_at) on agent.producer to tallystick_app;

-- What one run of a gateway has counted of an agent's epoch. Counts are
-- cumulative for the run, so that writing them again changes nothing.
create table agent.received (
  tenant_id       text collate "C" not null,
  agent_id        text collate "C" not null,
  epoch           bigint not null check (epoch > 0),
  gateway_id      text collate "C" not null check (octet_length(gateway_id) between 1 and 128),
  gateway_epoch   bigint not null check (gateway_epoch > 0),
  accepted_frames  bigint not null check (accepted_frames >= 0),
  accepted_samples bigint not null check (accepted_samples >= 0),
  duplicate_frames bigint not null check (duplicate_frames >= 0),
  refused_samples  jsonb not null default '{}', -- by reason; they never come again
  delayed_frames   jsonb not null default '{}', -- by reason; they come again
  updated_at      timestamptz not null default now(),
  primary key (tenant_id, agent_id, epoch, gateway_id, gateway_epoch),
  foreign key (tenant_id, agent_id) references agent.credential (tenant_id, agent_id)
);
alter table agent.received enable row level security;
alter table agent.received force row level security;
create policy app on agent.received to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (accepted_frames, accepted_samples, duplicate_frames, refused_samples, delayed_frames, updated_at) on agent.received to tallystick_app;

-- The newest inventory of an agent: an Inventory message of telemetry.proto.
create table agent.inventory (
  tenant_id   text collate "C" not null,
  agent_id    text collate "C" not null,
  taken_at    timestamptz not null,
  received_at timestamptz not null,
  content     bytea not null check (length(content) <= 1048576),
  primary key (tenant_id, agent_id),
  foreign key (tenant_id, agent_id) references agent.credential (tenant_id, agent_id)
);
alter table agent.inventory enable row level security;
alter table agent.inventory force row level security;
create policy app on agent.inventory to tallystick_app
  using (tenant_id = (select sec.tenant())) with check (tenant_id = (select sec.tenant()));
grant select, insert, update (taken_at, received_at, content) on agent.inventory to tallystick_app;

-- When peppers were first the newest one, by a fingerprint that tells nothing of
-- them: 24 hours later the one before is worth nothing.
create table agent.pepper (
  fingerprint bytea primary key check (length(fingerprint) = 16),
  first_seen  timestamptz not null default now()
);
grant select, insert on agent.pepper to tallystick_app;

-- +goose StatementBegin
do $$
begin
  if exists (select from pg_roles where rolname = 'tallystick_backup') then
    grant usage on schema agent to tallystick_backup;
    grant select on agent.credential, agent.nonce, agent.producer, agent.received, agent.inventory, agent.pepper, agent.revocations to tallystick_backup;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'credentials are never migrated down'::int;
