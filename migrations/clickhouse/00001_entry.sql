-- One row per ledger entry of every kind. Rows come by planned batches under a
-- deduplication token, so the window below is what makes an insert repeatable.
--
-- Sorted by tenant first, then kind: reports read the usage and corrections of
-- one tenant in order of time, and the few rejections stand together.
--
-- No PARTITION BY, on purpose. Times come from producers: late, replayed or
-- forged ones would make an insert several parts (each with its own sync and
-- token) and, beyond max_partitions_per_insert_block, would halt the pipeline.
-- Retention is per tenant, so no month could be dropped as a whole anyway.
CREATE TABLE IF NOT EXISTS entry (
  tenant_id        LowCardinality(String),
  seq              UInt64 CODEC(Delta, LZ4),
  kind             Enum8('usage' = 1, 'rejected' = 2, 'correction' = 3, 'control' = 4, 'counters' = 5, 'declared_loss' = 6),
  ledger_partition Int32,
  ledger_commit    Int64 CODEC(Delta, LZ4),
  -- received_at for kinds that occurred nowhere.
  occurred_at      DateTime64(6, 'UTC') CODEC(Delta, LZ4),
  received_at      DateTime64(6, 'UTC') CODEC(Delta, LZ4),
  -- The key that the event id is deduplicated by; zero where there is no id.
  event_key        FixedString(16),
  -- Of a conflict, the first eight bytes of its content MAC; else zero.
  content          UInt64,
  producer_id      LowCardinality(String),

  provider         LowCardinality(String),
  model            LowCardinality(String),
  operation        LowCardinality(String),
  region           LowCardinality(String),
  service_tier     LowCardinality(String),
  status           LowCardinality(String),
  team             LowCardinality(String),
  service          LowCardinality(String),
  feature          LowCardinality(String),
  agent            LowCardinality(String),
  environment      LowCardinality(String),
  user_pseudonym   String,
  end_customer     String,
  tags             Map(LowCardinality(String), String),

  -- Null is unpriced, or a kind that has no cost. Never 0 for unknown.
  cost             Nullable(Decimal(38, 12)),
  unpriced_reason  LowCardinality(String),
  price_row        LowCardinality(String),
  latency_us       UInt64,
  ttft_us          UInt64,
  streamed         Bool,
  -- Of usage only. A correction nets money; its counts stand with the original.
  estimated        Bool,
  input            UInt64,
  cache_read       UInt64,
  cache_write_5m   UInt64,
  cache_write_1h   UInt64,
  output           UInt64,
  reasoning        UInt64,
  audio_input      UInt64,
  audio_output     UInt64,
  image_input      UInt64,
  image_output     UInt64,

  reject_reason    LowCardinality(String),
  -- Of kind counters: what the edge instance had counted since its start.
  edge_id          LowCardinality(String),
  edge_epoch       Int64,
  accepted         Int64,
  refused          Int64
) ENGINE = MergeTree
ORDER BY (tenant_id, kind, occurred_at)
SETTINGS non_replicated_deduplication_window = 1000;
