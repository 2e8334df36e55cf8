import assert from "node:assert/strict";
import { test } from "node:test";
import type { Client, Window } from "../src/api/client.ts";
import { SummaryResponse, TimeSeriesResponse } from "../src/api/messages.ts";
import { loadReport } from "../src/report.ts";
import { defaults, type View } from "../src/view.ts";

interface Asked { readonly window: Window; readonly granularity: string; readonly group_by: string[]; readonly allocate?: string }

const end = "2026-11-22T03:00:00Z";
const buckets = ["2026-09-01T00:00:00Z", "2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"];

/** A server whose summary covers from `start`, with usage from October on; keeps what it was asked. */
function server(start: string | undefined, used = ["0", "7", "9"]) {
  const asked: Asked[] = [];
  const client = {
    summary: async () => SummaryResponse.read({ coverage: { start, end, to_seq: "5" } }, ""),
    timeSeries: async (request: Asked) => {
      asked.push(request);
      return TimeSeriesResponse.read({
        buckets, coverage: { end },
        series: [{ group: ["a"], requests: used, cost_usd: ["0", "1.5", "2"], totals: { cost_usd: "3.5" }, allocated: { cost_usd: "1.25" } }, { other: true, group: [""] }],
      }, "");
    },
  };
  return { client: client as unknown as Client, asked };
}

const load = (client: Client, view: Partial<View> = {}) =>
  loadReport(client, { ...defaults, tenant: "acme", ...view }, new AbortController().signal);

test("both charts ask for the summary's exact range", async () => {
  const { client, asked } = server("2026-11-15T03:00:00Z");
  const report = await load(client);
  assert.deepEqual(asked.map((one) => [one.granularity, one.group_by]), [["PT1H", ["team"]], ["PT1H", ["model"]]]);
  for (const one of asked) {
    assert.deepEqual(one.window, { start: "2026-11-15T03:00:00.000Z", end: "2026-11-22T03:00:00.000Z", time_zone: "UTC" });
  }
  assert.deepEqual(report.main.bands.map((band) => [band.name, band.other]), [["a", false], ["", true]]);
  assert.deepEqual(report.main.bands[0]?.cost, [0n, 1_500_000_000_000n, 2_000_000_000_000n]);
});

test("a window open at its start begins with the month of the first usage", async () => {
  for (const start of [undefined, "1970-01-01T00:00:00Z"]) {
    const { client, asked } = server(start);
    await load(client, { window: "all" });
    assert.deepEqual(asked.map((one) => one.granularity), ["P1M", "P1D", "P1D"]);
    assert.equal(asked[0]?.window.name, "all");
    assert.equal(asked[1]?.window.start, "2026-10-01T00:00:00.000Z");
  }
});

test("an open window without usage stays as it is named", async () => {
  const { client, asked } = server(undefined, ["0", "0", "0"]);
  await load(client, { window: "all" });
  assert.deepEqual(asked.map((one) => one.window.name), ["all", "all", "all"]);
});

test("untagged usage is allocated where it is asked for and can be", async () => {
  const views: [Partial<View>, (string | undefined)[]][] = [
    [{}, [undefined, undefined]],
    [{ allocate: "default_owner" }, ["default_owner", undefined]],
    [{ by: "environment", allocate: "default_owner" }, ["default_owner", undefined]],
    [{ by: "model", allocate: "default_owner" }, [undefined, undefined]],
  ];
  for (const [view, want] of views) {
    const { client, asked } = server("2026-11-15T03:00:00Z");
    const { main, side } = await load(client, view);
    assert.deepEqual(asked.map((one) => one.allocate), want);
    assert.deepEqual([main.allocated, side.allocated], want.map((one) => one !== undefined));
    assert.deepEqual(main.bands.map((band) => band.allocated.cost_usd), [1_250_000_000_000n, 0n]);
  }
});
