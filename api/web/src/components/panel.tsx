/** A chart with its groups below: the groups are the legend, the table and the way to drill down. */
import { useMemo, useRef, useState } from "preact/hooks";
import { exactCount, exactMicros, percent, plotShare, shortCount, shortHours, sum } from "../count.ts";
import { exactUSD, shortUSD } from "../money.ts";
import { colourVariable, muted, Palette } from "../palette.ts";
import type { Clock } from "../period.ts";
import type { Band, Chart } from "../report.ts";
import type { Dimension, Metric, View } from "../view.ts";
import { Choice } from "./choice.tsx";
import { StackedChart, type Layer } from "./chart.tsx";

interface Props {
  readonly chart: Chart | undefined;
  readonly by?: Dimension;
  readonly metric: Metric;
  readonly clock: Clock;
  readonly view: View;
  readonly slot: "main" | "side";
  readonly onView: (view: View) => void;
  readonly onPick: (dimension: Dimension, name: string) => void;
}

export function bandTitle(band: Pick<Band, "name" | "other">): string {
  return band.other ? "other" : band.name || "untagged";
}

export function ChartPanel({ chart, by, metric, clock, view, slot, onView, onPick }: Props) {
  const [form, setForm] = useState<"chart" | "table">("chart");
  const [lit, setLit] = useState<number | null>(null);
  const layers = useLayers(chart, metric);
  const dimension = chart?.by ?? by ?? "model";
  const used = chart?.bands.some((band) => band.totals.requests > 0n || band.totals.cost_usd !== 0n) ?? false;
  return (
    <section class="card panel" aria-label={`By ${dimension}`} data-test={`panel-${slot}`}>
      <div class="head">
        <h2>{metric === "cost" ? "Cost" : "Requests"} by {dimension}</h2>
        <span class="grow" />
        {slot === "main" && (
          <Choice label="Measure" options={[["cost", "Cost"], ["requests", "Requests"]] as const} value={metric} onChange={(next) => onView({ ...view, metric: next })} />
        )}
        <Choice label="Form" options={[["chart", "Chart"], ["table", "Table"]] as const} value={form} onChange={setForm} />
      </div>
      {!chart ? <div class="plot ghost" />
        : !used ? <Nothing view={view} onView={onView} />
          : form === "chart"
            ? <StackedChart starts={chart.starts} ends={chart.ends} layers={layers} metric={metric} clock={clock} lit={lit} />
            : <BucketTable chart={chart} metric={metric} clock={clock} />}
      {chart && used && <Groups chart={chart} layers={layers} onLit={setLit} onPick={onPick} />}
    </section>
  );
}

function useLayers(chart: Chart | undefined, metric: Metric): Layer[] {
  const palette = useRef(new Palette());
  return useMemo(() => {
    if (!chart) return [];
    const named = chart.bands.filter((band) => !band.other && band.name);
    const slots = palette.current.assign(named.map((band) => `${chart.by}:${band.name}`));
    return chart.bands.map((band) => ({
      title: bandTitle(band),
      slot: band.other || !band.name ? muted : slots.get(`${chart.by}:${band.name}`) ?? muted,
      values: metric === "cost" ? band.cost : band.requests,
    }));
  }, [chart, metric]);
}

function Nothing({ view, onView }: { view: View; onView: (view: View) => void }) {
  return (
    <div class="plot nothing">
      <p>No usage in this window{view.filters.length > 0 ? " with these filters" : ""}.</p>
      {view.filters.length > 0
        ? <button type="button" onClick={() => onView({ ...view, filters: [] })}>Remove filters</button>
        : view.window !== "all" && <button type="button" onClick={() => onView({ ...view, window: "all" })}>Show all time</button>}
    </div>
  );
}

interface GroupsProps {
  readonly chart: Chart;
  readonly layers: readonly Layer[];
  readonly onLit: (index: number | null) => void;
  readonly onPick: (dimension: Dimension, name: string) => void;
}

function Groups({ chart, layers, onLit, onPick }: GroupsProps) {
  const cost = sum(chart.bands.map((band) => band.totals.cost_usd));
  const requests = sum(chart.bands.map((band) => band.totals.requests));
  const unpriced = sum(chart.bands.map((band) => band.totals.unpriced));
  const allocated = sum(chart.bands.map((band) => band.allocated.cost_usd));
  const timed = chart.bands.some((band) => band.totals.gpu_us !== 0n);
  return (
    <div class="scroll beside" tabIndex={0} role="region" aria-label={`Groups by ${chart.by}`}>
      <table class={`groups ${timed ? "timed" : ""}`}>
        <thead>
          <tr><th scope="col">{chart.by}</th><th scope="col" class="number">Cost</th>{chart.allocated && <th scope="col" class="number" title="Untagged usage, shown as its default owner's">Allocated</th>}<th scope="col">Share</th><th scope="col" class="number">Requests</th>{timed && <th scope="col" class="number" title="Time of whole GPUs, whether used or not">GPU hours</th>}<th scope="col" class="number">Unpriced</th></tr>
        </thead>
        <tbody>
          {chart.bands.map((band, index) => (
            <tr key={bandTitle(band)} onMouseEnter={() => onLit(index)} onMouseLeave={() => onLit(null)}>
              <th scope="row">
                <span class="name">
                  <Swatch slot={layers[index]?.slot ?? muted} />
                  {band.other || !band.name
                    ? <span class="muted">{bandTitle(band)}</span>
                    : <button type="button" class="link" title={`Only ${band.name}`} onClick={() => onPick(chart.by, band.name)} onFocus={() => onLit(index)} onBlur={() => onLit(null)}>{band.name}</button>}
                </span>
              </th>
              <td class="number" title={`${exactUSD(band.totals.cost_usd)} USD`}>{shortUSD(band.totals.cost_usd)}</td>
              {chart.allocated && <Allocated cost={band.allocated.cost_usd} />}
              <td class="share"><ShareBar part={band.totals.cost_usd} whole={cost} slot={layers[index]?.slot ?? muted} /></td>
              <td class="number" title={exactCount(band.totals.requests)}>{shortCount(band.totals.requests)}</td>
              {timed && <Hours micros={band.totals.gpu_us} />}
              <td class={`number ${band.totals.unpriced > 0n ? "warning" : "muted"}`} title={exactCount(band.totals.unpriced)}>{band.totals.unpriced > 0n ? percent(band.totals.unpriced, band.totals.requests) : "–"}</td>
            </tr>
          ))}
        </tbody>
        <tfoot>
          <tr>
            <th scope="row">Total</th>
            <td class="number" title={`${exactUSD(cost)} USD`} data-test="sum">{shortUSD(cost)}</td>
            {chart.allocated && <Allocated cost={allocated} />}
            <td />
            <td class="number" title={exactCount(requests)}>{shortCount(requests)}</td>
            {timed && <Hours micros={sum(chart.bands.map((band) => band.totals.gpu_us))} />}
            <td class={`number ${unpriced > 0n ? "warning" : "muted"}`}>{unpriced > 0n ? percent(unpriced, requests) : "–"}</td>
          </tr>
        </tfoot>
      </table>
    </div>
  );
}

function Allocated({ cost }: { cost: bigint }) {
  return <td class={`number ${cost === 0n ? "muted" : ""}`} title={`${exactUSD(cost)} USD`} data-test="allocated">{cost === 0n ? "–" : shortUSD(cost)}</td>;
}

function Hours({ micros }: { micros: bigint }) {
  return <td class={`number ${micros === 0n ? "muted" : ""}`} title={exactMicros(micros)} data-test="hours">{micros === 0n ? "–" : shortHours(micros)}</td>;
}

export function Swatch({ slot }: { slot: number }) {
  return <i class="swatch" aria-hidden="true" style={{ background: `var(${colourVariable(slot)})` }} />;
}

function ShareBar({ part, whole, slot }: { part: bigint; whole: bigint; slot: number }) {
  return (
    <span class="sharebar">
      <i aria-hidden="true"><b style={{ width: `${plotShare(part, whole) * 100}%`, background: `var(${colourVariable(slot)})` }} /></i>
      <span>{percent(part, whole)}</span>
    </span>
  );
}

/** The chart's figures for those who cannot see or point at it. */
function BucketTable({ chart, metric, clock }: { chart: Chart; metric: Metric; clock: Clock }) {
  const values = (band: Band) => (metric === "cost" ? band.cost : band.requests);
  const print = metric === "cost" ? shortUSD : exactCount;
  const rows = chart.starts.map((_, index) => index).filter((index) => chart.bands.some((band) => values(band)[index])).reverse();
  return (
    <div class="plot scroll" tabIndex={0} role="region" aria-label={`${metric} over time by ${chart.by}, newest first`}>
      <table class="buckets">
        <thead>
          <tr>
            <th scope="col">Time ({clock.zone})</th><th scope="col" class="number">Total</th>
            {chart.bands.map((band) => <th key={bandTitle(band)} scope="col" class="number">{bandTitle(band)}</th>)}
          </tr>
        </thead>
        <tbody>
          {rows.map((index) => (
            <tr key={chart.starts[index]}>
              <th scope="row">{clock.bucket(chart.starts[index]!, chart.ends[index]!)}</th>
              <td class="number"><b>{print(sum(chart.bands.map((band) => values(band)[index] ?? 0n)))}</b></td>
              {chart.bands.map((band) => <td key={bandTitle(band)} class="number">{values(band)[index] ? print(values(band)[index]!) : "–"}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
