/** What the page shows when it has nothing to show: no token, no tenant, a problem. */
import { useState } from "preact/hooks";
import type { Problem, Violation } from "../api/client.ts";
import { Mark } from "./header.tsx";

export function TokenForm({ refused, onToken }: { refused: Problem | undefined; onToken: (token: string) => void }) {
  const [text, setText] = useState("");
  return (
    <main class="gate">
      <form class="card" onSubmit={(event) => {
        event.preventDefault();
        if (text.trim()) onToken(text);
      }}>
        <div class="brand"><Mark /><h1>Tallystick</h1></div>
        <p>Paste the token that <code>tallystick up</code> printed, or open the address it printed: it carries the token.</p>
        {refused && <p class="alert" role="alert"><span><b>{refused.title}.</b> {refused.detail}</span></p>}
        <label class="stacked">
          <span>Token</span>
          <input type="password" value={text} autocomplete="off" spellcheck={false} required onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <button type="submit" class="primary">Open the dashboard</button>
        <p class="muted small">The token stays in this browser tab and goes to this server only.</p>
      </form>
    </main>
  );
}

/** Why something that a person asked for was not done: the fields and rules where the server names them. */
export function Refusal({ problem, id }: { problem: Problem; id?: string }) {
  return (
    <div class="alert" role="alert" id={id}>
      <div>
        <b>{problem.title}</b>
        {problem.violations.length > 0
          ? <ul>{problem.violations.map((one) => <li key={one.field + one.rule}><Broken {...one} /></li>)}</ul>
          : problem.detail && <p>{problem.detail}</p>}
        {problem.requestId && <p class="small">Request <code>{problem.requestId}</code></p>}
      </div>
    </div>
  );
}

function Broken({ field, rule, message }: Violation) {
  return <><code>{field}</code> ({rule}): {message}</>;
}

export function Failure({ problem, onRetry }: { problem: Problem; onRetry: () => void }) {
  return (
    <div class="alert" role="alert">
      <div>
        <b>{problem.title}</b>
        {problem.detail && <p>{problem.detail}</p>}
        {problem.requestId && <p class="small">Request <code>{problem.requestId}</code></p>}
      </div>
      <button type="button" onClick={onRetry}>Try again</button>
    </div>
  );
}

export function NoTenants() {
  return (
    <section class="card empty">
      <h2>Nothing has arrived yet</h2>
      <p>Send the first usage event and its tenant appears here by itself.</p>
      <pre tabIndex={0} aria-label="Example">{`curl ${location.origin}/v1/events:batch \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{"events":[{"event_id":"first-1","tenant_id":"acme",
        "occurred_at":"${new Date().toISOString()}",
        "provider":"openai","model":"gpt-4o-mini",
        "tokens":{"input":1200,"output":300}}]}'`}</pre>
    </section>
  );
}
