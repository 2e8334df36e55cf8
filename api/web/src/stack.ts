/** Stacking: each layer's top is the exact sum of the layers below and its own. */

/** tops[i][b] is the sum of layers 0..i in bucket b. All layers have one value per bucket. */
export function stack(layers: readonly (readonly bigint[])[]): bigint[][] {
  const tops: bigint[][] = [];
  for (const layer of layers) {
    const below = tops.at(-1);
    if (below && below.length !== layer.length) throw new RangeError("layers of different length");
    tops.push(layer.map((value, bucket) => value + (below?.[bucket] ?? 0n)));
  }
  return tops;
}

/** The sum over all layers, per bucket; empty without layers. */
export function bucketTotals(layers: readonly (readonly bigint[])[]): bigint[] {
  return stack(layers).at(-1) ?? [];
}

/** Index of the first bucket that has a value in any layer, or -1. */
export function firstUsed(layers: readonly (readonly bigint[])[]): number {
  const used = layers.map((layer) => layer.findIndex((value) => value !== 0n)).filter((index) => index >= 0);
  return used.length ? Math.min(...used) : -1;
}
