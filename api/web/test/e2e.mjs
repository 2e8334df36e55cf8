// The page in a real Chromium: it shows the totals it was given, its charts
// have content, nothing is written to the console, and axe finds nothing.
//
//   npm run e2e                                   against the mock, and exactly
//   npm run e2e -- --url 'http://127.0.0.1:8080/#token=…'   against a server
//   … --shots DIR                                 keeps screenshots
import assert from "node:assert/strict";
import { mkdtempSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { mock, token } from "./mock.mjs";

const { values: flags } = parseArgs({ options: { url: { type: "string" }, shots: { type: "string" } } });
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const profile = mkdtempSync(join(tmpdir(), "tallystick-chromium-"));
if (flags.shots) mkdirSync(flags.shots, { recursive: true });

const browser = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  viewport: { width: 1440, height: 900 },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const stand = flags.url ? undefined : mock();
const origin = flags.url ? new URL(flags.url).origin : await stand.listen();
const address = flags.url ?? `${origin}/#token=${token}`;

/** What the browser complained about since last asked; failed requests that a test provoked are not complaints. */
const complaints = [];
const page = await browser.newPage();
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type()) && !/Failed to load resource/.test(message.text())) complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => {
  if (!request.url().startsWith(origin)) complaints.push(`asked elsewhere: ${request.url()}`);
});

const shot = (name) => flags.shots && page.screenshot({ path: join(flags.shots, `${name}.png`), fullPage: true });
const open = async (query = "") => {
  await page.goto(address.replace("/#", `/${query}#`));
  await page.reload();
};
const loaded = () => page.waitForSelector('[data-test="panel-side"] canvas');

/** The page is no wider than the screen, once the charts have followed its new size. */
async function fits() {
  const wider = () => document.documentElement.scrollWidth - innerWidth;
  await page.waitForFunction(() => document.documentElement.scrollWidth <= innerWidth, null, { timeout: 5000 }).catch(async () => {
    assert.fail(`the page is ${await page.evaluate(wider)} px wider than the screen`);
  });
}

async function accessible(where) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const found = violations.map((one) => `${one.id} (${one.nodes.length}): ${one.nodes[0].html.slice(0, 160)} ${one.nodes[0].failureSummary}`);
  assert.deepEqual(found, [], `axe, ${where}`);
}

/** The number of colours the chart's canvas is painted in, beside the ground. */
const colours = (panel) => page.evaluate((name) => {
  const canvas = document.querySelector(`[data-test="${name}"] canvas`);
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const counts = new Map();
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] < 255) continue;
    const key = `${data[at]},${data[at + 1]},${data[at + 2]}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return [...counts.values()].filter((count) => count > 200).length;
}, panel);

const checks = {
  async "shows totals, charts and the ledger"() {
    await open();
    await loaded();
    assert.match(await page.textContent('[data-test="total"]'), /^\$[\d,]+\.\d{2,}$/);
    assert.match(await page.textContent('[data-test="total-exact"]'), /^[\d,]+\.\d{12} USD$/);
    assert.match(await page.textContent('[data-test="ledger"]'), /This report covers entries 1…[\d,]+/);
    for (const panel of ["panel-main", "panel-side"]) {
      assert.ok((await colours(panel)) >= 2, `${panel} has no bars`);
    }
    assert.ok(!page.url().includes("token"), "the token stayed in the address");
    await shot("light");
    await accessible("light");
  },

  async "is as clean in the dark"() {
    await page.emulateMedia({ colorScheme: "dark" });
    await page.waitForTimeout(0);
    assert.ok((await colours("panel-main")) >= 2);
    await shot("dark");
    await accessible("dark");
    await page.emulateMedia({ colorScheme: "light" });
    await page.getByRole("button", { name: /^Theme: auto/ }).click();
    await page.getByRole("button", { name: /^Theme: light/ }).click();
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
    await page.getByRole("button", { name: /^Theme: dark/ }).click();
  },

  async "prints a pointed bucket and takes the arrow keys"() {
    const chart = page.locator('[data-test="panel-main"] [role="slider"]');
    await chart.focus();
    await page.keyboard.press("End");
    await page.keyboard.press("ArrowLeft");
    await page.waitForSelector(".tip");
    const count = Number(await chart.getAttribute("aria-valuemax"));
    assert.equal(Number(await chart.getAttribute("aria-valuenow")), count - 1);
    await shot("pointed");
    await accessible("tip");
  },

  async "has the figures as a table"() {
    await page.locator('[data-test="panel-main"]').getByText("Table", { exact: true }).click();
    await page.waitForSelector('[data-test="panel-main"] table.buckets');
    await shot("table");
    await accessible("table");
  },

  async "verifies what the report covers"() {
    await page.getByRole("button", { name: /^Verify/ }).click();
    await page.waitForSelector('[data-test="verdict"] .verdict');
    assert.match(await page.textContent('[data-test="verdict"]'), /^Intact/);
    await accessible("verdict");
  },

  async "keeps the view in the address"() {
    await page.getByLabel("Group by").selectOption("provider");
    await page.getByText("24 h", { exact: true }).click();
    await page.waitForFunction(() => /by=provider/.test(location.search) && /window=24h/.test(location.search));
    await page.waitForSelector(".overview:not(.stale)");
    await page.waitForSelector('section[aria-label="By provider"] canvas, section[aria-label="By provider"] table');
    await shot("day");
    await page.goBack();
    await page.waitForFunction(() => !/window=/.test(location.search));
  },

  async "shows all time"() {
    await open("?window=all&by=environment&metric=requests");
    await loaded();
    assert.ok((await colours("panel-main")) >= 1);
    await shot("all");
  },

  async "is usable on a phone"() {
    await page.setViewportSize({ width: 390, height: 844 });
    await open();
    await loaded();
    await shot("phone");
    await fits();
    assert.ok((await colours("panel-main")) >= 2, "no bars on a narrow screen");
    await accessible("phone");
  },
};

const digits = (text) => text.replace(/[^\d]/g, "");
const against = {
  async "prints the exact sum of what the server sent"() {
    // Everything was answered once before the reload, so that the answer is one of the document that stays.
    await open("?window=24h");
    await loaded();
    const [answer] = await Promise.all([
      page.waitForResponse((response) => response.url().includes("timeseries") && response.request().postData().includes('"team"')),
      page.reload(),
    ]);
    const { series } = await answer.json();
    await loaded();
    const sum = series.flatMap((one) => one.cost_usd).reduce((total, text) => total + BigInt(digits(text)), 0n);
    assert.ok(sum > 0n);
    assert.equal(BigInt(digits(await page.textContent('[data-test="total-exact"]'))), sum);
    assert.equal(BigInt(digits(await page.getAttribute('[data-test="panel-main"] [data-test="sum"]', "title"))), sum);
  },

  async "shows untagged usage as its owner's, and the same total"() {
    if (flags.url) return;
    await open();
    await loaded();
    const panel = page.locator('[data-test="panel-main"]');
    const total = await panel.locator('[data-test="sum"]').getAttribute("title");
    const before = await panel.locator("tbody th").allTextContents();
    assert.ok(before.includes("other"), `nothing beyond the eight among ${before}`); // the ninth is what is untagged
    assert.equal(await panel.locator('[data-test="allocated"]').count(), 0);
    const untagged = page.getByRole("combobox", { name: /^Untagged/ });
    await untagged.selectOption("default_owner");
    await panel.locator('[data-test="allocated"]').first().waitFor();
    assert.match(page.url(), /allocate=default_owner/);
    const after = await panel.locator("tbody th").allTextContents();
    assert.equal(after.length, before.length - 1);
    assert.ok(!after.includes("other") && !after.includes("untagged"), `untagged usage is left among ${after}`);
    assert.equal(await panel.locator('[data-test="sum"]').getAttribute("title"), total);
    const parts = await panel.locator('[data-test="allocated"]').evaluateAll((cells) => cells.map((cell) => cell.title));
    assert.equal(parts.filter((title) => !/^0\.0+ USD$/.test(title)).length, 2, `one owner and the sum of ${parts}`);
    await shot("allocated");
    await accessible("allocated");
    await untagged.selectOption("none");
    await page.waitForFunction(() => !document.querySelector('[data-test="allocated"]'));
  },

  async "shows the default owners and changes them"() {
    if (flags.url) return;
    const begun = [...stand.state.owners];
    const owners = page.locator('[data-test="owners"]');
    const team = page.getByLabel("Team", { exact: true });
    const change = () => owners.getByRole("button", { name: "Change…" }).click();
    const send = () => page.getByRole("button", { name: "Change the owners" }).click();
    const said = (text) => owners.locator('[data-test="said"]', { hasText: text }).waitFor();
    await open();
    await loaded();
    assert.equal(await owners.count(), 0, "owners where none is asked for");
    await page.getByRole("combobox", { name: /^Untagged/ }).selectOption("default_owner");
    await owners.getByText("team platform").waitFor();
    assert.match(await owners.textContent(), /version 1, for usage from 1 Oct 2026/);
    await accessible("owners");

    // A rule that is broken is named with its field, and the field is marked.
    await change();
    await page.getByRole("dialog", { name: "Default owners of acme" }).waitFor();
    assert.equal(await team.inputValue(), "platform");
    await team.fill("x".repeat(257));
    await send();
    await page.getByText("owners.team (length): an owner has at most 256 bytes").waitFor();
    assert.equal(await team.getAttribute("aria-invalid"), "true");
    await accessible("a refused owner");

    await team.fill("growth");
    await page.getByRole("textbox", { name: "Environment" }).fill(" prod ");
    await page.getByLabel("From (optional)").fill("2026-11-01");
    await shot("owners-dialog");
    await page.keyboard.press("Enter");
    await said("The default owners are changed: version 2, for usage from 1 Nov 2026, 00:00:00.");
    await owners.getByText("environment prod").waitFor();
    assert.deepEqual(stand.state.owners.at(-1), { version: "2", owners: { team: "growth", environment: "prod" }, effective_from: "2026-11-01T00:00:00.000Z", created_by: "tok_1" });
    const growth = page.locator('[data-test="panel-main"] tr', { hasText: "growth" }).locator('[data-test="allocated"]');
    await growth.filter({ hasText: "$" }).waitFor(); // the report is asked again
    await shot("owners");
    await accessible("changed owners");

    await change();
    await send();
    await said("nothing is changed");
    assert.equal(stand.state.owners.length, 2);

    // Somebody else's change is not undone unseen.
    await change();
    stand.state.owners.push({ version: "3", owners: { team: "mobile" }, effective_from: "2026-11-01T00:00:00Z", created_by: "tok_9" });
    await team.fill("search");
    await send();
    await page.getByText("Version 3 was made meanwhile by tok_9, so this change is refused.").waitFor();
    assert.equal(stand.state.owners.length, 3);
    assert.equal(await team.inputValue(), "search");
    await page.emulateMedia({ colorScheme: "dark" });
    await shot("owners-conflict");
    await accessible("a conflict of owners, dark");
    await page.emulateMedia({ colorScheme: "light" });
    await page.getByRole("button", { name: "Show its owners" }).click();
    assert.equal(await team.inputValue(), "mobile");
    assert.equal(await page.locator("dialog .alert").count(), 0);
    await team.fill("");
    await send();
    await owners.getByText("team has none").waitFor();
    assert.deepEqual(stand.state.owners.at(-1).owners, {});

    stand.state.fault = "viewer";
    await change();
    await team.fill("search");
    await send();
    await page.getByText("with a token of the scope admin").waitFor();
    await page.setViewportSize({ width: 390, height: 844 });
    await shot("owners-phone");
    await accessible("owners are not yours");
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => !document.querySelector("dialog"));
    await fits();
    stand.state.fault = "";
    assert.equal(stand.state.owners.length, 4);
    stand.state.owners = begun;
  },

  async "shows hours of GPUs by group where there are some"() {
    await open("?tenant=globex");
    await loaded();
    const panel = page.locator('[data-test="panel-main"]');
    const titles = (where) => panel.locator(`${where} [data-test="hours"]`).evaluateAll((cells) => cells.map((cell) => cell.title));
    // Eight GPUs for seven days, whoever used them.
    const all = `${(8n * 168n * 3_600_000_000n).toLocaleString("en")} µs`;
    assert.deepEqual(await titles("tfoot"), [all]);
    assert.equal(await page.textContent('[data-test="gpu-hours"]'), "1,344");
    const groups = await titles("tbody");
    assert.equal(groups.length, await panel.locator("tbody tr").count());
    assert.equal(groups.filter((title) => title !== "0 µs").length, 2, `one team and nobody among ${groups}`);
    assert.equal(groups.reduce((total, title) => total + BigInt(digits(title)), 0n), BigInt(digits(all)));
    assert.equal(await panel.locator("thead").getByText("GPU hours").count(), 1);
    await shot("gpus");
    await accessible("GPU hours");
    await open("?tenant=globex&allocate=default_owner");
    await loaded();
    assert.deepEqual(await titles("tfoot"), [all]);
    await shot("gpus-allocated");
    await page.setViewportSize({ width: 390, height: 844 });
    await shot("gpus-phone");
    await fits();
    await page.setViewportSize({ width: 1440, height: 900 });
    await open();
    await loaded();
    assert.equal(await page.locator('[data-test="hours"], [data-test="gpu-hours"]').count(), 0, "hours of GPUs where there are none");
  },

  async "keeps only what a filter names"() {
    await page.locator('[data-test="panel-main"]').getByRole("button", { name: "search", exact: true }).click();
    await page.waitForFunction(() => location.search.includes("where=team%3Asearch"));
    await page.waitForFunction(() => document.querySelectorAll('[data-test="panel-main"] .groups tbody tr').length === 1);
    await shot("filtered");
    await page.getByRole("button", { name: /remove filter/ }).click();
    await page.waitForFunction(() => !location.search.includes("where"));
  },

  async "says so when a window is empty"() {
    await open("?tenant=quiet");
    await page.getByText("No usage in this window").first().waitFor();
    await shot("empty");
    await accessible("empty");
  },

  async "shows a problem and recovers"() {
    stand.state.fault = "store";
    await open();
    await page.getByText("The report store is away").waitFor();
    assert.match(await page.textContent(".alert"), /ClickHouse does not answer.*req-7f3a/s);
    await shot("problem");
    await accessible("problem");
    // Paused, so that the page does not recover by itself before the button is pressed.
    await page.getByRole("button", { name: "Live" }).click();
    stand.state.fault = "";
    await page.getByRole("button", { name: "Try again" }).click();
    await loaded();
    assert.equal(await page.locator(".alert").count(), 0);
    await page.getByRole("button", { name: "Paused" }).click();
  },

  async "recovers from a problem by itself"() {
    stand.state.fault = "store";
    await open();
    await page.getByText("The report store is away").waitFor();
    stand.state.fault = "";
    await loaded();
  },

  async "shows a broken ledger and a halted partition"() {
    stand.state.fault = "broken";
    await page.getByRole("button", { name: /^Verify/ }).click();
    await page.getByText(/First bad entry #4,212/).waitFor();
    stand.state.fault = "halted";
    await page.getByText(/partition 2: the chain/).waitFor();
    await shot("broken");
    await accessible("broken");
    stand.state.fault = "";
  },

  async "follows the ledger"() {
    const before = stand.state.requests.filter((one) => one.includes("summary")).length;
    stand.state.entries += 1000n;
    await page.getByText("#1,385,221").waitFor();
    await page.waitForFunction(() => /1…1,385,221/.test(document.querySelector('[data-test="ledger"]').textContent), null, { timeout: 20_000 });
    assert.ok(stand.state.requests.filter((one) => one.includes("summary")).length > before);
  },

  async "adds, rotates and revokes a provider key, and keeps none"() {
    const [first, second] = ["sk-proj-first-0123456789abcdef", "sk-proj-second-fedcba9876543210"];
    const nowhere = async () => {
      const everything = await page.evaluate(() => [
        document.documentElement.outerHTML, location.href, JSON.stringify(localStorage), JSON.stringify(sessionStorage),
        ...[...document.querySelectorAll("input")].map((one) => one.value),
      ].join("\n"));
      for (const value of [first, second]) {
        assert.ok(!everything.includes(value), "the page still has the key");
        assert.ok(!stand.state.requests.join("\n").includes(value), "a key was in a URL");
      }
    };
    await open();
    await page.getByRole("link", { name: "Provider keys" }).click();
    await page.waitForFunction(() => location.search.includes("page=keys"));
    await page.getByText("There is no key yet").waitFor();

    // A rule that is broken is named with its field, and the field is marked.
    const add = page.locator('[data-test="add"]');
    await add.getByLabel("Provider").fill("Open AI");
    await add.getByLabel("Key", { exact: true }).fill(first);
    await add.getByRole("button", { name: "Add the key" }).click();
    await page.getByText("provider (pattern): begins with a letter").waitFor();
    assert.equal(await add.getByLabel("Provider").getAttribute("aria-invalid"), "true");
    await nowhere();
    await accessible("a refused key");

    assert.equal(await add.getByLabel("Key", { exact: true }).getAttribute("type"), "password");
    await add.getByLabel("Provider").fill("openai");
    await add.getByLabel("Key", { exact: true }).fill(first);
    await page.keyboard.press("Enter");
    await page.getByText("sk-p…cdef of openai is added").waitFor();
    await page.getByRole("rowheader", { name: "openai" }).waitFor();
    await nowhere();
    await accessible("keys");
    await shot("keys");

    // By keyboard alone: Escape leaves, and the focus goes back to what opened the dialog.
    await page.getByRole("button", { name: "Rotate openai" }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog", { name: "Rotate openai" }).waitFor();
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => !document.querySelector("dialog"));
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Rotate openai");
    await page.keyboard.press("Enter");
    assert.match(await page.textContent("dialog"), /lives for 24 hours/);
    await page.getByLabel("New key").fill(second);
    await shot("rotate");
    await accessible("rotate");
    await page.keyboard.press("Enter");
    await page.getByText(/openai is rotated: new calls go with sk-p…3210\. The old key lives until/).waitFor();
    await page.locator(".badge", { hasText: "rotating" }).waitFor();
    await nowhere();

    // Revoking asks, and Cancel is no.
    const revoke = page.getByRole("button", { name: "Revoke openai" });
    await revoke.click();
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.waitForFunction(() => !document.querySelector("dialog"));
    assert.ok(!stand.state.requests.some((one) => one.includes(":revoke")));
    await page.emulateMedia({ colorScheme: "dark" });
    await revoke.click();
    await accessible("revoke, dark");
    await shot("revoke");
    await page.getByRole("button", { name: "Revoke for ever" }).click();
    await page.getByText("is revoked and its values are taken out").waitFor();
    await page.locator(".badge", { hasText: "revoked" }).waitFor();
    assert.equal(await revoke.count(), 0, "a revoked key has buttons");
    await accessible("keys, dark");
    await shot("keys-dark");
    await page.emulateMedia({ colorScheme: "light" });
    await page.setViewportSize({ width: 390, height: 844 });
    await shot("keys-phone");
    await fits();
  },

  async "shows a token that is no admin's no keys and no button"() {
    stand.state.fault = "viewer";
    await open("?page=keys");
    await page.locator('[data-test="forbidden"]').waitFor();
    assert.equal(await page.locator("main button, main input").count(), 0);
    await accessible("no admin");
    stand.state.fault = "";
  },

  async "asks for a token where it has none or a wrong one"() {
    await page.evaluate(() => sessionStorage.clear());
    await page.goto(origin);
    await page.getByLabel("Token").fill("wrong");
    await page.getByRole("button", { name: "Open the dashboard" }).click();
    await page.getByText("The token is not known.").waitFor();
    await shot("token");
    await accessible("token");
    await page.getByLabel("Token").fill(token);
    await page.keyboard.press("Enter");
    await loaded();
  },
};

let failed = 0;
try {
  for (const [name, check] of Object.entries(stand ? { ...checks, ...against } : checks)) {
    const begun = Date.now();
    try {
      await page.setViewportSize({ width: 1440, height: 900 });
      await check();
      assert.deepEqual(complaints.splice(0), [], "the browser complained");
      console.log(`ok   ${name} (${Date.now() - begun} ms)`);
    } catch (error) {
      failed++;
      complaints.length = 0;
      console.error(`FAIL ${name}\n${error.stack ?? error}`);
      await shot(`failed-${failed}`);
    }
  }
} finally {
  await browser.close();
  stand?.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(failed ? `web: ${failed} failed` : "web: ok");
process.exit(failed ? 1 : 0);
