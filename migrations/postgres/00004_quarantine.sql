-- Records that an operator has turned into rejections, because the database
-- refused what they would have become (docs/operations.md).

-- +goose Up

-- One row per decision, kept for ever: a replay of the log reads it again and
-- decides alike. It holds nothing of any tenant but a place in the log. The
-- writer reads it; only the owner adds to it.
create table ledger.quarantine (
  partition      int not null references ledger.partition,
  kafka_offset   bigint not null check (kafka_offset >= 0),
  reason         text not null check (length(reason) between 1 and 500),
  operator       text not null check (length(operator) between 1 and 200),
  db_user        text not null default session_user,
  quarantined_at timestamptz not null default clock_timestamp(),
  primary key (partition, kafka_offset)
);
grant select on ledger.quarantine to tallystick_ledger, tallystick_app;

-- +goose StatementBegin
create function ledger.refuse_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception '% on %.%: a decision that was acted on is never changed', tg_op, tg_table_schema, tg_table_name
    using errcode = '42501';
end $$;
-- +goose StatementEnd
revoke all on function ledger.refuse_change() from public;
create trigger append_only before update or delete or truncate on ledger.quarantine
  for each statement execute function ledger.refuse_change();

-- +goose Down
select 'a ledger is never migrated down'::int;
