-- Signed checkpoints of each tenant's logs, and the RFC 6962 trees under them
-- (docs/ledger-format.md, "Checkpoints and proofs"). Rows are only ever added:
-- no role may update or delete any.

-- +goose Up

-- Full tiles of 256 hashes: tile i of level l holds the nodes of tree level 8·l
-- with the numbers 256·i to 256·i+255. root is the node above all of them, so
-- that the right edge of the next level can be read without the hashes.
create table ledger.tree_tile (
  tenant_id text collate "C" not null,
  log       text collate "C" not null check (log in ('ledger', 'audit')),
  level     smallint not null check (level between 0 and 7),
  index     bigint not null check (index >= 0),
  root      bytea not null check (length(root) = 32),
  hashes    bytea not null check (length(hashes) = 8192),
  primary key (tenant_id, log, level, index)
);
-- Hashes do not compress, and a part of a value is read without the rest.
alter table ledger.tree_tile alter column hashes set storage external;

-- One row per signed checkpoint. chain is the chain hash of entry `size`, from
-- which the next leaves are read on; note is the signed note as published.
create table ledger.checkpoint (
  tenant_id text collate "C" not null,
  log       text collate "C" not null check (log in ('ledger', 'audit')),
  size      bigint not null check (size > 0),
  root      bytea not null check (length(root) = 32),
  chain     bytea not null check (length(chain) = 32),
  note      text not null check (length(note) between 1 and 65536),
  signed_at timestamptz not null default clock_timestamp(),
  primary key (tenant_id, log, size)
);

-- What witnesses answered: their signature lines.
create table ledger.cosignature (
  tenant_id   text collate "C" not null,
  log         text collate "C" not null,
  size        bigint not null,
  witness     text collate "C" not null check (length(witness) between 1 and 500),
  line        text not null check (length(line) between 1 and 4000),
  received_at timestamptz not null default clock_timestamp(),
  primary key (tenant_id, log, size, witness),
  foreign key (tenant_id, log, size) references ledger.checkpoint (tenant_id, log, size)
);

-- The public keys that checkpoints were ever signed with, each in a statement
-- signed by itself and by the key before it.
create table ledger.signing_key (
  tenant_id text collate "C" not null,
  log       text collate "C" not null check (log in ('ledger', 'audit')),
  epoch     bigint not null check (epoch > 0),
  vkey      text not null check (length(vkey) between 1 and 1000),
  statement text not null check (length(statement) between 1 and 65536),
  stated_at timestamptz not null default clock_timestamp(),
  primary key (tenant_id, log, epoch)
);

-- +goose StatementBegin
do $$
declare t text;
begin
  foreach t in array array['tree_tile', 'checkpoint', 'cosignature', 'signing_key'] loop
    execute format('alter table ledger.%I enable row level security', t);
    execute format('alter table ledger.%I force row level security', t);
    execute format('create policy app on ledger.%I for select to tallystick_app using (tenant_id = (select sec.tenant()))', t);
    execute format('create policy ledger_read on ledger.%I for select to tallystick_ledger
      using (tenant_id in (select unnest(sec.tenants())))', t);
    execute format('create policy ledger_add on ledger.%I for insert to tallystick_ledger
      with check (tenant_id in (select unnest(sec.tenants())))', t);
    execute format('grant select on ledger.%I to tallystick_app, tallystick_bypass, tallystick_backup', t);
    execute format('grant select, insert on ledger.%I to tallystick_ledger', t);
  end loop;
end $$;
-- +goose StatementEnd

-- A partition that is being replayed to a published checkpoint after a restore
-- (recovery). Holds nothing of any tenant. While a row has no ended_at, nothing
-- of the partition is published or served.
create table ledger.recovery (
  partition  int not null references ledger.partition,
  epoch      bigint not null,
  reason     text not null,
  started_at timestamptz not null default clock_timestamp(),
  ended_at   timestamptz,
  primary key (partition, epoch)
);
grant select, insert, update on ledger.recovery to tallystick_ledger;
grant select on ledger.recovery to tallystick_app, tallystick_processors, tallystick_bypass, tallystick_backup;

-- +goose Down
select 'checkpoints are never migrated down'::int;
