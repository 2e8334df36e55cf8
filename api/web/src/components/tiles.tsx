import type { ComponentChildren } from "preact";
import type { SummaryResponse } from "../api/messages.ts";
import { exactCount, exactMicros, percent, shortCount, shortHours, sum } from "../count.ts";
import { useNow } from "../live.ts";
import { exactUSD, shortUSD } from "../money.ts";
import { ago, type Clock } from "../period.ts";

interface TileProps {
  readonly label: string;
  readonly value: ComponentChildren;
  readonly exact?: string;
  readonly note?: ComponentChildren;
  readonly tone?: "warning" | "bad" | "";
  readonly wide?: boolean;
}

function Tile({ label, value, exact, note, tone = "", wide = false }: TileProps) {
  return (
    <div class={`card tile ${tone} ${wide ? "wide" : ""}`}>
      <dt>{label}</dt>
      <dd class="figure" title={exact}>{value}</dd>
      <dd class="note">{note ?? "\u00a0"}</dd>
    </div>
  );
}

/** The totals of the window. Without a summary: the same tiles, waiting. */
export function Tiles({ summary, clock }: { summary: SummaryResponse | undefined; clock: Clock }) {
  const now = useNow();
  if (!summary) {
    const labels = ["Total cost", "Requests", "Failed", "Tokens", "Unpriced", "Freshness"];
    return (
      <dl class="tiles">
        {labels.map((label, index) => <Tile key={label} label={label} wide={index === 0} value={<span class="ghost" />} />)}
      </dl>
    );
  }
  const { totals, coverage } = summary;
  const tokens = sum(totals.tokens.values());
  const cached = totals.tokens.get("cache_read") ?? 0n;
  const lag = coverage.lag_entries;
  const timed = totals.gpu_us !== 0n;
  return (
    <dl class={`tiles ${timed ? "seven" : ""}`}>
      <Tile wide label="Total cost" value={<span data-test="total">{shortUSD(totals.cost_usd)}</span>} exact={`${exactUSD(totals.cost_usd)} USD`}
        note={<span class="mono" data-test="total-exact">{exactUSD(totals.cost_usd)} USD</span>} />
      <Tile label="Requests" value={<span data-test="requests">{shortCount(totals.requests)}</span>} exact={exactCount(totals.requests)}
        note={totals.corrections > 0n ? `+ ${shortCount(totals.corrections)} corrections` : totals.estimated > 0n ? `${percent(totals.estimated, totals.requests)} estimated` : "none estimated"} />
      <Tile label="Failed" value={percent(totals.failed, totals.requests)} exact={exactCount(totals.failed)}
        note={`${shortCount(totals.failed)} calls`} />
      <Tile label="Tokens" value={shortCount(tokens)} exact={exactCount(tokens)}
        note={tokens === 0n ? "none reported" : `${percent(cached, tokens)} from cache`} />
      {timed && (
        <Tile label="GPU hours" value={<span data-test="gpu-hours">{shortHours(totals.gpu_us)}</span>} exact={exactMicros(totals.gpu_us)} note="of whole devices" />
      )}
      <Tile label="Unpriced" tone={totals.unpriced > 0n ? "warning" : ""} value={percent(totals.unpriced, totals.requests)} exact={exactCount(totals.unpriced)}
        note={totals.unpriced > 0n ? `${shortCount(totals.unpriced)} in no sum` : "all priced"} />
      <Tile label="Freshness" value={coverage.fresh_until === null ? "–" : ago(coverage.fresh_until, now)}
        exact={coverage.fresh_until === null ? "nothing received yet" : clock.moment(coverage.fresh_until)}
        tone={lag > 100_000n ? "warning" : ""} note={lag > 0n ? `${shortCount(lag)} entries behind` : "nothing waiting"} />
    </dl>
  );
}
