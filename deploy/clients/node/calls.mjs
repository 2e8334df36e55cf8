// Makes calls through the proxy with the OpenAI or the Anthropic SDK.
//
// calls.mjs openai|anthropic BASE_URL <jobs: reads JSON lines of jobs from standard input and prints one line of JSON for
// each, with what the SDK made of the answer. The token is in TALLYSTICK_TOKEN; a job may have another one.
import { createInterface } from "node:readline";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [, , which, baseURL] = process.argv;
const clients = new Map();

function client(token) {
  if (!clients.has(token)) {
    const Client = which === "openai" ? OpenAI : Anthropic;
    clients.set(token, new Client({ apiKey: token, baseURL, timeout: 60_000 }));
  }
  return clients.get(token);
}

const resource = {
  chat: (c) => c.chat.completions,
  responses: (c) => c.responses,
  embeddings: (c) => c.embeddings,
  messages: (c) => c.messages,
  beta_messages: (c) => c.beta.messages,
};

// What a call used, as the SDK's objects say it.
function count(usage) {
  if (!usage) return null;
  if (usage.prompt_tokens != null) return { prompt: usage.prompt_tokens, completion: usage.completion_tokens ?? 0 };
  const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
  return { prompt: (usage.input_tokens ?? 0) + cached, completion: usage.output_tokens ?? 0 };
}

async function readStream(stream, job, out) {
  let usage = null;
  out.events = 0;
  for await (const event of stream) {
    out.events++;
    const said = event.usage ?? event.message?.usage ?? event.response?.usage;
    // Later statements of the same call win.
    if (said) usage = { ...usage, ...Object.fromEntries(Object.entries(said).filter(([, v]) => v != null)) };
    if (out.events === job.leave_after) break; // the SDK aborts the request
  }
  out.usage = count(usage);
}

// The lines of a batch's results, and what they used together.
async function readBatch(c, job, out) {
  Object.assign(out, { events: 0, usage: { prompt: 0, completion: 0 } });
  const add = (usage) => {
    const used = count(usage);
    out.events++;
    out.usage.prompt += used?.prompt ?? 0;
    out.usage.completion += used?.completion ?? 0;
  };
  if (which === "anthropic") {
    const lines = await c.messages.batches.results(job.request.id, {}, { headers: job.headers, maxRetries: 0 });
    for await (const line of lines) add(line.result.message?.usage);
    return;
  }
  const file = await c.files.content(job.request.id, { headers: job.headers, maxRetries: 0 });
  for (const line of (await file.text()).trim().split("\n")) add(JSON.parse(line).response?.body.usage);
}

async function run(line) {
  const job = JSON.parse(line);
  const out = { id: job.id, ok: false };
  const c = client(job.token || process.env.TALLYSTICK_TOKEN);
  try {
    if (job.method === "batch_results") {
      await readBatch(c, job, out);
      return JSON.stringify({ ...out, ok: true });
    }
    const { data, response } = await resource[job.method](c)
      .create(job.request, { headers: job.headers, maxRetries: job.retries ?? 0, timeout: 60_000 })
      .withResponse();
    out.event_id = response.headers.get("x-tallystick-event-id");
    if (job.stream) await readStream(data, job, out);
    else out.usage = count(data.usage);
    out.ok = true;
  } catch (e) {
    Object.assign(out, { error: e.constructor.name, status: e.status, message: String(e.message).slice(0, 300) });
    out.event_id = e.headers?.get?.("x-tallystick-event-id") ?? out.event_id;
  }
  return JSON.stringify(out);
}

const jobs = [];
for await (const line of createInterface({ input: process.stdin })) jobs.push(line);
await Promise.all(
  Array.from({ length: 4 }, async () => {
    for (let line = jobs.shift(); line !== undefined; line = jobs.shift()) console.log(await run(line));
  }),
);
