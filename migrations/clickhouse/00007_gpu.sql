-- Time of GPUs: of a usage entry what it accounts for, of a correction the
-- difference, in microseconds of a whole device. Every statement may be run again;
-- the view is changed in place and loaded anew, as in 00005 and 00006.
ALTER TABLE entry
  ADD COLUMN IF NOT EXISTS gpu_us Int64,
  ADD COLUMN IF NOT EXISTS gpu_state LowCardinality(String),
  ADD COLUMN IF NOT EXISTS purchase_option LowCardinality(String);

ALTER TABLE usage_hour ADD COLUMN IF NOT EXISTS sum_gpu_us Int64;

ALTER TABLE usage_hour_view MODIFY QUERY
SELECT
  tenant_id,
  toInt32(intDiv(toUnixTimestamp64Micro(occurred_at), 3600000000)) AS hour,
  provider, model, service_tier, status, team, service, environment,
  countIf(kind = 'usage') AS sum_requests,
  countIf(kind = 'usage' AND status != 'ok') AS sum_failed,
  toInt64(countIf(kind = 'usage' AND cost IS NULL)) + sum(unpriced_delta) AS sum_unpriced,
  toInt64(countIf(estimated)) + sum(estimated_delta) AS sum_estimated,
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
  sum(image_output) AS sum_image_output,
  sum(gpu_us) AS sum_gpu_us
FROM entry
WHERE kind IN ('usage', 'correction')
GROUP BY tenant_id, hour, provider, model, service_tier, status, team, service, environment;

DETACH TABLE IF EXISTS usage_hour_view SYNC;

ATTACH TABLE IF NOT EXISTS usage_hour_view;
