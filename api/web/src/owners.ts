/** Default owners, whom reports show untagged usage as when they are asked to. */
import type { DefaultOwners } from "./api/messages.ts";

/** The dimensions that can have one, as the API has them, with their titles. */
export const owned = [
  ["team", "Team"], ["service", "Service"], ["feature", "Feature"], ["agent", "Agent"], ["end_customer", "End customer"], ["environment", "Environment"],
] as const;

/** The owners that fields say; an empty one is none. */
export function ownersFrom(text: (dimension: string) => string): Record<string, string> {
  return Object.fromEntries(owned.map(([dimension]) => [dimension, text(dimension)]).filter(([, owner]) => owner));
}

/** Dimensions with their owners in the order of fields; the wanted one also where it has none. */
export function ownersOf(owners: DefaultOwners, wanted: string): [string, string][] {
  const all = owned.map(([dimension]): [string, string] => [dimension, owners.owners.get(dimension) ?? ""]);
  return all.filter(([dimension, owner]) => owner || dimension === wanted);
}
