/**
 * The REST API as the page uses it. Sends the token as a bearer credential and
 * only to the page's own origin; turns problem+json into a Problem.
 */
import {
  Head, ListTenantsResponse, Pipeline, SummaryResponse, TimeSeriesResponse, VerifyLedgerResponse,
} from "./messages.ts";
import { DecodeError, type Field } from "./schema.ts";

/** What the server, or the way to it, said instead of an answer. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly requestId: string,
  ) {
    super(detail || title);
  }

  /** The token is missing, wrong or expired. */
  get unauthenticated(): boolean {
    return this.status === 401;
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

/** A tenant list longer than this is cut; the picker still takes any id by hand. */
const maxTenants = 5_000;

export class Client {
  constructor(private readonly token: string) {}

  summary(request: ReportRequest, signal: AbortSignal) {
    return this.call("POST", "/v1/reports/summary:query", SummaryResponse, signal, request);
  }

  timeSeries(request: ReportRequest & { granularity: string; group_by: string[]; top: number }, signal: AbortSignal) {
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
    const ids: string[] = [];
    let page = "";
    do {
      const query = new URLSearchParams({ page_size: "1000", ...(page && { page_token: page }) });
      const answer = await this.call("GET", `/v1/tenants?${query}`, ListTenantsResponse, signal);
      ids.push(...answer.tenants.map((tenant) => tenant.tenant_id));
      page = answer.next_page_token;
    } while (page && ids.length < maxTenants);
    return ids;
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
  );
}
