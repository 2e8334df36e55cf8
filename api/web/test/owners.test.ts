import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Client, Problem } from "../src/api/client.ts";
import { DefaultOwners } from "../src/api/messages.ts";
import { owned, ownersFrom, ownersOf } from "../src/owners.ts";
import { dimensions, ownable } from "../src/view.ts";

test("the dimensions that can have an owner are the server's", () => {
  const text = readFileSync("../../internal/mapping/mapping.go", "utf8");
  const fields = [.../var Fields = \[\]string\{([^}]*)\}/.exec(text)![1]!.matchAll(/"(\w+)"/g)].map(([, name]) => name);
  assert.deepEqual(owned.map(([name]) => name), fields.slice(0, Number(/const dimensions = (\d+)/.exec(text)![1])));
  assert.deepEqual(dimensions.filter(ownable), ["team", "service", "environment"]);
});

test("empty fields are no owners", () => {
  const fields: Record<string, string> = { team: "platform", service: "", environment: "prod" };
  assert.deepEqual(ownersFrom((name) => fields[name] ?? ""), { team: "platform", environment: "prod" });
  assert.deepEqual(ownersFrom(() => ""), {});
});

test("what is grouped by is named also where it has no owner", () => {
  const owners = DefaultOwners.read({ version: "2", owners: { environment: "prod", team: "platform" } }, "");
  assert.deepEqual(ownersOf(owners, "team"), [["team", "platform"], ["environment", "prod"]]);
  assert.deepEqual(ownersOf(owners, "service"), [["team", "platform"], ["service", ""], ["environment", "prod"]]);
  assert.deepEqual(ownersOf(DefaultOwners.read({}, ""), "team"), [["team", ""]]);
});

test("a change names the version that it is made of", async () => {
  const asked: { url: string; body: unknown }[] = [];
  globalThis.fetch = async (url, init = {}) => {
    asked.push({ url: String(url), body: init.body && JSON.parse(String(init.body)) });
    return new Response(JSON.stringify({ version: "3" }), { status: asked.length === 4 ? 409 : 200 });
  };
  const client = new Client("tok");
  const signal = new AbortController().signal;
  await client.defaultOwners("a&b", signal);
  await client.putDefaultOwners("acme", { team: "platform" }, "", 0n, signal);
  await client.putDefaultOwners("acme", {}, "2026-10-01T00:00:00.000Z", 9007199254740993n, signal);
  assert.deepEqual(asked, [
    { url: "/v1/mapping/default-owners?tenant_id=a%26b", body: undefined },
    { url: "/v1/mapping/default-owners", body: { tenant_id: "acme", owners: { team: "platform" }, after_version: "0" } },
    { url: "/v1/mapping/default-owners", body: { tenant_id: "acme", owners: {}, after_version: "9007199254740993", effective_from: "2026-10-01T00:00:00.000Z" } },
  ]);
  await assert.rejects(client.putDefaultOwners("acme", {}, "", 2n, signal), (error) => error instanceof Problem && error.conflict);
});
