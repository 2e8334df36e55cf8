/** The messages the page reads, as in api/proto/tallystick/v1. */
import { double, flag, int32, int64, mapOf, message, repeated, text, timestamp, usd, type Infer } from "./schema.ts";

export const Totals = message("Totals", {
  cost_usd: usd,
  requests: int64,
  failed: int64,
  unpriced: int64,
  corrections: int64,
  estimated: int64,
  tokens: mapOf(int64),
  gpu_us: int64,
});
export type Totals = Infer<typeof Totals>;

export const Coverage = message("Coverage", {
  start: timestamp,
  end: timestamp,
  from_seq: int64,
  to_seq: int64,
  head_hash: text,
  exact: flag,
  fresh_until: timestamp,
  lag_entries: int64,
});
export type Coverage = Infer<typeof Coverage>;

export const SummaryResponse = message("SummaryResponse", { totals: Totals, coverage: Coverage });
export type SummaryResponse = Infer<typeof SummaryResponse>;

export const Series = message("Series", {
  group: repeated(text),
  other: flag,
  cost_usd: repeated(usd),
  requests: repeated(int64),
  totals: Totals,
  allocated: Totals,
});
export type Series = Infer<typeof Series>;

export const TimeSeriesResponse = message("TimeSeriesResponse", {
  buckets: repeated(timestamp),
  series: repeated(Series),
  totals: Totals,
  coverage: Coverage,
});
export type TimeSeriesResponse = Infer<typeof TimeSeriesResponse>;

export const Head = message("Head", {
  tenant_id: text,
  seq: int64,
  chain_hash: text,
  key_epoch: int64,
  received_at: timestamp,
});
export type Head = Infer<typeof Head>;

export const VerifyLedgerResponse = message("VerifyLedgerResponse", {
  verdict: text,
  entries: int64,
  from_seq: int64,
  to_seq: int64,
  head_hash: text,
  first_bad_seq: int64,
  reason: text,
  message: text,
});
export type VerifyLedgerResponse = Infer<typeof VerifyLedgerResponse>;

export const Tenant = message("Tenant", { tenant_id: text, created_at: timestamp, partition: int32 });

export const ListTenantsResponse = message("ListTenantsResponse", {
  tenants: repeated(Tenant),
  next_page_token: text,
});

export const Partition = message("Partition", {
  partition: int32,
  next_offset: int64,
  end_offset: int64,
  batch: int64,
  published_batch: int64,
  stored_batch: int64,
});

export const Pipeline = message("Pipeline", {
  ledger_lag: int64,
  publish_lag: int64,
  analytics_lag: int64,
  entries: int64,
  accepted: int64,
  refused: int64,
  duplicates: int64,
  rejected: int64,
  unpriced: int64,
  cost_usd: usd,
  ingest_rate: double,
  ledger_rate: double,
  analytics_rate: double,
  partitions: repeated(Partition),
  halted: repeated(text),
});
export type Pipeline = Infer<typeof Pipeline>;

export const DefaultOwners = message("DefaultOwners", {
  version: int64,
  owners: mapOf(text),
  effective_from: timestamp,
  created_by: text,
});
export type DefaultOwners = Infer<typeof DefaultOwners>;

export const ProviderKey = message("ProviderKey", {
  secret_id: text,
  provider: text,
  name: text,
  base_url: text,
  masked: text,
  version: int32,
  created_at: timestamp,
  created_by: text,
  rotate_by: timestamp,
  previous_until: timestamp,
  revoked_at: timestamp,
});
export type ProviderKey = Infer<typeof ProviderKey>;

export const ListProviderKeysResponse = message("ListProviderKeysResponse", {
  keys: repeated(ProviderKey),
  next_page_token: text,
});

export const RevokeProviderKeyResponse = message("RevokeProviderKeyResponse", {});
