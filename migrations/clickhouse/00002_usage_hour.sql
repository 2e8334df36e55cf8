-- What the usual report asks for, by hour: far fewer rows than entries. The
-- names begin with sum_ so that no alias of a query hides a column.
--
-- hour counts hours since 1970 in UTC: DateTime would wrap for a forged time.
CREATE TABLE IF NOT EXISTS usage_hour (
  tenant_id          LowCardinality(String),
  hour               Int32,
  provider           LowCardinality(String),
  model              LowCardinality(String),
  service_tier       LowCardinality(String),
  status             LowCardinality(String),
  team               LowCardinality(String),
  service            LowCardinality(String),
  environment        LowCardinality(String),
  sum_requests       UInt64,
  sum_failed         UInt64,
  sum_unpriced       UInt64,
  sum_estimated      UInt64,
  sum_corrections    UInt64,
  -- Of priced entries only.
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
ORDER BY (tenant_id, hour, provider, model, service_tier, status, team, service, environment)
SETTINGS non_replicated_deduplication_window = 1000;

-- A correction adds its money to the hour of the entry that it corrects, and
-- neither requests nor tokens: its row has none, they count with the original.
CREATE MATERIALIZED VIEW IF NOT EXISTS usage_hour_view TO usage_hour AS
SELECT
  tenant_id,
  toInt32(intDiv(toUnixTimestamp64Micro(occurred_at), 3600000000)) AS hour,
  provider, model, service_tier, status, team, service, environment,
  countIf(kind = 'usage') AS sum_requests,
  countIf(kind = 'usage' AND status != 'ok') AS sum_failed,
  countIf(kind = 'usage' AND cost IS NULL) AS sum_unpriced,
  countIf(estimated) AS sum_estimated,
  countIf(kind = 'correction') AS sum_corrections,
  sum(ifNull(cost, toDecimal128(0, 12))) AS sum_cost,
  sum(input) AS sum_input,
  sum(cache_read) AS sum_cache_read,
  sum(cache_write_5m) AS sum_cache_write_5m,
  sum(cache_write_1h) AS sum_cache_write_1h,
  sum(output) AS sum_output,
  sum(reasoning) AS sum_reasoning,
  sum(audio_input) AS sum_audio_input,
  sum(audio_output) AS sum_audio_output,
  sum(image_input) AS sum_image_input,
  sum(image_output) AS sum_image_output
FROM entry
WHERE kind IN ('usage', 'correction')
GROUP BY tenant_id, hour, provider, model, service_tier, status, team, service, environment;
