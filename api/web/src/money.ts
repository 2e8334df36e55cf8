/**
 * Money as the ledger counts it: whole picos (1e-12 USD) in a bigint.
 *
 * Every figure the page prints is summed and rounded here, in integers. The
 * one function that leaves them, `plotUSD`, is for the height of a mark on a
 * canvas and never for text.
 */
export type Picos = bigint;

const digits = 12;
const unit: Picos = 10n ** BigInt(digits);

/** Thrown for text that is not a decimal number with at most 12 places. */
export class MoneyError extends Error {}

/** Reads a decimal string of USD, such as "12.5" or "-0.000000000001". */
export function parseUSD(text: string): Picos {
  const match = /^(-?)(\d+)(?:\.(\d{1,12}))?$/.exec(text);
  if (!match) throw new MoneyError(`not an amount of money: ${JSON.stringify(text.slice(0, 40))}`);
  const [, sign, whole = "0", part = ""] = match;
  const size = BigInt(whole) * unit + BigInt(part.padEnd(digits, "0"));
  return sign ? -size : size;
}

/** The exact amount, all 12 places: "1,234.500000000000". */
export function exactUSD(amount: Picos): string {
  return decimal(amount, digits);
}

/**
 * The amount as a person reads it: cents from one dollar up, below that the
 * first three digits that are not zero. Halves round away from zero.
 */
export function shortUSD(amount: Picos): string {
  const size = amount < 0n ? -amount : amount;
  const text = decimal(round(size, places(size)), places(size));
  return (amount < 0n ? "−$" : "$") + text;
}

/** The amount as a float of USD, for the height of a mark only. */
export function plotUSD(amount: Picos): number {
  return Number(amount) / Number(unit);
}

function places(size: Picos): number {
  if (size === 0n || size >= unit) return 2;
  const zeros = digits - size.toString().length;
  return Math.min(digits, Math.max(2, zeros + 3));
}

function round(size: Picos, keep: number): Picos {
  const step = 10n ** BigInt(digits - keep);
  return ((size + step / 2n) / step) * step;
}

function decimal(amount: Picos, keep: number): string {
  const size = amount < 0n ? -amount : amount;
  const whole = group((size / unit).toString());
  const part = (size % unit).toString().padStart(digits, "0").slice(0, keep);
  return (amount < 0n ? "−" : "") + whole + (keep > 0 ? "." + part : "");
}

function group(whole: string): string {
  return whole.replace(/\B(?=(\d{3})+$)/g, ",");
}
