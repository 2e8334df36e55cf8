/**
 * The REST API as the page uses it. Sends the token as a bearer credential and
 * only to the page's own origin; turns problem+json into a Problem.
 */
import {
  DefaultOwners, Head, ListProviderKeysResponse, ListTenantsResponse, Pipeline, ProviderKey, RevokeProviderKeyResponse, SummaryResponse,
  TimeSeriesResponse, VerifyLedgerResponse,
} from "./messages.ts";
import { DecodeError, type Field } from "./schema.ts";

/** A field of a request that breaks a rule. */
export interface Violation {
  readonly field: string;
  readonly rule: string;
  readonly message: string;
}

/** What the server, or the way to it, said instead of an answer. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly requestId: string,
    readonly violations: readonly Violation[] = [],
  ) {
    super(detail || title);
  }

  /** The token is missing, wrong or expired. */
  get unauthenticated(): boolean {
    return this.status === 401;
  }

  /** Somebody was faster. */
  get conflict(): boolean {
    return this.status === 409;
  }

  /** The token is known and may not do this. */
  get forbidden(): boolean {
    return this.status === 403;
  }
}

export interface Window {
  readonly name?: string;
  readonly start?: string;
  readonly end?: string;
  readonly time_zone?: string;
}

export interface Filter {
  readonly dimension: string;
  readonly values: readonly string[];
}

export interface ReportRequest {
  readonly tenant_id: string;
  readonly window: Window;
  readonly filters: readonly Filter[];
}

/** What a provider key is made from; what is empty has the server's default. */
export interface NewProviderKey {
  readonly provider: string;
  readonly name: string;
  readonly base_url: string;
  readonly value: string;
}

/** A list longer than this is cut; the tenant picker still takes any id by hand. */
const maxListed = 5_000;
const keysPath = "/v1/providers/keys";
const ownersPath = "/v1/mapping/default-owners";

export class Client {
  constructor(private readonly token: string) {}

  summary(request: ReportRequest, signal: AbortSignal) {
    return this.call("POST", "/v1/reports/summary:query", SummaryResponse, signal, request);
  }

  timeSeries(request: ReportRequest & { granularity: string; group_by: string[]; top: number; allocate?: string }, signal: AbortSignal) {
    return this.call("POST", "/v1/reports/timeseries:query", TimeSeriesResponse, signal, request);
  }

  head(tenant: string, signal: AbortSignal) {
    return this.call("GET", `/v1/ledger/head?tenant_id=${encodeURIComponent(tenant)}`, Head, signal);
  }

  verify(tenant: string, fromSeq: bigint, toSeq: bigint, signal: AbortSignal) {
    const range = { tenant_id: tenant, from_seq: fromSeq.toString(), to_seq: toSeq.toString() };
    return this.call("POST", "/v1/ledger:verify", VerifyLedgerResponse, signal, range);
  }

  pipeline(signal: AbortSignal) {
    return this.call("GET", "/v1/pipeline", Pipeline, signal);
  }

  async tenants(signal: AbortSignal): Promise<string[]> {
    const all = await this.pages("/v1/tenants", {}, ListTenantsResponse, (page) => page.tenants, signal);
    return all.map((tenant) => tenant.tenant_id);
  }

  /** A tenant's newest default owners; of the version 0 where there never were any. */
  defaultOwners(tenant: string, signal: AbortSignal) {
    return this.call("GET", `${ownersPath}?tenant_id=${encodeURIComponent(tenant)}`, DefaultOwners, signal);
  }

  /** Makes the version after `after`, of all owners; `from` is "" for the hour that is running. */
  putDefaultOwners(tenant: string, owners: Record<string, string>, from: string, after: bigint, signal: AbortSignal) {
    const next = { tenant_id: tenant, owners, after_version: after.toString(), ...(from && { effective_from: from }) };
    return this.call("POST", ownersPath, DefaultOwners, signal, next);
  }

  /** A tenant's provider keys, revoked ones too; values are masked. */
  providerKeys(tenant: string, signal: AbortSignal): Promise<ProviderKey[]> {
    return this.pages(keysPath, { tenant_id: tenant }, ListProviderKeysResponse, (page) => page.keys, signal);
  }

  addProviderKey(tenant: string, key: NewProviderKey, signal: AbortSignal) {
    return this.call("POST", keysPath, ProviderKey, signal, { tenant_id: tenant, ...key });
  }

  rotateProviderKey(tenant: string, id: string, value: string, signal: AbortSignal) {
    return this.call("POST", `${keysPath}/${encodeURIComponent(id)}:rotate`, ProviderKey, signal, { tenant_id: tenant, value });
  }

  revokeProviderKey(tenant: string, id: string, signal: AbortSignal) {
    return this.call("POST", `${keysPath}/${encodeURIComponent(id)}:revoke`, RevokeProviderKeyResponse, signal, { tenant_id: tenant });
  }

  /** Reads a list to its end. */
  private async pages<P extends { readonly next_page_token: string }, T>(
    path: string, query: Record<string, string>, answer: Field<P>, items: (page: P) => readonly T[], signal: AbortSignal,
  ): Promise<T[]> {
    const all: T[] = [];
    let next = "";
    do {
      const params = new URLSearchParams({ ...query, page_size: "1000", ...(next && { page_token: next }) });
      const page = await this.call("GET", `${path}?${params}`, answer, signal);
      all.push(...items(page));
      next = page.next_page_token;
    } while (next && all.length < maxListed);
    return all;
  }

  private async call<T>(method: string, path: string, answer: Field<T>, signal: AbortSignal, body?: unknown): Promise<T> {
    const headers: Record<string, string> = { accept: "application/json", authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["content-type"] = "application/json";
    let response: Response;
    try {
      response = await fetch(path, {
        method, headers, signal, cache: "no-store", credentials: "omit",
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
    } catch (cause) {
      if (signal.aborted) throw cause;
      throw new Problem(0, "Tallystick cannot be reached", "The server does not answer. The page goes on trying.", "");
    }
    const content: unknown = await response.json().catch(() => undefined);
    if (!response.ok) throw problem(response, content);
    try {
      return answer.read(content, "");
    } catch (cause) {
      if (!(cause instanceof DecodeError)) throw cause;
      throw new Problem(response.status, "The answer cannot be read", cause.message, response.headers.get("x-request-id") ?? "");
    }
  }
}

function problem(response: Response, content: unknown): Problem {
  const fields = (typeof content === "object" && content !== null ? content : {}) as Record<string, unknown>;
  const read = (name: string) => (typeof fields[name] === "string" ? (fields[name] as string) : "");
  return new Problem(
    response.status,
    read("title") || `The server answered ${response.status}`,
    read("detail") || read("message"),
    read("request_id") || (response.headers.get("x-request-id") ?? ""),
    violations(fields["violations"]),
  );
}

function violations(list: unknown): Violation[] {
  if (!Array.isArray(list)) return [];
  return list.map((one) => ({ field: String(one?.field ?? ""), rule: String(one?.rule ?? ""), message: String(one?.message ?? "") }));
}
