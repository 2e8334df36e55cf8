import assert from "node:assert/strict";
import { test } from "node:test";
import { Client, Problem } from "../src/api/client.ts";
import { ProviderKey } from "../src/api/messages.ts";
import { sorted, stateOf, titleOf } from "../src/keys.ts";

const now = Date.UTC(2026, 10, 22, 12);
const hour = 3_600_000;
const key = (fields: Record<string, unknown>) => ProviderKey.read({ provider: "openai", name: "openai", ...fields }, "");
const at = (hours: number) => new Date(now + hours * hour).toISOString();

test("a key's state", () => {
  assert.equal(stateOf(key({ rotate_by: at(1) }), now), "in force");
  assert.equal(stateOf(key({ rotate_by: at(-1) }), now), "due");
  assert.equal(stateOf(key({ rotate_by: at(1), previous_until: at(24) }), now), "rotating");
  assert.equal(stateOf(key({ rotate_by: at(1), previous_until: at(-1) }), now), "in force");
  assert.equal(stateOf(key({ previous_until: at(24), revoked_at: at(-1) }), now), "revoked");
});

test("keys in force come first, revoked ones the newest first", () => {
  const list = [
    key({ secret_id: "old", revoked_at: at(-2) }), key({ secret_id: "b", name: "batch" }), key({ secret_id: "new", revoked_at: at(-1) }),
    key({ secret_id: "c" }), key({ secret_id: "a", provider: "anthropic", name: "anthropic" }),
  ];
  assert.deepEqual(sorted(list).map((one) => one.secret_id), ["a", "b", "c", "new", "old"]);
  assert.equal(titleOf(list[1]!), "openai (batch)");
  assert.equal(titleOf(list[3]!), "openai");
});

/** Answers requests in turn, and keeps them. */
function served(...answers: { status?: number; body: unknown }[]) {
  const asked: { url: string; init: RequestInit }[] = [];
  globalThis.fetch = async (url, init = {}) => {
    asked.push({ url: String(url), init });
    const { status = 200, body } = answers[asked.length - 1]!;
    return new Response(JSON.stringify(body), { status });
  };
  return asked;
}

const signal = new AbortController().signal;
const client = new Client("tok");

test("a key goes in the body, never in the address", async () => {
  const asked = served({ body: { secret_id: "sec_1", masked: "sk-…9" } }, { body: {} }, { body: {} });
  await client.addProviderKey("acme", { provider: "openai", name: "", base_url: "", value: "sk-secret" }, signal);
  await client.rotateProviderKey("acme", "sec/1", "sk-secret", signal);
  await client.revokeProviderKey("acme", "sec_1", signal);
  assert.deepEqual(asked.map((one) => one.url), [
    "/v1/providers/keys", "/v1/providers/keys/sec%2F1:rotate", "/v1/providers/keys/sec_1:revoke",
  ]);
  assert.deepEqual(JSON.parse(String(asked[1]!.init.body)), { tenant_id: "acme", value: "sk-secret" });
  assert.ok(asked.every((one) => one.init.method === "POST" && !one.url.includes("sk-secret")));
});

test("a list is read to its end", async () => {
  const asked = served({ body: { keys: [{ secret_id: "a" }], next_page_token: "p2" } }, { body: { keys: [{ secret_id: "b" }] } });
  const keys = await client.providerKeys("acme", signal);
  assert.deepEqual(keys.map((one) => one.secret_id), ["a", "b"]);
  assert.match(asked[1]!.url, /tenant_id=acme&page_size=1000&page_token=p2$/);
});

test("a refusal names fields and rules", async () => {
  served({ status: 400, body: { title: "Bad Request", detail: "value: x", violations: [{ field: "value", rule: "syntax", message: "x" }] } }, { status: 403, body: {} });
  await assert.rejects(client.rotateProviderKey("acme", "s", "v", signal), (error) => {
    assert.ok(error instanceof Problem);
    assert.deepEqual(error.violations, [{ field: "value", rule: "syntax", message: "x" }]);
    return !error.forbidden;
  });
  await assert.rejects(client.providerKeys("acme", signal), (error) => error instanceof Problem && error.forbidden);
});
