-- What a plan is about to store, inserted before its entries under the same
-- plan. A row of tenant '' says that all commits of the partition up to `commit`
-- are planned; a tenant's row says the same of its entries up to `seq`. Merges
-- keep one row per tenant and partition: the greatest values.
--
-- It answers two questions. Which commits may be in (a writer that planned less
-- than that has lost its plans and must halt)? And had any entry beyond seq n
-- begun to arrive (else a report that covers 1..n is exact)?
CREATE TABLE IF NOT EXISTS announced (
  tenant_id        LowCardinality(String),
  ledger_partition Int32,
  commit           SimpleAggregateFunction(max, Int64),
  seq              SimpleAggregateFunction(max, UInt64)
) ENGINE = AggregatingMergeTree
ORDER BY (tenant_id, ledger_partition)
SETTINGS non_replicated_deduplication_window = 1000;
