-- What the processor of GPU time keeps (package comment of processors/gputime).

-- +goose Up

-- One row per partition of `telemetry`: how far it is read, and the log's own clock
-- there. The epoch fences an earlier owner. Holds nothing of any tenant.
create table processors.gpu_partition (
  partition   int primary key check (partition >= 0),
  epoch       bigint not null default 0,
  topic_id    uuid not null default '00000000-0000-0000-0000-000000000000',
  next_offset bigint not null default 0 check (next_offset >= 0),
  clock_us    bigint not null default 0 check (clock_us >= 0)
) with (fillfactor = 30);
grant select, insert, update on processors.gpu_partition to tallystick_processors;
grant select on processors.gpu_partition to tallystick_app;

-- Windows of devices: the samples of each, and what was emitted of it, until no
-- sample may change it any more. Changed in the transaction that moves the offset.
create table processors.gpu_window (
  tenant_id   text collate "C" not null,
  gpu         text collate "C" not null check (octet_length(gpu) between 1 and 256),
  start_us    bigint not null,
  end_us      bigint not null check (end_us > start_us),
  dirty_since bigint not null check (dirty_since >= 0), -- the log's clock; 0: all samples are in events
  state       bytea not null check (length(state) between 1 and 67108864),
  primary key (tenant_id, gpu, start_us)
) with (fillfactor = 70);
create index gpu_window_dirty on processors.gpu_window (tenant_id) where dirty_since > 0;
create index gpu_window_end on processors.gpu_window (tenant_id, end_us);
alter table processors.gpu_window enable row level security;
alter table processors.gpu_window force row level security;
create policy processors on processors.gpu_window to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update, delete on processors.gpu_window to tallystick_processors;

-- Events that are to be sent to `events`: recorded with the windows that they are
-- of, deleted when Kafka has them. One that the edge refuses for good stays, with
-- the rule, for an operator to see.
create table processors.gpu_outbox (
  tenant_id  text collate "C" not null,
  event_id   text collate "C" not null check (octet_length(event_id) between 1 and 128),
  at_offset  bigint not null, -- of the record of `telemetry` that was next when it was made
  ordinal    int not null, -- among those of one transaction; both together are the order of sending
  event      bytea not null check (length(event) between 1 and 32768),
  refused    text check (octet_length(refused) between 1 and 200),
  made_at    timestamptz not null default clock_timestamp(),
  primary key (tenant_id, event_id)
);
alter table processors.gpu_outbox enable row level security;
alter table processors.gpu_outbox force row level security;
create policy processors on processors.gpu_outbox to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update (refused), delete on processors.gpu_outbox to tallystick_processors;

-- What became of the samples of each agent: every sample is in one column.
create table processors.gpu_count (
  tenant_id text collate "C" not null,
  agent_id  text collate "C" not null check (octet_length(agent_id) <= 128),
  accounted bigint not null check (accounted >= 0),
  duplicate bigint not null check (duplicate >= 0),
  late      bigint not null check (late >= 0),
  future    bigint not null check (future >= 0),
  malformed bigint not null check (malformed >= 0),
  primary key (tenant_id, agent_id)
) with (fillfactor = 50);
alter table processors.gpu_count enable row level security;
alter table processors.gpu_count force row level security;
create policy app on processors.gpu_count for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy processors on processors.gpu_count to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update on processors.gpu_count to tallystick_processors;
grant select on processors.gpu_count to tallystick_app;

-- +goose Down
select 'checkpoints are never migrated down'::int;
