import { useEffect, useRef, useState } from "preact/hooks";
import type { Pipeline } from "../api/messages.ts";
import { exactCount, shortCount } from "../count.ts";
import type { Live } from "../live.ts";
import { Failure } from "./states.tsx";

type Rates = readonly [ingest: number, ledger: number, analytics: number];
/** Two minutes of samples. */
const kept = 60;
/** More waiting records than this are worth a colour. */
const muchWaiting = 100_000n;

/** The hops an event takes, what each does a second, and what waits between them. */
export function PipelineCard({ pipeline, live }: { pipeline: Live<Pipeline>; live: boolean }) {
  const history = useHistory(pipeline.value);
  const now = pipeline.value;
  return (
    <section class="card pipeline" aria-label="Pipeline" data-test="pipeline">
      <div class="head">
        <h2>Pipeline</h2><span class="grow" />
        {now && <Health pipeline={now} live={live} lost={pipeline.problem !== undefined} />}
      </div>
      {now?.halted.map((reason) => <p key={reason} class="alert" role="alert"><span><b>Halted</b> {reason}</span></p>)}
      {pipeline.problem && !now && <Failure problem={pipeline.problem} onRetry={pipeline.reload} />}
      {now && (
        <>
          <ol class="hops">
            <Hop name="Ingest" rate={now.ingest_rate} trace={history.map((rates) => rates[0])} />
            <Wait count={now.ledger_lag} what="records for the ledger" />
            <Hop name="Ledger" rate={now.ledger_rate} trace={history.map((rates) => rates[1])} />
            <Wait count={now.publish_lag} what="entries to publish" />
            <Wait count={now.analytics_lag} what="entries for reports" />
            <Hop name="Reports" rate={now.analytics_rate} trace={history.map((rates) => rates[2])} />
          </ol>
          <dl class="counts">
            <Count name="Entries" count={now.entries} />
            <Count name="Accepted" count={now.accepted} />
            <Count name="Refused" count={now.refused} />
            <Count name="Duplicates" count={now.duplicates} />
            <Count name="Rejected" count={now.rejected} />
            <Count name="Unpriced" count={now.unpriced} warn />
          </dl>
          <Partitions pipeline={now} />
        </>
      )}
    </section>
  );
}

function useHistory(now: Pipeline | undefined): readonly Rates[] {
  const samples = useRef<Rates[]>([]);
  const [, drawn] = useState(0);
  useEffect(() => {
    if (!now) return;
    samples.current = [...samples.current, [now.ingest_rate, now.ledger_rate, now.analytics_rate] as const].slice(-kept);
    drawn((count) => count + 1);
  }, [now]);
  return samples.current;
}

function Health({ pipeline, live, lost }: { pipeline: Pipeline; live: boolean; lost: boolean }) {
  if (lost) return <span class="badge bad">no answer</span>;
  if (pipeline.halted.length > 0) return <span class="badge bad">halted</span>;
  if (!live) return <span class="badge">paused</span>;
  const waiting = pipeline.ledger_lag + pipeline.publish_lag + pipeline.analytics_lag;
  return waiting === 0n ? <span class="badge good">caught up</span> : <span class="badge">{shortCount(waiting)} in flight</span>;
}

function Hop({ name, rate, trace }: { name: string; rate: number; trace: readonly number[] }) {
  return (
    <li class="hop">
      <span>{name}</span>
      <Trace values={trace} />
      <b>{shortCount(BigInt(Math.round(rate)))}<small>/s</small></b>
    </li>
  );
}

function Wait({ count, what }: { count: bigint; what: string }) {
  const tone = count > muchWaiting ? "warning" : count === 0n ? "muted" : "";
  return <li class={`wait ${tone}`} title={exactCount(count)}>{shortCount(count)} {what}</li>;
}

function Trace({ values }: { values: readonly number[] }) {
  const high = Math.max(1, ...values);
  const offset = kept - values.length;
  const points = values.map((value, index) => `${index + offset},${(19 - (value / high) * 17).toFixed(1)}`).join(" ");
  return (
    <svg class="trace" viewBox={`0 0 ${kept - 1} 20`} preserveAspectRatio="none" aria-hidden="true">
      {values.length > 1 && <polyline points={points} />}
    </svg>
  );
}

function Count({ name, count, warn = false }: { name: string; count: bigint; warn?: boolean }) {
  return (
    <div class={warn && count > 0n ? "warning" : ""}>
      <dt>{name}</dt><dd title={exactCount(count)}>{shortCount(count)}</dd>
    </div>
  );
}

function Partitions({ pipeline }: { pipeline: Pipeline }) {
  if (pipeline.partitions.length === 0) return null;
  return (
    <details>
      <summary>{pipeline.partitions.length} {pipeline.partitions.length === 1 ? "partition" : "partitions"}</summary>
      <div class="scroll" tabIndex={0} role="region" aria-label="Partitions">
        <table>
          <thead><tr><th scope="col">Partition</th><th scope="col" class="number">Waiting</th><th scope="col" class="number">Batch</th><th scope="col" class="number">Published</th><th scope="col" class="number">Stored</th></tr></thead>
          <tbody>
            {pipeline.partitions.map((one) => (
              <tr key={one.partition}>
                <th scope="row">{one.partition}</th>
                <td class="number">{exactCount(one.end_offset - one.next_offset)}</td>
                <td class="number">{exactCount(one.batch)}</td>
                <td class="number">{exactCount(one.published_batch)}</td>
                <td class="number">{exactCount(one.stored_batch)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}
