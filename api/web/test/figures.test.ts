import assert from "node:assert/strict";
import { test } from "node:test";
import { exactCount, exactMicros, percent, plotShare, shortCount, shortHours, sum } from "../src/count.ts";
import { exactUSD, MoneyError, parseUSD, plotUSD, shortUSD } from "../src/money.ts";
import { bucketTotals, firstUsed, stack } from "../src/stack.ts";

test("money is read exactly", () => {
  const cases: [string, bigint][] = [
    ["0", 0n], ["0.000000000000", 0n], ["1", 10n ** 12n], ["0.000000000001", 1n], ["-0.000000000001", -1n],
    ["12.5", 12_500_000_000_000n], ["9007199254740993.000000000001", 9007199254740993000000000001n],
  ];
  for (const [text, want] of cases) assert.equal(parseUSD(text), want, text);
});

test("what is not money is refused", () => {
  for (const text of ["", " 1", "1.", ".5", "1e3", "1,000", "$1", "0.0000000000001", "NaN", "--1", "1\n"]) {
    assert.throws(() => parseUSD(text), MoneyError, JSON.stringify(text));
  }
});

test("money is printed exactly and as a person reads it", () => {
  const cases: [string, string, string][] = [
    ["0", "0.000000000000", "$0.00"],
    ["1234567.890123456789", "1,234,567.890123456789", "$1,234,567.89"],
    ["0.995", "0.995000000000", "$0.995"],
    ["0.9996", "0.999600000000", "$1.000"],
    ["1.005", "1.005000000000", "$1.01"],
    ["999.995", "999.995000000000", "$1,000.00"],
    ["0.01234567", "0.012345670000", "$0.0123"],
    ["0.000000012345", "0.000000012345", "$0.0000000123"],
    ["0.000000000001", "0.000000000001", "$0.000000000001"],
    ["-2.5", "−2.500000000000", "−$2.50"],
    ["9007199254740993.01", "9,007,199,254,740,993.010000000000", "$9,007,199,254,740,993.01"],
  ];
  for (const [text, exact, short] of cases) {
    assert.equal(exactUSD(parseUSD(text)), exact, text);
    assert.equal(shortUSD(parseUSD(text)), short, text);
  }
});

test("any amount is printed back as it was read", () => {
  let state = 1n;
  for (let round = 0; round < 2_000; round++) {
    state = (state * 6364136223846793005n + 1442695040888963407n) % 2n ** 64n;
    const amount = (state - 2n ** 63n) >> BigInt(round % 60);
    const text = exactUSD(amount).replaceAll(",", "").replace("−", "-");
    assert.equal(parseUSD(text), amount);
  }
});

test("sums are exact where floats are not", () => {
  const tenth = parseUSD("0.1");
  assert.equal(exactUSD(sum([tenth, tenth, tenth])), "0.300000000000");
  const many = Array.from({ length: 100_000 }, () => parseUSD("90071992547.000000000001"));
  assert.equal(exactUSD(sum(many)), "9,007,199,254,700,000.000000100000");
});

test("a mark's height is near the amount", () => {
  assert.equal(plotUSD(parseUSD("12.5")), 12.5);
  assert.equal(plotUSD(0n), 0);
});

test("counts", () => {
  const cases: [bigint, string][] = [
    [0n, "0"], [9_999n, "9,999"], [10_000n, "10.0 k"], [99_960n, "100 k"], [999_499n, "999 k"], [999_996n, "1.00 M"], [99_949n, "99.9 k"],
    [1_384_221n, "1.38 M"], [21_100_000_000n, "21.1 B"], [999_500n, "1.00 M"], [5_000_000_000_000_000n, "5,000,000,000,000,000"],
  ];
  for (const [count, want] of cases) assert.equal(shortCount(count), want, `${count}`);
  assert.equal(exactCount(1384221n), "1,384,221");
});

test("time of GPUs is read in hours and never reads as none when it is some", () => {
  const hour = 3_600_000_000n;
  const cases: [bigint, string, string][] = [
    [0n, "0.000", "0 µs"], [1n, "< 0.001", "1 µs"], [-1n, "> −0.001", "−1 µs"], [hour / 2_000n - 1n, "< 0.001", "1,799,999 µs"], [hour / 2_000n, "0.001", "1,800,000 µs"],
    [hour / 4n, "0.250", "900,000,000 µs"], [hour - 1n, "1.000", "3,599,999,999 µs"], [hour, "1.00", "3,600,000,000 µs"],
    [44_445_000_000n, "12.35", "44,445,000,000 µs"], [1_234n * hour, "1,234", "4,442,400,000,000 µs"], [687n * hour + hour / 10n, "687.1", "2,473,560,000,000 µs"], [-hour - hour / 4n, "−1.25", "−4,500,000,000 µs"],
    [12_345n * hour, "12.3 k", "44,442,000,000,000 µs"], [9_007_199_254_740_993n, "2.50 M", "9,007,199,254,740,993 µs"],
  ];
  for (const [micros, short, exact] of cases) {
    assert.equal(shortHours(micros), short, `${micros}`);
    assert.equal(exactMicros(micros), exact);
  }
});

test("a share never reads as none or all when it is not", () => {
  const cases: [bigint, bigint, string][] = [
    [0n, 10n, "0 %"], [0n, 0n, "0 %"], [10n, 10n, "100 %"], [1n, 1_000_000n, "< 0.01 %"], [999_999n, 1_000_000n, "> 99.9 %"],
    [1n, 3n, "33.3 %"], [34n, 10_000n, "0.34 %"], [9_994n, 10_000n, "99.9 %"], [9_995n, 10_000n, "> 99.9 %"], [1_995n, 200_000n, "1.0 %"],
  ];
  for (const [part, whole, want] of cases) assert.equal(percent(part, whole), want, `${part} of ${whole}`);
  assert.equal(plotShare(1n, 4n), 0.25);
  assert.equal(plotShare(5n, 4n), 1);
  assert.equal(plotShare(-5n, 4n), 0);
});

test("stacking adds each layer to those below", () => {
  assert.deepEqual(stack([[1n, 2n], [10n, 20n], [100n, 200n]]), [[1n, 2n], [11n, 22n], [111n, 222n]]);
  assert.deepEqual(stack([]), []);
  assert.deepEqual(bucketTotals([[1n, 2n], [10n, 20n]]), [11n, 22n]);
  assert.deepEqual(bucketTotals([]), []);
  assert.throws(() => stack([[1n], [1n, 2n]]), RangeError);
});

test("the first used bucket", () => {
  assert.equal(firstUsed([[0n, 0n, 1n], [0n, 2n, 0n]]), 1);
  assert.equal(firstUsed([[0n], [0n]]), -1);
  assert.equal(firstUsed([]), -1);
});
