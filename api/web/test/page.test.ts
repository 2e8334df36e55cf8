import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import * as messages from "../src/api/messages.ts";
import { DecodeError, type Field } from "../src/api/schema.ts";
import { Palette, slots } from "../src/palette.ts";
import { ago, bucketEnds, Clock, granularity, startOfDay } from "../src/period.ts";
import { beside, defaults, readView, withFilter, withoutFilter, writeView, type View } from "../src/view.ts";

/** The fields of every message in the .proto files, as "type name". */
function protoMessages(): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  for (const file of ["report", "ledger", "admin", "providers", "mapping"]) {
    const text = readFileSync(`../proto/tallystick/v1/${file}.proto`, "utf8").replace(/\/\/.*$/gm, "");
    for (const [, name = "", body = ""] of text.matchAll(/message (\w+) \{([^}]*)\}/g)) {
      const fields = [...body.matchAll(/([\w.]+(?:<[^>]*>)?(?: [\w.]+)?) (\w+) = \d+;/g)];
      found.set(name, new Set(fields.map(([, type = "", field = ""]) => `${type.trim()} ${field}`)));
    }
  }
  return found;
}

test("every message the page reads is in the .proto, field by field", () => {
  const known = protoMessages();
  const read = Object.values(messages) as (Field<unknown> & { fields: Record<string, Field<unknown>> })[];
  assert.ok(read.length >= 10);
  for (const schema of read) {
    const fields = known.get(schema.proto);
    assert.ok(fields, `no message ${schema.proto}`);
    for (const [name, field] of Object.entries(schema.fields)) {
      assert.ok(fields.has(`${field.proto} ${name}`), `${schema.proto} has no "${field.proto} ${name}"`);
    }
  }
});

test("an answer is decoded; what proto3 leaves out is its zero", () => {
  const answer = messages.SummaryResponse.read({
    totals: { cost_usd: "12.500000000001", requests: "9007199254740993", tokens: { input: "7" } },
    coverage: { end: "2026-11-22T03:00:00Z", to_seq: "5" },
  }, "");
  assert.equal(answer.totals.cost_usd, 12_500_000_000_001n);
  assert.equal(answer.totals.requests, 9007199254740993n);
  assert.equal(answer.totals.failed, 0n);
  assert.equal(answer.totals.tokens.get("input"), 7n);
  assert.equal(answer.coverage.end, Date.UTC(2026, 10, 22, 3));
  assert.equal(answer.coverage.start, null);
  assert.equal(answer.coverage.exact, false);
});

test("an answer of another shape names the place", () => {
  const wrong: [unknown, string][] = [
    [{ totals: { cost_usd: 12.5 } }, "totals.cost_usd"],
    [{ totals: { cost_usd: "1e3" } }, "totals.cost_usd"],
    [{ totals: { requests: 12 } }, "totals.requests"],
    [{ totals: { tokens: { input: "x" } } }, "totals.tokens.input"],
    [{ coverage: { start: "yesterday" } }, "coverage.start"],
    [[], "body"],
  ];
  for (const [value, place] of wrong) {
    assert.throws(() => messages.SummaryResponse.read(value, ""), (error) => error instanceof DecodeError && error.message.includes(place), place);
  }
});

test("a view survives its address", () => {
  const view: View = { page: "keys", tenant: "a&b=c", window: "24h", by: "model", metric: "requests", zone: "local", allocate: "default_owner", filters: [{ dimension: "team", values: ["x:y, z"] }] };
  assert.deepEqual(readView(writeView(view)), view);
  assert.deepEqual(readView(""), defaults);
  assert.equal(writeView(defaults), "");
});

test("what an address says wrongly is ignored", () => {
  assert.deepEqual(readView("?page=admin&allocate=even&window=99y&by=password&metric=x&zone=mars&where=nothing:1&where=team:&where=team"), defaults);
});

test("filters replace and go", () => {
  const view = withFilter(withFilter(defaults, "team", "a"), "team", "b");
  assert.deepEqual(view.filters, [{ dimension: "team", values: ["b"] }]);
  assert.deepEqual(withoutFilter(view, "team").filters, []);
  assert.equal(beside("team"), "model");
  assert.equal(beside("model"), "team");
});

test("windows are cut into a readable number of buckets", () => {
  const day = 86_400_000;
  const lengths = { PT1H: 3_600_000, P1D: day, P1W: 7 * day, P1M: 30 * day };
  for (const days of [1, 7, 30, 90, 365, 900, 3_000]) {
    const buckets = (days * day) / lengths[granularity(days * day) as keyof typeof lengths];
    assert.ok(buckets >= 20 && buckets <= 200, `${days} days: ${buckets}`);
  }
});

test("buckets end where the next begins, also when they differ", () => {
  const [march, april, may] = [Date.UTC(2026, 2, 1), Date.UTC(2026, 3, 1), Date.UTC(2026, 4, 1)];
  assert.deepEqual(bucketEnds([march, april, may], null).slice(0, 2), [april, may]);
  assert.deepEqual(bucketEnds([march], april), [april]);
  assert.deepEqual(bucketEnds([], april), []);
});

test("times are written in the view's zone", () => {
  const at = Date.UTC(2026, 10, 22, 3, 0);
  assert.match(new Clock("UTC").bucket(at, at + 3_600_000), /^Sun,? 22 Nov,? (at )?03:00 – 04:00$/);
  assert.equal(new Clock("Asia/Tokyo").tick(at), "12:00");
  assert.equal(new Clock("UTC").tick(Date.UTC(2026, 10, 22)), "22 Nov");
  assert.equal(new Clock("UTC").bucket(Date.UTC(2026, 10, 22), Date.UTC(2026, 10, 23)), "22 Nov");
  assert.equal(new Clock("UTC").bucket(Date.UTC(2026, 10, 1), Date.UTC(2026, 11, 1)), "1 Nov – 30 Nov");
});

test("a day begins at midnight of the zone", () => {
  assert.equal(startOfDay("2026-10-01", "utc"), "2026-10-01T00:00:00.000Z");
  assert.equal(startOfDay("2026-10-01", "local"), new Date(2026, 9, 1).toISOString());
});

test("ages", () => {
  const cases: [number, string][] = [[0, "just now"], [42, "42 s ago"], [180, "3 min ago"], [18_000, "5 h ago"], [1_036_800, "12 d ago"], [-5, "just now"]];
  for (const [seconds, want] of cases) assert.equal(ago(0, seconds * 1000), want);
});

test("a group keeps its colour when the order changes, and gives it back when it goes", () => {
  const palette = new Palette();
  const first = palette.assign(["a", "b", "c"]);
  const second = palette.assign(["c", "a", "d"]);
  assert.equal(second.get("a"), first.get("a"));
  assert.equal(second.get("c"), first.get("c"));
  assert.equal(second.get("d"), first.get("b"));
  const all = palette.assign(Array.from({ length: slots + 3 }, (_, index) => `n${index}`));
  assert.equal(new Set(all.values()).size, slots);
});
