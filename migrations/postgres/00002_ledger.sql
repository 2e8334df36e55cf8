-- The ledger (docs/ledger-format.md). Append-only: no role may update or delete
-- an entry or a key.

-- +goose Up
create schema ledger;
revoke all on schema ledger from public;
grant usage on schema ledger to tallystick_app, tallystick_ledger, tallystick_processors;

-- One row per partition of the topic `events`: the fence and the place in the
-- log. Holds nothing of any tenant.
create table ledger.partition (
  partition       int primary key check (partition >= 0),
  topic_id        uuid not null,
  partitions      int not null check (partitions > partition),
  epoch           bigint not null check (epoch > 0),
  next_offset     bigint not null check (next_offset >= 0),
  last_batch      bigint not null default 0 check (last_batch >= 0),
  published_batch bigint not null default 0 check (published_batch >= 0 and published_batch <= last_batch)
);
grant select, insert, update on ledger.partition to tallystick_ledger;
grant select on ledger.partition to tallystick_app, tallystick_processors;

-- Global control records with their full content, by position. Price books and
-- rule versions are the same for all tenants.
create table ledger.control (
  partition    int not null references ledger.partition,
  kafka_offset bigint not null,
  kind         text not null,
  version      text not null,
  content_hash bytea not null check (length(content_hash) = 32),
  content      bytea not null,
  issued_at    bigint not null, -- unix nanoseconds, as in the record
  primary key (partition, kafka_offset)
);
grant select, insert on ledger.control to tallystick_ledger;
grant select on ledger.control to tallystick_app, tallystick_processors;

-- One row per commit of the writer. It orders publication, and it is the exact
-- range that a planned ClickHouse batch names. Tenants stand here with numbers
-- only; the three arrays belong together.
create table ledger.batch (
  partition    int not null references ledger.partition,
  batch        bigint not null check (batch > 0),
  first_offset bigint not null,
  next_offset  bigint not null,
  tenants      text[] not null,
  first_seqs   bigint[] not null,
  counts       int[] not null,
  committed_at timestamptz not null default clock_timestamp(),
  primary key (partition, batch),
  check (cardinality(tenants) = cardinality(first_seqs) and cardinality(tenants) = cardinality(counts))
);
grant select, insert on ledger.batch to tallystick_ledger;
grant select on ledger.batch to tallystick_app, tallystick_processors;

-- The end of each tenant's chain. The row exists from the tenant's first key
-- epoch on; a tenant without one is unknown to the ledger.
create table ledger.head (
  tenant_id   text collate "C" primary key,
  partition   int not null,
  seq         bigint not null check (seq >= 0),
  chain       bytea not null check (length(chain) = 32),
  key_epoch   int not null check (key_epoch >= 0),
  price_book  bytea check (length(price_book) = 32),
  received_at timestamptz not null
) with (fillfactor = 50);
alter table ledger.head enable row level security;
alter table ledger.head force row level security;
create policy app on ledger.head for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy processors on ledger.head for select to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants())));
create policy ledger on ledger.head to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update on ledger.head to tallystick_ledger;
grant select on ledger.head to tallystick_app, tallystick_processors;

-- Entries. The parent is what everybody reads, under forced RLS. The leaf is
-- what the writer COPYs into: it has no policy, because COPY is refused under
-- one, nobody holds any privilege on it but the writer's INSERT, and a
-- statement trigger holds every row against the signed set of tenants.
create table ledger.entry (
  tenant_id   text collate "C" not null,
  seq         bigint not null,
  kind        smallint not null,
  key_epoch   int not null,
  occurred_at timestamptz,
  cost_usd    numeric(38,12),
  canonical   bytea not null,
  chain       bytea not null,
  mac         bytea not null,
  primary key (tenant_id, seq)
) partition by range (tenant_id);
-- One leaf for all: as the only one and the default it costs no check per row.
create table ledger.entry_0 partition of ledger.entry default;
-- Rows are only ever added: vacuuming a growing table again and again finds nothing.
alter table ledger.entry_0 set (autovacuum_vacuum_insert_threshold = 1000000, autovacuum_vacuum_insert_scale_factor = 0.5,
  autovacuum_analyze_threshold = 200000, autovacuum_analyze_scale_factor = 0.5);
alter table ledger.entry enable row level security;
alter table ledger.entry force row level security;
create policy app on ledger.entry for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy processors on ledger.entry for select to tallystick_processors
  using (tenant_id in (select unnest(sec.tenants())));
create policy ledger on ledger.entry for select to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants())));
create trigger check_tenants after insert on ledger.entry_0
  referencing new table as inserted for each statement execute function sec.check_inserted();
grant select on ledger.entry to tallystick_app, tallystick_ledger, tallystick_processors;
grant insert on ledger.entry_0 to tallystick_ledger;

-- Ids for ever: what an event is deduplicated by, with the first 16 bytes of
-- its content MAC, kept until the tenant is deleted.
create table ledger.event_key (
  tenant_id text collate "C" not null,
  key       uuid not null,
  content   uuid not null,
  seq       bigint not null,
  primary key (tenant_id, key)
) partition by range (tenant_id);
create table ledger.event_key_0 partition of ledger.event_key default;
alter table ledger.event_key_0 set (autovacuum_vacuum_insert_threshold = 1000000, autovacuum_vacuum_insert_scale_factor = 0.5,
  autovacuum_analyze_threshold = 200000, autovacuum_analyze_scale_factor = 0.5);
alter table ledger.event_key enable row level security;
alter table ledger.event_key force row level security;
create policy app on ledger.event_key for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy ledger on ledger.event_key for select to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants())));
create trigger check_tenants after insert on ledger.event_key_0
  referencing new table as inserted for each statement execute function sec.check_inserted();
grant select on ledger.event_key to tallystick_app, tallystick_ledger;
grant insert on ledger.event_key_0 to tallystick_ledger;

-- What the writer counted per producer, in the same transactions as the offsets.
create table ledger.counter (
  tenant_id   text collate "C" not null,
  producer_id text collate "C" not null,
  partition   int not null,
  duplicates  bigint not null default 0,
  conflicts   bigint not null default 0,
  rejected    bigint not null default 0,
  primary key (tenant_id, producer_id)
);
alter table ledger.counter enable row level security;
alter table ledger.counter force row level security;
create policy app on ledger.counter for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy ledger on ledger.counter to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert, update on ledger.counter to tallystick_ledger;
grant select on ledger.counter to tallystick_app;

-- +goose Down
select 'a ledger is never migrated down'::int;
