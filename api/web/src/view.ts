/** What the page shows, as its address says it. Unknown values fall back to the defaults. */
import type { Filter } from "./api/client.ts";
import { owned } from "./owners.ts";

export const windows = [
  ["24h", "24 h"], ["7d", "7 d"], ["30d", "30 d"], ["mtd", "Month"], ["all", "All"],
] as const;
export const dimensions = ["team", "model", "provider", "service", "environment"] as const;
export const metrics = ["cost", "requests"] as const;
/** How untagged usage is shown: as it is, or as its default owner's. */
export const allocations = ["none", "default_owner"] as const;

/** The pages, by their name in the address and their title. */
export const pages = [["overview", "Overview"], ["keys", "Provider keys"]] as const;

export type PageName = (typeof pages)[number][0];
export type WindowName = (typeof windows)[number][0];
export type Dimension = (typeof dimensions)[number];
export type Metric = (typeof metrics)[number];
export type Allocate = (typeof allocations)[number];

export interface View {
  readonly page: PageName;
  readonly tenant: string;
  readonly window: WindowName;
  readonly by: Dimension;
  readonly metric: Metric;
  readonly filters: readonly Filter[];
  /** "local" shows and buckets times in the browser's zone. */
  readonly zone: "utc" | "local";
  readonly allocate: Allocate;
}

export const defaults: View = { page: "overview", tenant: "", window: "7d", by: "team", metric: "cost", filters: [], zone: "utc", allocate: "none" };

/** Reads a query string such as "?tenant=acme&window=24h&where=team:search". */
export function readView(query: string): View {
  const params = new URLSearchParams(query);
  return {
    page: one(params.get("page"), pages.map(([name]) => name), defaults.page),
    tenant: params.get("tenant") ?? "",
    window: one(params.get("window"), windows.map(([name]) => name), defaults.window),
    by: one(params.get("by"), dimensions, defaults.by),
    metric: one(params.get("metric"), metrics, defaults.metric),
    filters: params.getAll("where").flatMap(readFilter),
    zone: one(params.get("zone"), ["utc", "local"] as const, defaults.zone),
    allocate: one(params.get("allocate"), allocations, defaults.allocate),
  };
}

/** The query string of a view; what is default is left out. */
export function writeView(view: View): string {
  const params = new URLSearchParams();
  if (view.tenant) params.set("tenant", view.tenant);
  for (const key of ["page", "window", "by", "metric", "zone", "allocate"] as const) {
    if (view[key] !== defaults[key]) params.set(key, view[key]);
  }
  for (const filter of view.filters) params.append("where", `${filter.dimension}:${filter.values[0]}`);
  const query = params.toString();
  return query ? `?${query}` : "";
}

/** Keeps only this value of the dimension, in place of what the view kept before. */
export function withFilter(view: View, dimension: Dimension, value: string): View {
  const others = view.filters.filter((filter) => filter.dimension !== dimension);
  return { ...view, filters: [...others, { dimension, values: [value] }] };
}

export function withoutFilter(view: View, dimension: string): View {
  return { ...view, filters: view.filters.filter((filter) => filter.dimension !== dimension) };
}

/** The dimension shown beside the chosen one: the model, or the team when that is the model. */
export function beside(by: Dimension): Dimension {
  return by === "model" ? "team" : "model";
}

/** Whether untagged usage of the dimension can have a default owner. */
export function ownable(by: Dimension): boolean {
  return owned.some(([dimension]) => dimension === by);
}

function one<T extends string>(value: string | null, known: readonly T[], otherwise: T): T {
  return known.includes(value as T) ? (value as T) : otherwise;
}

function readFilter(text: string): Filter[] {
  const at = text.indexOf(":");
  const dimension = text.slice(0, at);
  if (at < 0 || !(dimensions as readonly string[]).includes(dimension) || at === text.length - 1) return [];
  return [{ dimension, values: [text.slice(at + 1)] }];
}
