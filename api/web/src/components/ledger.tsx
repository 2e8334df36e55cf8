import { useEffect, useRef, useState } from "preact/hooks";
import { Problem, type Client } from "../api/client.ts";
import type { Coverage, Head, VerifyLedgerResponse } from "../api/messages.ts";
import { exactCount } from "../count.ts";
import type { Live } from "../live.ts";
import type { Clock } from "../period.ts";
import { Failure } from "./states.tsx";

interface Props {
  readonly client: Client;
  readonly tenant: string;
  readonly head: Live<Head>;
  readonly coverage: Coverage | undefined;
  readonly clock: Clock;
}

/** The tenant's ledger: its head, what of it the report covers, and its check. */
export function LedgerCard({ client, tenant, head, coverage, clock }: Props) {
  const now = head.value;
  return (
    <section class="card ledger" aria-label="Ledger" data-test="ledger">
      <div class="head"><h2>Ledger</h2><span class="grow" /><Agreement head={now} coverage={coverage} /></div>
      <dl class="facts">
        <dt>Head</dt>
        <dd><b class="seq">{now ? `#${exactCount(now.seq)}` : "…"}</b></dd>
        <dt>Chain hash</dt>
        <dd>{now?.chain_hash ? <Hash hash={now.chain_hash} name="head hash" /> : "–"}</dd>
        <dt>Newest entry</dt>
        <dd>{now?.received_at != null ? clock.moment(now.received_at) : "–"}</dd>
        <dt>Key epoch</dt>
        <dd>{now ? exactCount(now.key_epoch) : "–"}</dd>
      </dl>
      {coverage && coverage.to_seq > 0n && (
        <div class="covers">
          <p>This report covers entries <b>{exactCount(coverage.from_seq || 1n)}…{exactCount(coverage.to_seq)}</b>, head <Hash hash={coverage.head_hash} name="hash of the report's head" /></p>
          <p class="muted small">{coverage.exact ? "Exactly these entries." : "Entries arrived while it was computed; it may hold later ones too."}</p>
        </div>
      )}
      {head.problem?.status === 404 && <p class="muted small">This tenant's ledger has no entry yet.</p>}
      {head.problem && head.problem.status !== 404 && !head.value && <Failure problem={head.problem} onRetry={head.reload} />}
      <Verify client={client} tenant={tenant} coverage={coverage} />
    </section>
  );
}

/** Says whether report and ledger name the same hash where they can be compared. */
function Agreement({ head, coverage }: { head: Head | undefined; coverage: Coverage | undefined }) {
  if (!head || !coverage || coverage.to_seq === 0n) return null;
  if (head.seq !== coverage.to_seq) {
    return head.seq > coverage.to_seq ? <span class="badge">{exactCount(head.seq - coverage.to_seq)} ahead</span> : null;
  }
  return head.chain_hash === coverage.head_hash
    ? <span class="badge good">report at head</span>
    : <span class="badge bad" role="alert">report and ledger differ</span>;
}

export function Hash({ hash, name }: { hash: string; name: string }) {
  const [copied, setCopied] = useState<"" | "copied" | "press Ctrl-C">("");
  const text = useRef<HTMLElement>(null);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(""), 1800);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = () => navigator.clipboard.writeText(hash).then(() => setCopied("copied"), () => {
    getSelection()?.selectAllChildren(text.current!);
    setCopied("press Ctrl-C");
  });
  return (
    <span class="hash">
      <code ref={text} title={hash}>{hash.slice(0, 8)}…{hash.slice(-8)}</code>
      <button type="button" class="tiny" aria-label={`Copy the ${name}`} onClick={copy}>{copied || "Copy"}</button>
      <span class="hidden" role="status">{copied}</span>
    </span>
  );
}

type Check =
  | { readonly state: "idle" | "running" }
  | { readonly state: "done"; readonly answer: VerifyLedgerResponse; readonly asked: Coverage; readonly tookMs: number }
  | { readonly state: "failed"; readonly problem: Problem };

function Verify({ client, tenant, coverage }: Pick<Props, "client" | "tenant" | "coverage">) {
  const [check, setCheck] = useState<Check>({ state: "idle" });
  const gone = useRef(new AbortController());
  useEffect(() => () => gone.current.abort(), []);
  if (!coverage || coverage.to_seq === 0n) return null;

  const run = async () => {
    setCheck({ state: "running" });
    const begun = performance.now();
    try {
      const answer = await client.verify(tenant, coverage.from_seq || 1n, coverage.to_seq, gone.current.signal);
      setCheck({ state: "done", answer, asked: coverage, tookMs: performance.now() - begun });
    } catch (cause) {
      if (gone.current.signal.aborted) return;
      setCheck({ state: "failed", problem: cause instanceof Problem ? cause : new Problem(0, "The check failed", String(cause), "") });
    }
  };
  return (
    <div class="verify">
      <button type="button" class="primary" disabled={check.state === "running"} onClick={run}>
        {check.state === "running" ? "Verifying…" : `Verify ${exactCount(coverage.to_seq - (coverage.from_seq || 1n) + 1n)} entries`}
      </button>
      <div role="status" data-test="verdict">{check.state === "done" && <Verdict {...check} />}</div>
      {check.state === "failed" && <Failure problem={check.problem} onRetry={run} />}
    </div>
  );
}

function Verdict({ answer, asked, tookMs }: { answer: VerifyLedgerResponse; asked: Coverage; tookMs: number }) {
  const range = `${exactCount(answer.from_seq)}…${exactCount(answer.to_seq)}`;
  const took = tookMs < 1000 ? `${Math.round(tookMs)} ms` : `${(tookMs / 1000).toFixed(1)} s`;
  if (answer.verdict === "intact") {
    const same = answer.to_seq !== asked.to_seq || answer.head_hash === asked.head_hash;
    return same
      ? <p class="verdict good"><b>Intact</b> Entries {range} recomputed in {took}: hashes, chain and MACs hold{answer.to_seq === asked.to_seq ? ", and the head is the report's" : ""}.</p>
      : <p class="verdict bad"><b>Another head</b> The chain is intact, but its hash at {exactCount(asked.to_seq)} is not the one this report names.</p>;
  }
  if (answer.verdict === "broken") {
    return <p class="verdict bad"><b>Broken</b> First bad entry #{exactCount(answer.first_bad_seq)}{answer.reason && ` (${answer.reason})`}. {answer.message}</p>;
  }
  return <p class="verdict unsure"><b>Cannot tell</b> {answer.message || answer.reason || "Part of the evidence is missing."}</p>;
}
