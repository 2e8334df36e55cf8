-- Price books that wait for a human's yes, and what a tenant's usage would have
-- cost under one of them.

-- +goose Up

-- Prices of the whole installation: no row is any tenant's. What a candidate says
-- never changes; its state only goes forward (proposed → approved → published, or
-- proposed → rejected).
create table ledger.price_candidate (
  candidate_id uuid primary key,
  version      text not null check (octet_length(version) between 1 and 256),
  content_hash bytea not null check (length(content_hash) = 32),
  content      bytea not null check (octet_length(content) between 1 and 16777216),
  base_hash    bytea not null check (length(base_hash) in (0, 32)), -- of the book in force that it was made of
  note         text not null check (octet_length(note) <= 500),
  proposed_by  text not null check (octet_length(proposed_by) between 1 and 200),
  proposed_at  timestamptz not null default clock_timestamp(),
  state        text not null default 'proposed' check (state in ('proposed', 'approved', 'rejected', 'published')),
  decided_by   text check (octet_length(decided_by) between 1 and 200),
  decided_at   timestamptz,
  reason       text not null default '' check (octet_length(reason) <= 500),
  published_at timestamptz,
  check ((state = 'proposed') = (decided_by is null) and (decided_by is null) = (decided_at is null)),
  check ((state = 'published') = (published_at is not null))
);
-- What was approved is published before the next is approved.
create unique index price_candidate_approved on ledger.price_candidate ((true)) where state = 'approved';
create index price_candidate_proposed_at on ledger.price_candidate (proposed_at);
grant select, insert (candidate_id, version, content_hash, content, base_hash, note, proposed_by) on ledger.price_candidate to tallystick_app;
grant update (state, decided_by, decided_at, reason) on ledger.price_candidate to tallystick_app;
grant select, update (state, published_at) on ledger.price_candidate to tallystick_ledger;
grant select on ledger.price_candidate to tallystick_backup;

-- +goose StatementBegin
create function ledger.keep_price_decision() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if (old.state, new.state) not in (('proposed', 'approved'), ('proposed', 'rejected'), ('approved', 'published')) then
    raise exception 'price candidate %: from % it cannot become %', old.candidate_id, old.state, new.state using errcode = '23514';
  end if;
  if new.state = 'published' and (new.decided_by, new.decided_at, new.reason) is distinct from (old.decided_by, old.decided_at, old.reason) then
    raise exception 'price candidate %: a decision stays', old.candidate_id using errcode = '23514';
  end if;
  return new;
end $$;
-- +goose StatementEnd
revoke all on function ledger.keep_price_decision() from public;
create trigger keep_decision before update on ledger.price_candidate for each row execute function ledger.keep_price_decision();
create trigger never_away before delete or truncate on ledger.price_candidate for each statement execute function ledger.refuse_change();

-- A re-rate job under a candidate only counts and adds up. price_at prices all
-- usage as of one time, null each as of its own. cost_before is what the usage
-- looked at costs in the ledger as far as it has a price; with difference it is
-- what it would cost.
alter table ledger.rerate add column candidate_id uuid references ledger.price_candidate,
  add column price_at timestamptz,
  add column cost_before numeric(38,12) not null default 0,
  add check (candidate_id is null or dry_run), add check (price_at is null or dry_run);
grant insert (candidate_id, price_at) on ledger.rerate to tallystick_app;
grant update (cost_before) on ledger.rerate to tallystick_ledger;

-- +goose Down
select 'a ledger is never migrated down'::int;
