/** Provider keys as the page tells of them. */
import type { ProviderKey } from "./api/messages.ts";

/** The providers that the proxy knows by themselves; any other name may be typed. */
export const knownProviders = [
  "openai", "anthropic", "gemini", "vertex", "bedrock", "azure", "mistral", "cohere", "deepseek", "xai", "groq", "openrouter",
] as const;

export type KeyState = "in force" | "rotating" | "due" | "revoked";

/** What a key's state is at a time: while it is rotating the value before lives too; due is one that should have been rotated. */
export function stateOf(key: ProviderKey, now: number): KeyState {
  if (key.revoked_at !== null) return "revoked";
  if (key.previous_until !== null && key.previous_until > now) return "rotating";
  return key.rotate_by !== null && key.rotate_by < now ? "due" : "in force";
}

/** Keys in the order people look for them: those in force by provider and name, then revoked ones, the newest first. */
export function sorted(keys: readonly ProviderKey[]): ProviderKey[] {
  return [...keys].sort((a, b) => {
    if ((a.revoked_at === null) !== (b.revoked_at === null)) return a.revoked_at === null ? -1 : 1;
    if (a.revoked_at !== null && b.revoked_at !== null) return b.revoked_at - a.revoked_at;
    return compare(a.provider, b.provider) || compare(a.name, b.name);
  });
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** "openai", or "openai (batch)" where the name says more. */
export function titleOf(key: Pick<ProviderKey, "provider" | "name">): string {
  return key.name === key.provider ? key.provider : `${key.provider} (${key.name})`;
}
