/** Time: how finely a window is cut, and how its moments are written. */

const hour = 3_600_000;
const day = 24 * hour;

/** The granularity that gives a window of this length (ms) some 20 to 200 buckets. */
export function granularity(length: number): string {
  if (length <= 8 * day) return "PT1H";
  if (length <= 200 * day) return "P1D";
  if (length <= 1_000 * day) return "P1W";
  return "P1M";
}

/** A length no trace of real usage has: a window this long is open at its start. */
export const openLength = 5_000 * day;

/** The moments buckets end at, given their starts and the window's end (ms). */
export function bucketEnds(starts: readonly number[], end: number | null): number[] {
  return starts.map((start, index) => {
    const next = starts[index + 1];
    if (next !== undefined) return next;
    const before = starts[index - 1];
    return before === undefined ? Math.max(end ?? 0, start + hour) : start + (start - before);
  });
}

/** The moment, as the API takes it, at which a day such as "2026-10-01" begins in UTC or in the browser's zone. */
export function startOfDay(day: string, zone: "utc" | "local"): string {
  return new Date(`${day}T00:00:00${zone === "utc" ? "Z" : ""}`).toISOString();
}

/** Formatters for one zone; hours and minutes only where buckets are shorter than a day. */
export class Clock {
  private readonly hourly: Intl.DateTimeFormat;
  private readonly daily: Intl.DateTimeFormat;
  private readonly clock: Intl.DateTimeFormat;
  private readonly full: Intl.DateTimeFormat;

  constructor(readonly zone: string) {
    const make = (options: Intl.DateTimeFormatOptions) =>
      new Intl.DateTimeFormat("en-GB", { timeZone: zone, hourCycle: "h23", ...options });
    this.clock = make({ hour: "2-digit", minute: "2-digit" });
    this.daily = make({ day: "numeric", month: "short" });
    this.hourly = make({ weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
    this.full = make({ year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
  }

  /** "14:00", or the date at midnight. */
  tick(at: number): string {
    const time = this.clock.format(at);
    return time === "00:00" ? this.daily.format(at) : time;
  }

  date(at: number): string {
    return this.daily.format(at);
  }

  moment(at: number): string {
    return this.full.format(at);
  }

  /** A bucket: "Sun 22 Nov, 14:00 – 15:00", or "22 Nov" when it is a whole day. */
  bucket(start: number, end: number): string {
    if (end - start < 20 * hour) return `${this.hourly.format(start)} – ${this.clock.format(end)}`;
    const last = this.daily.format(end - 1);
    const first = this.daily.format(start);
    return first === last ? first : `${first} – ${last}`;
  }
}

/** How long ago, in the largest unit that fits: "just now", "42 s", "3 min", "5 h", "12 d". */
export function ago(at: number, now: number): string {
  const seconds = Math.max(0, Math.round((now - at) / 1000));
  if (seconds < 2) return "just now";
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.round(seconds / 3_600)} h ago`;
  return `${Math.round(seconds / 86_400)} d ago`;
}
