/** One consistent set of answers for a view: the summary first, then both series over its exact range. */
import type { Client, ReportRequest, Window } from "./api/client.ts";
import type { SummaryResponse, TimeSeriesResponse } from "./api/messages.ts";
import { bucketEnds, granularity, openLength } from "./period.ts";
import { slots } from "./palette.ts";
import { firstUsed } from "./stack.ts";
import { beside, ownable, type Dimension, type View } from "./view.ts";

export interface Band {
  /** "" is what carries no value. */
  readonly name: string;
  readonly other: boolean;
  readonly cost: readonly bigint[];
  readonly requests: readonly bigint[];
  readonly totals: SummaryResponse["totals"];
  /** What of the totals is untagged usage, shown as the band's. */
  readonly allocated: SummaryResponse["totals"];
}

export interface Chart {
  readonly by: Dimension;
  readonly starts: readonly number[];
  readonly ends: readonly number[];
  readonly bands: readonly Band[];
  /** Untagged usage is shown as its default owners'. */
  readonly allocated: boolean;
}

export interface Report {
  readonly view: View;
  readonly summary: SummaryResponse;
  readonly main: Chart;
  readonly side: Chart;
  /** When it was asked for, and how long the answer took, in ms. */
  readonly askedAt: number;
  readonly tookMs: number;
}

export function zoneOf(view: View): string {
  return view.zone === "local" ? Intl.DateTimeFormat().resolvedOptions().timeZone : "UTC";
}

/** Asks for everything the overview shows. Throws a Problem. */
export async function loadReport(client: Client, view: View, signal: AbortSignal): Promise<Report> {
  const askedAt = Date.now();
  const zone = zoneOf(view);
  const named: ReportRequest = {
    tenant_id: view.tenant, window: { name: view.window, time_zone: zone }, filters: view.filters,
  };
  const summary = await client.summary(named, signal);
  const request = { ...named, window: await range(client, named, summary, signal) };
  const cut = granularity(length(request.window));
  const [main, side] = await Promise.all([view.by, beside(view.by)].map(async (by) => {
    const allocated = by === view.by && view.allocate !== "none" && ownable(by);
    const answer = await client.timeSeries({ ...request, granularity: cut, group_by: [by], top: slots, ...(allocated && { allocate: view.allocate }) }, signal);
    return chart(by, answer, allocated);
  }));
  return { view, summary, main: main!, side: side!, askedAt, tookMs: Date.now() - askedAt };
}

/** The summary's range as explicit moments; an open start moves up to the month of the first usage. */
async function range(client: Client, named: ReportRequest, summary: SummaryResponse, signal: AbortSignal): Promise<Window> {
  const { start, end } = summary.coverage;
  if (end === null) return named.window;
  if (start !== null && end - start < openLength) return between(start, end, named.window);
  const months = await client.timeSeries({ ...named, granularity: "P1M", group_by: [], top: 1 }, signal);
  const first = months.buckets[firstUsed(months.series.map((series) => series.requests))];
  return first == null ? named.window : between(first, end, named.window);
}

function between(start: number, end: number, named: Window): Window {
  return {
    start: new Date(start).toISOString(), end: new Date(end).toISOString(),
    ...(named.time_zone && { time_zone: named.time_zone }),
  };
}

function length(window: Window): number {
  return window.start && window.end ? Date.parse(window.end) - Date.parse(window.start) : openLength;
}

function chart(by: Dimension, answer: TimeSeriesResponse, allocated: boolean): Chart {
  const starts = answer.buckets.map((start) => start ?? 0);
  const bands = answer.series.map((series) => ({
    name: series.group[0] ?? "", other: series.other, cost: series.cost_usd, requests: series.requests, totals: series.totals,
    allocated: series.allocated,
  }));
  return { by, starts, ends: bucketEnds(starts, answer.coverage.end), bands, allocated };
}
