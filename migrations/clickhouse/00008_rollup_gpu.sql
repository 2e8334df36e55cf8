-- Time of GPUs in the rollups, as in 00007. Every statement may be run again.
ALTER TABLE rollup_hour ADD COLUMN IF NOT EXISTS sum_gpu_us Int64;

-- What was stored before has it in its entries. Added is what is missing, so that a
-- second run adds nothing. A plan that is under way may have stored its entries and
-- not yet its rollups, which will bring their own: of a tenant's entries the first
-- ones count, as many as its rollups have.
INSERT INTO rollup_hour (tenant_id, dimension, hour, value, sum_gpu_us)
SELECT tenant_id, dimension, hour, value, sum(gpu) AS missing
FROM (
  SELECT tenant_id, pair.1 AS dimension, hour, pair.2 AS value, gpu_us AS gpu
  FROM (
    SELECT tenant_id, gpu_us, toInt32(intDiv(toUnixTimestamp64Micro(occurred_at), 3600000000)) AS hour,
      arrayJoin([('', ''), ('team', toString(team)), ('model', toString(model)), ('provider', toString(provider)), ('service', toString(service)), ('environment', toString(environment)), ('status', if(status = '', 'ok', toString(status)))]) AS pair
    FROM entry
    WHERE gpu_us != 0 AND kind IN ('usage', 'correction') AND (tenant_id, seq) NOT IN (
      SELECT tenant_id, seq
      FROM (
        SELECT tenant_id, seq, row_number() OVER (PARTITION BY tenant_id ORDER BY seq) AS place
        FROM entry
        WHERE kind IN ('usage', 'correction') AND tenant_id IN (
          SELECT tenant_id
          FROM (
            SELECT tenant_id, toInt64(count()) AS entries, toInt64(0) AS rolled FROM entry
            WHERE kind IN ('usage', 'correction') AND tenant_id IN (SELECT tenant_id FROM entry WHERE gpu_us != 0) GROUP BY tenant_id
            UNION ALL
            SELECT tenant_id, toInt64(0), toInt64(sum(sum_requests) + sum(sum_corrections)) FROM rollup_hour WHERE dimension = '' GROUP BY tenant_id
          )
          GROUP BY tenant_id HAVING sum(entries) > sum(rolled)
        )
      ) AS counted
      LEFT JOIN (SELECT tenant_id, toInt64(sum(sum_requests) + sum(sum_corrections)) AS rolled FROM rollup_hour WHERE dimension = '' GROUP BY tenant_id) AS rolled USING (tenant_id)
      WHERE toInt64(place) > rolled
    )
  )
  UNION ALL
  SELECT tenant_id, dimension, hour, value, -sum_gpu_us FROM rollup_hour WHERE sum_gpu_us != 0
)
GROUP BY tenant_id, dimension, hour, value
HAVING missing != 0;
