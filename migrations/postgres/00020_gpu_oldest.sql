-- To which end samples of GPUs are refused, because the windows that they would be of
-- may be forgotten (processors/gputime, Core.Oldest). It is kept, so that a longer
-- horizon opens none of them again: its events would have ids that there are.

-- +goose Up
alter table processors.gpu_partition add column oldest_us bigint not null default 0 check (oldest_us >= 0);
-- The horizon was 48 hours.
update processors.gpu_partition set oldest_us = greatest(0, clock_us - 172800000000);

-- +goose Down
select 'checkpoints are never migrated down'::int;
