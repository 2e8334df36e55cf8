-- Time of GPUs that samples were sent for and that is in no event, by agent: what
-- processors/gputime counts beside the samples that it refuses.

-- +goose Up
alter table processors.gpu_count
  add column without_time bigint not null default 0 check (without_time >= 0), -- accounted, and stood for no time
  add column clipped_us   bigint not null default 0 check (clipped_us >= 0);   -- beyond gputime.max_gap_seconds

-- +goose Down
select 'checkpoints are never migrated down'::int;
