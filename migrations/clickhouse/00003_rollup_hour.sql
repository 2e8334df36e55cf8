-- What the rollup processor found: additive deltas by hour and by value of one
-- dimension.
CREATE TABLE IF NOT EXISTS rollup_hour (
  tenant_id          LowCardinality(String),
  dimension          LowCardinality(String),
  hour               Int32,
  value              String,
  sum_requests       UInt64,
  sum_failed         UInt64,
  sum_unpriced       UInt64,
  sum_estimated      UInt64,
  sum_corrections    UInt64,
  sum_cost           Decimal(38, 12),
  sum_input          UInt64,
  sum_cache_read     UInt64,
  sum_cache_write_5m UInt64,
  sum_cache_write_1h UInt64,
  sum_output         UInt64,
  sum_reasoning      UInt64,
  sum_audio_input    UInt64,
  sum_audio_output   UInt64,
  sum_image_input    UInt64,
  sum_image_output   UInt64
) ENGINE = SummingMergeTree
ORDER BY (tenant_id, dimension, hour, value)
SETTINGS non_replicated_deduplication_window = 1000;
