// A server with the API's answers in their recorded shape, for the page's own
// tests and for working on it. Everything is derived from a seed; nothing of
// this is in the build.
//
//   node test/mock.mjs [port]      prints the address to open
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { extname } from "node:path";

export const token = "test-token";
const dist = new URL("../dist/", import.meta.url);
const policy = readFileSync(new URL("../csp.txt", import.meta.url), "utf8").trim();
const types = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };
const hour = 3_600_000;

function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const names = {
  team: ["search", "support-bot", "platform", "growth", "legal-review", "data-science", "mobile", "onboarding", ""],
  model: ["gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "gpt-4o-mini", "claude-haiku-4-5", "text-embedding-3-large", "p5.48xlarge"],
  provider: ["openai", "anthropic", "google", "aws"],
  service: ["api-gateway", "rag-indexer", "chat-frontend", "batch-worker"],
  environment: ["production", "staging", "development"],
};
const usd = (picos) => `${picos / 10n ** 12n}.${(picos % 10n ** 12n).toString().padStart(12, "0")}`;
const hash = (seed) => {
  const next = random(seed);
  return Array.from({ length: 64 }, () => Math.floor(next() * 16).toString(16)).join("");
};

function windowOf({ name, start, end }, now) {
  if (start && end) return [Date.parse(start), Date.parse(end)];
  const stop = Math.ceil(now / hour) * hour;
  const days = { "24h": 1, "7d": 7, "30d": 30, all: 90 }[name];
  if (days) return [stop - days * 24 * hour, stop];
  const today = new Date(now);
  return [Date.UTC(today.getUTCFullYear(), today.getUTCMonth(), 1), stop];
}

const stepOf = { PT1H: hour, P1D: 24 * hour, P1W: 7 * 24 * hour, P1M: 30 * 24 * hour };

/** Where names has the instance type, which only globex uses, and its teams: data-science, and nobody where no one used the GPUs. */
const gpuModel = 6;
const gpuTeams = [5, 8];

/** Cost (picos), requests, the calls among them and GPU time (µs) of one hour, team and model; the same whoever asks. */
function usage(tenant, team, model, at) {
  if (model === gpuModel) return tenant === "globex" && gpuTeams.includes(team) ? gpuTime(team, at) : unused;
  return callsOf(team, model, at);
}

const unused = { cost: 0n, requests: 0n, calls: 0n, gpu: 0n };

/** The team's part of an hour of eight GPUs at 12.29 USD each. */
function gpuTime(team, at) {
  const used = BigInt(Math.floor(random(Math.floor(at / hour))() * 28_800_000_000));
  const gpu = team === gpuTeams[0] ? used : 28_800_000_000n - used;
  return { cost: (gpu * 12_290_000_000_000n) / 3_600_000_000n, requests: 12n, calls: 0n, gpu };
}

function callsOf(team, model, at) {
  const next = random((team * 7 + model) * 7919 + Math.floor(at / hour) * 31);
  const moment = new Date(at);
  const daily = 0.2 + 0.8 * Math.max(0, Math.sin(((moment.getUTCHours() - 5) / 24) * 2 * Math.PI) + 0.3);
  const weekly = [0, 6].includes(moment.getUTCDay()) ? 0.45 : 1;
  const spike = team === 1 && model === 1 && moment.getUTCDate() === 19 && moment.getUTCHours() > 12 ? 6 : 1;
  const requests = BigInt(Math.floor((2600 / ((team + 1.3) * (((model + team) % 6) + 1.6))) * daily * weekly * spike * (0.75 + 0.5 * next())));
  return { requests, calls: requests, gpu: 0n, cost: requests * BigInt(1_900_000_001 + Math.floor(next() * 9e9)) };
}

const added = (a, b) => ({ cost: a.cost + b.cost, requests: a.requests + b.requests, calls: a.calls + b.calls, gpu: a.gpu + b.gpu });

/** What the model or team of a cell implies for the other dimensions. */
const indexIn = {
  team: (team) => team,
  model: (_, model) => model,
  provider: (_, model) => [0, 1, 2, 0, 1, 0, 3][model],
  service: (team) => team % 4,
  environment: (team) => (team > 6 ? 1 : team === 5 ? 2 : 0),
};

function totals({ cost, requests, calls, gpu }, index) {
  const unpriced = index % 4 === 3 ? calls / 41n : 0n;
  return {
    cost_usd: usd(cost), requests: `${requests}`, failed: `${requests / 57n}`, unpriced: `${unpriced}`,
    corrections: "0", estimated: `${requests / 333n}`,
    tokens: { input: `${calls * 812n}`, output: `${calls * 301n}`, cache_read: `${calls * 540n}`, reasoning: `${calls * 33n}` },
    gpu_us: `${gpu}`,
  };
}

function addTotals(all) {
  const add = (key) => `${all.reduce((sum, one) => sum + BigInt(one[key]), 0n)}`;
  const tokens = {};
  for (const one of all) for (const [name, count] of Object.entries(one.tokens)) tokens[name] = `${BigInt(tokens[name] ?? 0) + BigInt(count)}`;
  const cost = all.reduce((sum, one) => sum + BigInt(one.cost_usd.replace(".", "")), 0n);
  return { cost_usd: usd(cost), requests: add("requests"), failed: add("failed"), unpriced: add("unpriced"), corrections: "0", estimated: add("estimated"), tokens, gpu_us: add("gpu_us") };
}

/** What a request is answered with that would undo somebody's change. */
class Conflict extends Error {}

/** What a request that breaks a rule is answered with. */
class Refused extends Error {
  constructor(violations) {
    super(violations.map((one) => `${one.field}: ${one.message}`).join("; "));
    this.violations = violations;
  }
}
const refuse = (field, rule, message) => {
  throw new Refused([{ field, rule, message }]);
};

/** The mock's state: tests set `fault` to see what the page makes of it. */
export function mock(now = () => Date.now()) {
  const state = { fault: "", entries: 1_384_221n, requests: [], keys: [], owners: [{ version: "1", owners: { team: "platform" }, effective_from: "2026-10-01T00:00:00Z", created_by: "tok_1" }] };
  const dates = () => ({ created_at: new Date(now()).toISOString(), rotate_by: new Date(now() + 90 * 24 * hour).toISOString() });
  const masked = (value) => `${value.slice(0, 4)}…${value.slice(-4)}`;
  const coverage = (start, end) => ({
    start: new Date(start).toISOString(), end: new Date(end).toISOString(), from_seq: "1", to_seq: `${state.entries}`,
    head_hash: hash(42), exact: true, fresh_until: new Date(now() - 3000).toISOString(), lag_entries: "0",
  });

  function series(request) {
    const [start, end] = windowOf(request.window, now());
    const step = stepOf[request.granularity];
    const buckets = [];
    for (let at = Math.floor(start / step) * step; at < end; at += step) buckets.push(at);
    const dimension = request.group_by[0] ?? "provider";
    const kept = (team, model) => (request.filters ?? []).every((filter) => filter.values.includes(names[filter.dimension][indexIn[filter.dimension](team, model)]));
    const empty = request.tenant_id === "quiet";
    const all = names[dimension].map((name, index) => {
      const cells = buckets.map((at) => {
        let cell = unused;
        for (let h = Math.max(at, start); h < Math.min(at + step, end) && !empty; h += hour) {
          for (let team = 0; team < names.team.length; team++) {
            for (let model = 0; model < names.model.length; model++) {
              if (indexIn[dimension](team, model) !== index || !kept(team, model)) continue;
              cell = added(cell, usage(request.tenant_id, team, model, h));
            }
          }
        }
        return cell;
      });
      return {
        group: [name], cost_usd: cells.map((cell) => usd(cell.cost)), requests: cells.map((cell) => `${cell.requests}`),
        totals: totals(cells.reduce(added, unused), index),
      };
    }).filter((one) => one.totals.requests !== "0");
    if (request.allocate) allocate(all, state.owners.at(-1).owners[dimension]);
    all.sort((a, b) => (BigInt(b.totals.cost_usd.replace(".", "")) > BigInt(a.totals.cost_usd.replace(".", "")) ? 1 : -1));
    const top = all.slice(0, request.top);
    const rest = all.slice(request.top);
    if (rest.length > 0) {
      top.push({
        group: [""], other: true, totals: addTotals(rest.map((one) => one.totals)),
        cost_usd: buckets.map((_, at) => usd(rest.reduce((sum, one) => sum + BigInt(one.cost_usd[at].replace(".", "")), 0n))),
        requests: buckets.map((_, at) => `${rest.reduce((sum, one) => sum + BigInt(one.requests[at]), 0n)}`),
      });
    }
    return { buckets: buckets.map((at) => new Date(at).toISOString()), series: empty ? [] : top, totals: addTotals(all.map((one) => one.totals)), coverage: coverage(start, end) };
  }

  /** Shows what is untagged as the owner's. */
  function allocate(all, name) {
    const owner = all.find((one) => one.group[0] === name);
    const at = all.findIndex((one) => one.group[0] === "");
    if (!owner || at < 0) return;
    const [untagged] = all.splice(at, 1);
    owner.cost_usd = owner.cost_usd.map((cost, at) => usd(BigInt(cost.replace(".", "")) + BigInt(untagged.cost_usd[at].replace(".", ""))));
    owner.requests = owner.requests.map((count, at) => `${BigInt(count) + BigInt(untagged.requests[at])}`);
    Object.assign(owner, { allocated: untagged.totals, totals: addTotals([owner.totals, untagged.totals]) });
  }

  const routes = {
    "GET /v1/tenants": () => ({ tenants: ["acme", "globex", "quiet"].map((id, index) => ({ tenant_id: id, created_at: "2026-11-01T00:00:00Z", partition: index })) }),
    "POST /v1/reports/summary:query": (body) => {
      const answer = series({ ...body, granularity: "PT1H", group_by: ["team"], top: 50 });
      return { totals: answer.totals, coverage: answer.coverage };
    },
    "POST /v1/reports/timeseries:query": series,
    "GET /v1/ledger/head": () => ({ tenant_id: "acme", seq: `${state.entries}`, chain_hash: hash(42), key_epoch: "1", received_at: new Date(now() - 3000).toISOString() }),
    "POST /v1/ledger:verify": (body) => (state.fault === "broken"
      ? { verdict: "broken", entries: "4211", from_seq: body.from_seq, to_seq: body.to_seq, first_bad_seq: "4212", reason: "chain", message: "The hash of the entry before does not match." }
      : { verdict: "intact", entries: body.to_seq, from_seq: body.from_seq, to_seq: body.to_seq, head_hash: hash(42) }),
    "GET /v1/mapping/default-owners": () => state.owners.at(-1),
    "POST /v1/mapping/default-owners": ({ owners, effective_from = new Date(Math.floor(now() / hour) * hour).toISOString(), after_version }) => {
      const newest = state.owners.at(-1);
      for (const [name, owner] of Object.entries(owners)) if (owner.length > 256) return refuse(`owners.${name}`, "length", "an owner has at most 256 bytes");
      if (after_version !== newest.version) throw new Conflict(`api: conflict: put default owners: mapping: there is a newer version: version ${newest.version}`);
      if (JSON.stringify(owners) === JSON.stringify(newest.owners)) return newest;
      state.owners.push({ version: `${state.owners.length + 1}`, owners, effective_from, created_by: "tok_1" });
      return state.owners.at(-1);
    },
    "GET /v1/providers/keys": () => ({ keys: state.keys }),
    "POST /v1/providers/keys": (body) => {
      if (!/^[a-z][a-z0-9_-]*$/.test(body.provider)) return refuse("provider", "pattern", "begins with a letter, in lower case");
      const key = { secret_id: `sec_${state.keys.length}`, provider: body.provider, name: body.name || body.provider, base_url: body.base_url, version: 1, created_by: "tok_1", ...dates() };
      state.keys.push({ ...key, masked: masked(body.value) });
      return state.keys.at(-1);
    },
    "POST /v1/providers/keys/ID:rotate": (body, id) => {
      const key = state.keys.find((one) => one.secret_id === id);
      return Object.assign(key, { masked: masked(body.value), version: key.version + 1, previous_until: new Date(now() + 24 * hour).toISOString() });
    },
    "POST /v1/providers/keys/ID:revoke": (_, id) => {
      Object.assign(state.keys.find((one) => one.secret_id === id), { revoked_at: new Date(now()).toISOString(), previous_until: undefined, masked: "" });
      return {};
    },
    "GET /v1/pipeline": () => {
      const next = random(Math.floor(now() / 2000));
      const rate = () => 38_000 + Math.round(next() * 9_000);
      return {
        ledger_lag: `${Math.floor(next() * 4000)}`, publish_lag: `${Math.floor(next() * 900)}`, analytics_lag: `${Math.floor(next() * 12_000)}`,
        entries: "1521880", accepted: "1522410", refused: "152", duplicates: "76121", rejected: "530", unpriced: "21044",
        cost_usd: "20481.118200340012", ingest_rate: rate(), ledger_rate: rate() + 0.4, analytics_rate: rate(),
        partitions: [0, 1, 2, 3].map((one) => ({ partition: one, next_offset: `${380_000 + one}`, end_offset: `${380_200 + one * 7}`, batch: `${412 + one}`, published_batch: `${412 + one}`, stored_batch: `${411 + one}` })),
        halted: state.fault === "halted" ? ["partition 2: the chain's head in Postgres is not the one the writer left"] : [],
      };
    },
  };

  function answer(request, response, body) {
    const path = new URL(request.url, "http://localhost").pathname;
    const send = (status, type, content, more = {}) => {
      response.writeHead(status, { "content-type": type, "content-security-policy": policy, "x-content-type-options": "nosniff", ...more });
      response.end(content);
    };
    const problem = (status, title, detail, more = {}) =>
      send(status, "application/problem+json", JSON.stringify({ type: "about:blank", title, status, detail, request_id: "req-7f3a", ...more }));
    if (path.startsWith("/v1/")) {
      state.requests.push(`${request.method} ${request.url}`);
      if (request.headers.authorization !== `Bearer ${token}`) return problem(401, "Unauthenticated", "The token is not known.");
      if (state.fault === "store" && path.includes("reports")) return problem(503, "The report store is away", "ClickHouse does not answer; the ledger goes on. Try again in a moment.");
      if (state.fault === "viewer" && (path.includes("/providers/") || (path.includes("/mapping/") && request.method === "POST"))) return problem(403, "Forbidden", "the credential lacks a scope");
      const [, id = "", verb = ""] = /^\/v1\/providers\/keys\/([^:]+)(:\w+)$/.exec(path) ?? [];
      const route = routes[`${request.method} ${id ? `/v1/providers/keys/ID${verb}` : path}`];
      if (!route) return problem(404, "Not found", `${request.method} ${path} is not a method of the API.`);
      try {
        return send(200, "application/json", JSON.stringify(route(body && JSON.parse(body), id)));
      } catch (error) {
        if (error instanceof Conflict) return problem(409, "Conflict", error.message);
        if (!(error instanceof Refused)) throw error;
        return problem(400, "Bad Request", error.message, { violations: error.violations });
      }
    }
    try {
      const file = path === "/" ? "index.html" : path.slice(1);
      send(200, types[extname(file)] ?? "application/octet-stream", readFileSync(new URL(file, dist)));
    } catch {
      send(404, "text/plain", "not found");
    }
  }

  const server = createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => answer(request, response, Buffer.concat(parts).toString()));
  });
  const listen = (port = 0) => new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(`http://127.0.0.1:${server.address().port}`)));
  return { state, listen, close: () => server.close() };
}

if (process.argv[1]?.endsWith("mock.mjs")) {
  const origin = await mock().listen(Number(process.argv[2] ?? 4173));
  console.log(`${origin}/#token=${token}`);
}
