/**
 * Stacked bars over time on a canvas (uPlot). Marks are drawn from floats; what
 * is printed when a bucket is pointed at, or reached with the arrow keys, comes
 * from the exact values.
 */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { exactCount, shortCount } from "../count.ts";
import { exactUSD, plotUSD, shortUSD } from "../money.ts";
import { colourVariable } from "../palette.ts";
import type { Clock } from "../period.ts";
import { bucketTotals, stack } from "../stack.ts";
import type { Metric } from "../view.ts";
import { Swatch } from "./panel.tsx";

export interface Layer {
  readonly title: string;
  readonly slot: number;
  readonly values: readonly bigint[];
}

interface Props {
  readonly starts: readonly number[];
  readonly ends: readonly number[];
  readonly layers: readonly Layer[];
  readonly metric: Metric;
  readonly clock: Clock;
  /** The layer to bring out; the others step back. */
  readonly lit: number | null;
}

interface Pointed {
  readonly bucket: number;
  /** CSS pixels from the left of the chart. */
  readonly left: number;
}

const heightPx = 232;
const seconds = (ms: number) => ms / 1000;

export function StackedChart(props: Props) {
  const { starts, ends, layers, metric, clock, lit } = props;
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [pointed, setPointed] = useState<Pointed | null>(null);
  const totals = useMemo(() => bucketTotals(layers.map((layer) => layer.values)), [layers]);
  const latest = useRef({ ...props, setPointed });
  latest.current = { ...props, setPointed };

  const shape = `${metric} ${clock.zone} ${layers.map((layer) => `${layer.slot}`).join(" ")} ${starts.length}`;
  useEffect(() => {
    const host = box.current!;
    const build = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(latest, host.clientWidth), data(latest.current), host);
    };
    build();
    const sized = new ResizeObserver(() => plot.current?.setSize({ width: host.clientWidth, height: heightPx }));
    sized.observe(host);
    const system = matchMedia("(prefers-color-scheme: dark)");
    document.addEventListener("themechange", build);
    system.addEventListener("change", build);
    return () => {
      sized.disconnect();
      document.removeEventListener("themechange", build);
      system.removeEventListener("change", build);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);

  useEffect(() => plot.current?.setData(data(latest.current)), [layers, starts]);
  useEffect(() => plot.current?.redraw(false), [lit]);

  const print = metric === "cost" ? shortUSD : exactCount;
  const move = (event: KeyboardEvent) => {
    const at = step(event.key, pointed?.bucket ?? starts.length, starts.length);
    const drawn = plot.current;
    if (at === null || !drawn) return;
    event.preventDefault();
    const left = drawn.valToPos(middle(starts, ends, at), "x");
    drawn.setCursor({ left, top: drawn.over.clientHeight / 2 });
  };
  const at = pointed?.bucket ?? starts.length - 1;
  return (
    <div class="plot stacked-chart">
      <div ref={box} class="canvas" role="slider" tabIndex={0} onKeyDown={move}
        onBlur={() => plot.current?.setCursor({ left: -10, top: -10 })}
        aria-label={`${metric} over time, ${starts.length} buckets, arrow keys move; the same figures are under Table`}
        aria-valuemin={1} aria-valuemax={starts.length} aria-valuenow={at + 1} aria-valuetext={spoken(props, at, totals)} />
      {pointed && starts[pointed.bucket] !== undefined && (
        <div class={`tip ${pointed.left > (box.current?.clientWidth ?? 0) / 2 ? "left" : "right"}`} style={{ left: `${pointed.left}px` }}>
          <p>{clock.bucket(starts[pointed.bucket]!, ends[pointed.bucket]!)}</p>
          <table>
            <tbody>
              {layers.map((layer, index) => layer.values[pointed.bucket] ? (
                <tr key={layer.title} class={lit === index ? "lit" : ""}>
                  <th><Swatch slot={layer.slot} />{layer.title}</th><td>{print(layer.values[pointed.bucket]!)}</td>
                </tr>
              ) : null)}
            </tbody>
            <tfoot><tr><th>Total</th><td title={metric === "cost" ? exactUSD(totals[pointed.bucket] ?? 0n) : ""}>{print(totals[pointed.bucket] ?? 0n)}</td></tr></tfoot>
          </table>
        </div>
      )}
    </div>
  );
}

function spoken({ starts, ends, clock, metric }: Props, at: number, totals: readonly bigint[]): string {
  if (starts[at] === undefined) return "nothing";
  const total = totals[at] ?? 0n;
  return `${clock.bucket(starts[at], ends[at]!)}: ${metric === "cost" ? shortUSD(total) : `${exactCount(total)} requests`}`;
}

/** The bucket a key leads to, or null for other keys. */
function step(key: string, from: number, count: number): number | null {
  const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: count - 1 }[key];
  return to === undefined ? null : Math.min(count - 1, Math.max(0, to));
}

function middle(starts: readonly number[], ends: readonly number[], at: number): number {
  return seconds((starts[at]! + ends[at]!) / 2);
}

/** x is each bucket's middle; the series are the stack's tops, highest first, so that lower ones paint over. */
function data({ starts, ends, layers, metric }: Props): uPlot.AlignedData {
  const tops = stack(layers.map((layer) => layer.values)).reverse();
  const plotted = metric === "cost" ? plotUSD : Number;
  return [starts.map((_, at) => middle(starts, ends, at)), ...tops.map((top) => top.map(plotted))];
}

type Latest = { current: Props & { setPointed: (pointed: Pointed | null) => void } };

function options(latest: Latest, width: number): uPlot.Options {
  const { layers, clock, metric } = latest.current;
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { font, stroke: colour("--text-3"), ticks: { show: false } };
  const last = layers.length - 1;
  const surface = colour("--surface");
  return {
    width,
    height: heightPx,
    padding: [10, 18, 0, 0],
    legend: { show: false },
    tzDate: (at) => uPlot.tzDate(new Date(at * 1000), clock.zone === "UTC" ? "Etc/UTC" : clock.zone),
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false, setScale: false } },
    scales: {
      x: { range: () => [seconds(latest.current.starts[0] ?? 0), seconds(latest.current.ends.at(-1) ?? 1)] },
      y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] },
    },
    axes: [
      { ...axis, size: 26, gap: 6, space: 64, grid: { show: false }, values: (_, splits) => splits.map((at) => clock.tick(at * 1000)) },
      { ...axis, size: 54, gap: 6, space: 40, grid: { stroke: colour("--grid"), width: 1 }, values: (_, splits) => splits.map((value) => axisLabel(value, metric)) },
    ],
    series: [{}, ...layers.map((_, index) => {
      const of = last - index;
      const base = colour(colourVariable(layers[of]!.slot));
      const fill = () => (latest.current.lit === null || latest.current.lit === of ? base : mixed(base, surface));
      return {
        paths: bars,
        points: { show: false },
        // uPlot fills a bar that is thinner than two strokes with the stroke.
        stroke: (drawn: uPlot) => (bucketPx(drawn) < gapFromPx ? fill() : surface),
        width: 1 / devicePixelRatio,
        fill,
      };
    })],
    hooks: { setCursor: [(drawn) => pointAt(drawn, latest)] },
  };
}

/** Buckets narrower than this stand without gaps, else the gaps would be most of the picture. */
const gapFromPx = 6;

function bucketPx(drawn: uPlot): number {
  return drawn.over.clientWidth / Math.max(1, drawn.data[0].length);
}

const gapped = uPlot.paths.bars!({ size: [0.86, 64] });

const bars: uPlot.Series.PathBuilder = (drawn, ...rest) => {
  const widthPx = bucketPx(drawn);
  const builder = widthPx < gapFromPx ? uPlot.paths.bars!({ size: [1, Infinity, Math.ceil(widthPx)] }) : gapped;
  return builder(drawn, ...rest);
};

function pointAt(drawn: uPlot, latest: Latest): void {
  const { left, idx } = drawn.cursor;
  if (left === undefined || left < 0 || idx == null) return latest.current.setPointed(null);
  const { starts, ends } = latest.current;
  latest.current.setPointed({ bucket: idx, left: drawn.over.offsetLeft + drawn.valToPos(middle(starts, ends, idx), "x") });
}

/** A colour of the style sheet as the canvas takes it: "rgb(…)" of the theme that shows. */
function colour(name: string): string {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** A colour four fifths of the way to the surface: the layers that step back stay opaque, so stacking still reads. */
function mixed(from: string, to: string): string {
  const parts = (text: string) => (text.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
  const surface = parts(to);
  return `rgb(${parts(from).map((part, at) => Math.round(part * 0.22 + (surface[at] ?? 0) * 0.78)).join(" ")})`;
}

/** The axis' own round steps: these are positions, not sums. */
function axisLabel(value: number, metric: Metric): string {
  if (metric === "requests") return Number.isInteger(value) ? shortCount(BigInt(value)) : "";
  if (value === 0) return "$0";
  const steps: [number, string][] = [[1e9, "B"], [1e6, "M"], [1e3, "k"]];
  const [scale, name] = steps.find(([size]) => value >= size) ?? [1, ""];
  return `$${Number((value / scale).toPrecision(3))}${name}`;
}
