/** Counts are bigints, as the API's 64-bit integers are; nothing here rounds twice. */

/** "1,384,221" */
export function exactCount(count: bigint): string {
  return count.toString().replace(/\B(?=(\d{3})+$)/g, ",");
}

/** "1.38 M": three digits from ten thousand up, exact below. Halves round up. */
export function shortCount(count: bigint): string {
  if (count < 10_000n) return exactCount(count);
  for (const [scale, name] of scales) {
    for (const keep of [2, 1, 0]) {
      const digits = (count * 10n ** BigInt(keep) + scale / 2n) / scale;
      if (digits < 1_000n) return `${fixed(digits, keep)} ${name}`;
    }
  }
  return exactCount(count);
}

/**
 * Time of GPUs, in microseconds of whole devices, as hours: "0.250", "12.35",
 * "1,344". The fewer places the longer it is, and short as a count is from ten
 * thousand up; halves round away from zero. What is not zero never reads as zero.
 */
export function shortHours(micros: bigint): string {
  const size = micros < 0n ? -micros : micros;
  if (size > 0n && size < hour / 2_000n) return micros < 0n ? "> −0.001" : "< 0.001";
  return (micros < 0n ? "−" : "") + hours(size);
}

function hours(micros: bigint): string {
  const places = micros < hour ? 3 : micros < 100n * hour ? 2 : micros < 1_000n * hour ? 1 : 0;
  const rounded = (micros * 10n ** BigInt(places) + hour / 2n) / hour;
  return places > 0 ? fixed(rounded, places) : shortCount(rounded);
}

/** The time in full: "44,445,000,000 µs". */
export function exactMicros(micros: bigint): string {
  return `${micros < 0n ? "−" : ""}${exactCount(micros < 0n ? -micros : micros)} µs`;
}

const hour = 3_600_000_000n;
const scales: readonly (readonly [bigint, string])[] = [[10n ** 3n, "k"], [10n ** 6n, "M"], [10n ** 9n, "B"], [10n ** 12n, "T"]];

/**
 * part of whole in percent: "0 %", "12.4 %", "< 0.01 %". A part that is not
 * zero never reads as zero, and one that is not all never as "100 %".
 */
export function percent(part: bigint, whole: bigint): string {
  if (whole <= 0n || part === 0n) return "0 %";
  if (part === whole) return "100 %";
  const hundredths = (part * 10_000n + whole / 2n) / whole;
  if (hundredths <= 0n) return "< 0.01 %";
  if (hundredths < 100n) return `${fixed(hundredths, 2)} %`;
  const tenths = (part * 1_000n + whole / 2n) / whole;
  return tenths >= 1_000n && part < whole ? "> 99.9 %" : `${fixed(tenths, 1)} %`;
}

/** part of whole as a number from 0 to 1, for the width of a mark only. */
export function plotShare(part: bigint, whole: bigint): number {
  if (whole <= 0n || part <= 0n) return 0;
  return Math.min(1, Number((part * 1_000_000n) / whole) / 1_000_000);
}

export function sum(values: Iterable<bigint>): bigint {
  let total = 0n;
  for (const value of values) total += value;
  return total;
}

/** value / 10^places, all places written. */
function fixed(value: bigint, places: number): string {
  const text = value.toString().padStart(places + 1, "0");
  return places === 0 ? text : `${text.slice(0, -places)}.${text.slice(-places)}`;
}
