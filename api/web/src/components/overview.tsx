import { useEffect, useMemo, useRef } from "preact/hooks";
import type { Client, Problem } from "../api/client.ts";
import { useLive } from "../live.ts";
import { Clock } from "../period.ts";
import { loadReport, zoneOf } from "../report.ts";
import { ownable, withFilter, withoutFilter, writeView, type View } from "../view.ts";
import { ChartPanel } from "./panel.tsx";
import { LedgerCard } from "./ledger.tsx";
import { Owners } from "./owners.tsx";
import { PipelineCard } from "./pipeline.tsx";
import { Failure } from "./states.tsx";
import { Tiles } from "./tiles.tsx";

interface Props {
  readonly client: Client;
  readonly view: View;
  readonly live: boolean;
  readonly onView: (view: View) => void;
  readonly onRefused: (problem: Problem) => void;
}

const pipelineEveryMs = 2_000;
/** A report is asked again when entries arrived or it failed, at the earliest after this and after ten times what it took. */
const reportRestMs = 4_000;

export function Overview({ client, view, live, onView, onRefused }: Props) {
  const key = writeView(view);
  const every = live ? pipelineEveryMs : 0;
  const report = useLive(key, (signal) => loadReport(client, view, signal), 0, true);
  const pipeline = useLive("pipeline", (signal) => client.pipeline(signal), every);
  const head = useLive(`head ${view.tenant}`, (signal) => client.head(view.tenant, signal), every);
  const clock = useMemo(() => new Clock(zoneOf(view)), [view.zone]);
  const stored = pipeline.value && pipeline.value.entries - pipeline.value.analytics_lag;
  const shown = useRef({ stored, askedAt: Date.now() });

  useEffect(() => {
    const fresh = stored === undefined || (stored === shown.current.stored && !report.problem);
    const rest = Math.max(reportRestMs, 10 * (report.value?.tookMs ?? 0));
    if (!live || report.busy || fresh || Date.now() - shown.current.askedAt < rest) return;
    shown.current = { stored, askedAt: Date.now() };
    report.reload();
  }, [pipeline.value]);

  const refused = [report, pipeline, head].find((one) => one.problem?.unauthenticated)?.problem;
  useEffect(() => {
    if (refused) onRefused(refused);
  }, [refused]);

  const value = report.value?.view.tenant === view.tenant ? report.value : undefined;
  const stale = value !== undefined && writeView(value.view) !== key;
  return (
    <div class={`overview ${stale ? "stale" : ""}`} aria-busy={report.busy}>
      <p class="hidden" role="status">{stale || !value ? "Loading the report" : `Report for ${view.tenant} loaded`}</p>
      <div class="content">
        {view.filters.length > 0 && (
          <p class="chips">
            <span class="muted">Only</span>
            {view.filters.map((filter) => (
              <button key={filter.dimension} type="button" class="chip" onClick={() => onView(withoutFilter(view, filter.dimension))}>
                {filter.dimension} <b>{filter.values[0]}</b><span aria-hidden="true">×</span><span class="hidden"> – remove filter</span>
              </button>
            ))}
          </p>
        )}
        {report.problem && <Failure problem={report.problem} onRetry={report.reload} />}
        {view.allocate === "default_owner" && ownable(view.by) && (
          <Owners key={view.tenant} client={client} view={view} clock={clock} onRefused={onRefused} onChanged={report.reload} />
        )}
        <Tiles summary={value?.summary} clock={clock} />
        <div class="pair">
          <ChartPanel chart={value?.main} by={view.by} metric={view.metric} clock={clock} view={view} onView={onView} slot="main"
            onPick={(dimension, name) => onView(withFilter(view, dimension, name))} />
          <ChartPanel chart={value?.side} metric={view.metric} clock={clock} view={view} onView={onView} slot="side"
            onPick={(dimension, name) => onView(withFilter(view, dimension, name))} />
        </div>
      </div>
      <div class="rail">
        <LedgerCard key={view.tenant} client={client} tenant={view.tenant} head={head} coverage={value?.summary.coverage} clock={clock} />
        <PipelineCard pipeline={pipeline} live={live} />
      </div>
    </div>
  );
}
