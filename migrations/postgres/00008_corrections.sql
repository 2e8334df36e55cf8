-- Corrections: which entries net which, and the jobs that price entries anew.

-- +goose Up

-- Which entries correct which: the writer finds the newest correction of an
-- original by it. A projection of the entries of kind correction, written in
-- their transaction.
create table ledger.correction (
  tenant_id text collate "C" not null,
  corrects  bigint not null check (corrects > 0), -- number of the original
  seq       bigint not null check (seq > corrects), -- of the correction
  primary key (tenant_id, corrects, seq)
);
alter table ledger.correction enable row level security;
alter table ledger.correction force row level security;
create policy app on ledger.correction for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy ledger_read on ledger.correction for select to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants())));
create policy ledger_add on ledger.correction for insert to tallystick_ledger
  with check (tenant_id in (select unnest(sec.tenants())));
grant select, insert on ledger.correction to tallystick_ledger;
grant select on ledger.correction to tallystick_app, tallystick_bypass;
create trigger append_only before update or delete or truncate on ledger.correction
  for each statement execute function ledger.refuse_change();

-- Jobs that price a tenant's entries anew. One that was interrupted goes on from
-- its cursor once its lease is over.
create table ledger.rerate (
  tenant_id   text collate "C" not null,
  job_id      uuid not null,
  from_time   timestamptz not null,
  to_time     timestamptz not null check (to_time > from_time),
  dry_run     boolean not null,
  asked_by    text not null check (length(asked_by) between 1 and 200),
  asked_at    timestamptz not null default clock_timestamp(), -- knowledge time of the new prices
  state       text not null default 'running' check (state in ('running', 'done', 'failed')),
  failure     text not null default '' check (length(failure) <= 500),
  last_seq    bigint not null default 0 check (last_seq >= 0), -- the head at the first lease: the end
  cursor_seq  bigint not null default 0 check (cursor_seq between 0 and last_seq), -- entries up to it are done
  planned_seq bigint not null default 0 check (planned_seq between 0 and last_seq), -- what follows is of the entries up to it
  looked_at   bigint not null default 0 check (looked_at >= 0), -- usage entries in the time range
  changed     bigint not null default 0 check (changed >= 0), -- of them, whose price differs
  difference  numeric(38,12) not null default 0, -- what all the prices change by, USD
  lease_owner uuid,
  lease_until timestamptz not null default '-infinity',
  finished_at timestamptz,
  primary key (tenant_id, job_id)
);
-- One at a time: two would correct the same entries.
create unique index rerate_running on ledger.rerate (tenant_id) where state = 'running';
alter table ledger.rerate enable row level security;
alter table ledger.rerate force row level security;
create policy app on ledger.rerate for select to tallystick_app using (tenant_id = (select sec.tenant()));
create policy app_add on ledger.rerate for insert to tallystick_app with check (tenant_id = (select sec.tenant()));
create policy ledger on ledger.rerate to tallystick_ledger
  using (tenant_id in (select unnest(sec.tenants()))) with check (tenant_id in (select unnest(sec.tenants())));
grant select on ledger.rerate to tallystick_app, tallystick_ledger, tallystick_bypass;
grant insert (tenant_id, job_id, from_time, to_time, dry_run, asked_by) on ledger.rerate to tallystick_app;
grant update (state, failure, last_seq, cursor_seq, planned_seq, looked_at, changed, difference, lease_owner, lease_until, finished_at)
  on ledger.rerate to tallystick_ledger;

-- +goose Down
select 'a ledger is never migrated down'::int;
