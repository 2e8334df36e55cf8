-- What the processors keep: how far ClickHouse is, and states (docs/architecture.md,
-- hops 5 and 6).

-- +goose Up
create schema processors;
revoke all on schema processors from public;
grant usage on schema processors to tallystick_app, tallystick_processors;

-- One row per partition: the last stored commit, and the plan that is open. A
-- row has room for one plan, so no partition can have two. Holds nothing of any
-- tenant.
create table processors.checkpoint (
  partition      int primary key check (partition >= 0),
  commit         bigint not null default 0 check (commit >= 0),
  filled         bigint not null default 0 check (filled >= 0 and filled <= commit),
  topic_id       uuid not null default '00000000-0000-0000-0000-000000000000',
  next_offset    bigint not null default 0 check (next_offset >= 0),
  plan           uuid,
  planned_at     timestamptz,
  planned_commit bigint check (planned_commit > commit),
  planned_filled bigint,
  planned_topic  uuid,
  planned_offset bigint,
  check ((plan is null) = (planned_commit is null) and (plan is null) = (planned_filled is null)
     and (plan is null) = (planned_topic is null) and (plan is null) = (planned_offset is null))
) with (fillfactor = 30);
grant select, insert, update on processors.checkpoint to tallystick_processors;
grant select on processors.checkpoint to tallystick_app;

-- How far each tenant's chain is in ClickHouse. It moves in the transaction
-- that confirms the plan, so a report never claims more than is stored.
create table processors.coverage (
  tenant_id   text collate "C" primary key,
  partition   int not null,
  seq         bigint not null check (seq > 0),
  chain       bytea not null check (length(chain) = 32),
  received_at bigint not null -- unix nanoseconds
) with (fillfactor = 50);
alter table processors.coverage enable row level security;
alter table processors.coverage force row level security;
create policy app on processors.coverage for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy processors on processors.coverage to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update, delete on processors.coverage to tallystick_processors;
grant select on processors.coverage to tallystick_app;

-- The newest state of each processor in each partition. A state holds sums of
-- many tenants, so it belongs to the partition's reserved tenant, whose context
-- no request can enter, and no other role reads it.
create table processors.snapshot (
  tenant_id text collate "C" not null,
  processor text collate "C" not null,
  partition int not null,
  version   int not null,
  commit    bigint not null,
  taken_at  timestamptz not null default clock_timestamp(),
  state     bytea not null check (length(state) <= 67108864),
  primary key (partition, processor),
  check (tenant_id = 'system/' || partition)
);
alter table processors.snapshot enable row level security;
alter table processors.snapshot force row level security;
create policy processors on processors.snapshot to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update on processors.snapshot to tallystick_processors;

-- +goose Down
select 'checkpoints are never migrated down'::int;
