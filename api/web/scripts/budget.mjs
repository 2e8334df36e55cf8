// Prints what the page weighs and fails when its script, compressed as the
// server sends it, exceeds the budget of 100 KiB.
import { readFileSync, readdirSync } from "node:fs";
import { gzipSync } from "node:zlib";

const budgetBytes = 100 * 1024;
const assets = new URL("../dist/assets/", import.meta.url);
const gzipBytes = (name) => gzipSync(readFileSync(new URL(name, assets)), { level: 6 }).length;
const total = (ending) =>
  readdirSync(assets).filter((name) => name.endsWith(ending)).reduce((sum, name) => sum + gzipBytes(name), 0);
const kib = (bytes) => (bytes / 1024).toFixed(1) + " KiB";

const script = total(".js");
console.log(`web: script ${kib(script)} gzip of ${kib(budgetBytes)}, style ${kib(total(".css"))} gzip`);
if (script === 0 || script > budgetBytes) {
  console.error(script === 0 ? "web: the build has no script" : "web: the script exceeds its budget");
  process.exit(1);
}
