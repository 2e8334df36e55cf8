-- Corrections net what their originals counted, so sums have a sign. Every
-- statement may be run again: the view is changed in place, because between a
-- DROP and a CREATE it would miss what another process inserts.
--
-- Of a correction, the token columns are what it adds to the original's.
ALTER TABLE entry
  ADD COLUMN IF NOT EXISTS unpriced_delta Int8,
  ADD COLUMN IF NOT EXISTS estimated_delta Int8,
  MODIFY COLUMN input Int64,
  MODIFY COLUMN cache_read Int64,
  MODIFY COLUMN cache_write_5m Int64,
  MODIFY COLUMN cache_write_1h Int64,
  MODIFY COLUMN output Int64,
  MODIFY COLUMN reasoning Int64,
  MODIFY COLUMN audio_input Int64,
  MODIFY COLUMN audio_output Int64,
  MODIFY COLUMN image_input Int64,
  MODIFY COLUMN image_output Int64;

ALTER TABLE usage_hour
  MODIFY COLUMN sum_unpriced Int64,
  MODIFY COLUMN sum_estimated Int64,
  MODIFY COLUMN sum_input Int64,
  MODIFY COLUMN sum_cache_read Int64,
  MODIFY COLUMN sum_cache_write_5m Int64,
  MODIFY COLUMN sum_cache_write_1h Int64,
  MODIFY COLUMN sum_output Int64,
  MODIFY COLUMN sum_reasoning Int64,
  MODIFY COLUMN sum_audio_input Int64,
  MODIFY COLUMN sum_audio_output Int64,
  MODIFY COLUMN sum_image_input Int64,
  MODIFY COLUMN sum_image_output Int64;

ALTER TABLE rollup_hour
  MODIFY COLUMN sum_unpriced Int64,
  MODIFY COLUMN sum_estimated Int64,
  MODIFY COLUMN sum_input Int64,
  MODIFY COLUMN sum_cache_read Int64,
  MODIFY COLUMN sum_cache_write_5m Int64,
  MODIFY COLUMN sum_cache_write_1h Int64,
  MODIFY COLUMN sum_output Int64,
  MODIFY COLUMN sum_reasoning Int64,
  MODIFY COLUMN sum_audio_input Int64,
  MODIFY COLUMN sum_audio_output Int64,
  MODIFY COLUMN sum_image_input Int64,
  MODIFY COLUMN sum_image_output Int64;

-- A correction adds its money and its differences to the hour of the entry that
-- it corrects, and no request.
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
  sum(image_output) AS sum_image_output
FROM entry
WHERE kind IN ('usage', 'correction')
GROUP BY tenant_id, hour, provider, model, service_tier, status, team, service, environment;
