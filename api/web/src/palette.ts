/**
 * Colours follow the thing, not its rank: a group keeps its slot while the page
 * is open, also when a refresh changes the order.
 */
export const slots = 8;
/** The slot of "other" and of what carries no value. */
export const muted = -1;

export class Palette {
  private readonly taken = new Map<string, number>();

  /** Gives every named group a slot; groups that are gone give theirs back. */
  assign(names: readonly string[]): Map<string, number> {
    for (const name of [...this.taken.keys()]) if (!names.includes(name)) this.taken.delete(name);
    for (const name of names) {
      if (this.taken.has(name)) continue;
      const used = new Set(this.taken.values());
      const free = Array.from({ length: slots }, (_, slot) => slot).find((slot) => !used.has(slot));
      if (free !== undefined) this.taken.set(name, free);
    }
    return new Map(this.taken);
  }
}

/** The CSS custom property of a slot. */
export function colourVariable(slot: number): string {
  return slot === muted ? "--series-muted" : `--series-${slot}`;
}
