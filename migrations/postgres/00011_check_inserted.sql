-- The statement trigger of tables that COPY writes to, with a hashed look-up: a
-- comparison with each tenant of the set cost a batch of 10,000 rows and 2,000
-- tenants twenty million of them. What is refused, and with which error, is as
-- it was (00001_tenant_context.sql).

-- +goose Up
-- +goose StatementBegin
create or replace function sec.check_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  allowed text[] := sec.tenants();
begin
  if exists (select from inserted where tenant_id not in (select unnest(allowed))) then
    raise exception 'tenant context: a row of %.% belongs to no tenant of the transaction', tg_table_schema, tg_table_name
      using errcode = '42501';
  end if;
  return null;
end $$;
-- +goose StatementEnd

-- +goose Down
select 'a tenant check is never migrated down'::int;
