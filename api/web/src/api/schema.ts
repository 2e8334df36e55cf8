/**
 * A message of the API as a table of its fields. From the table follow the
 * TypeScript type, the decoder, and a test that compares every name and kind
 * with the .proto files.
 *
 * Decoding is strict in kind and lenient in presence: proto3 may leave out a
 * field that has its zero value, so a missing one is that zero; one of another
 * kind is a DecodeError naming its path.
 */
import { parseUSD, type Picos } from "../money.ts";

export class DecodeError extends Error {}

export interface Field<T> {
  /** The type in the .proto, such as "int64" or "repeated string". */
  readonly proto: string;
  read(value: unknown, path: string): T;
}

type Fields = Record<string, Field<unknown>>;
type Message<F extends Fields> = { readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never };
export type Infer<S> = S extends Field<infer T> ? T : never;

export interface Schema<F extends Fields> extends Field<Message<F>> {
  readonly fields: F;
}

function fail(path: string, want: string): never {
  throw new DecodeError(`the answer's ${path || "body"} is not ${want}`);
}

/** A message; `name` is its name in the .proto. */
export function message<F extends Fields>(name: string, fields: F): Schema<F> {
  return {
    proto: name,
    fields,
    read(value, path) {
      const source = value ?? {};
      if (typeof source !== "object" || Array.isArray(source)) fail(path, "an object");
      const out: Record<string, unknown> = {};
      for (const [key, field] of Object.entries(fields)) {
        out[key] = field.read((source as Record<string, unknown>)[key], path ? `${path}.${key}` : key);
      }
      return out as Message<F>;
    },
  };
}

export const text: Field<string> = {
  proto: "string",
  read: (value, path) => (value == null ? "" : typeof value === "string" ? value : fail(path, "text")),
};

export const flag: Field<boolean> = {
  proto: "bool",
  read: (value, path) => (value == null ? false : typeof value === "boolean" ? value : fail(path, "true or false")),
};

export const int64: Field<bigint> = {
  proto: "int64",
  read(value, path) {
    if (value == null) return 0n;
    if (typeof value === "string" && /^-?\d+$/.test(value)) return BigInt(value);
    return fail(path, "a whole number as text");
  },
};

export const int32: Field<number> = {
  proto: "int32",
  read: (value, path) => (value == null ? 0 : Number.isInteger(value) ? (value as number) : fail(path, "a whole number")),
};

/** A rate; never money. */
export const double: Field<number> = {
  proto: "double",
  read: (value, path) => (value == null ? 0 : typeof value === "number" ? value : fail(path, "a number")),
};

/** A decimal string of USD. */
export const usd: Field<Picos> = {
  proto: "string",
  read(value, path) {
    if (value == null || value === "") return 0n;
    if (typeof value !== "string") return fail(path, "an amount as text");
    try {
      return parseUSD(value);
    } catch {
      return fail(path, "an amount of money");
    }
  },
};

/** Milliseconds since 1970, or null when absent. */
export const timestamp: Field<number | null> = {
  proto: "google.protobuf.Timestamp",
  read(value, path) {
    if (value == null) return null;
    const at = typeof value === "string" ? Date.parse(value) : NaN;
    return Number.isNaN(at) ? fail(path, "a time") : at;
  },
};

export function repeated<T>(item: Field<T>): Field<readonly T[]> {
  return {
    proto: `repeated ${item.proto}`,
    read(value, path) {
      if (value == null) return [];
      if (!Array.isArray(value)) return fail(path, "a list");
      return value.map((one, index) => item.read(one, `${path}[${index}]`));
    },
  };
}

export function mapOf<T>(item: Field<T>): Field<ReadonlyMap<string, T>> {
  return {
    proto: `map<string, ${item.proto}>`,
    read(value, path) {
      if (value == null) return new Map();
      if (typeof value !== "object" || Array.isArray(value)) return fail(path, "an object");
      return new Map(Object.entries(value).map(([key, one]) => [key, item.read(one, `${path}.${key}`)]));
    },
  };
}
