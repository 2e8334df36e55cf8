/**
 * The provider keys of a tenant: what there is, and the three things done with
 * them. A key's value is never in the page's state: it is read from its field as
 * it is sent, in the body of that one request, and the field is emptied then,
 * whatever the answer. Who may see and change keys is the API's to say: a token
 * that may not list them is shown no form and no button.
 */
import { useEffect, useId, useMemo, useState } from "preact/hooks";
import type { Client, Problem } from "../api/client.ts";
import type { ProviderKey } from "../api/messages.ts";
import { knownProviders, sorted, stateOf, titleOf } from "../keys.ts";
import { useLive, useNow } from "../live.ts";
import { Clock } from "../period.ts";
import { zoneOf } from "../report.ts";
import type { View } from "../view.ts";
import { Answers, Dialog, Said, TextField, textOf, useDeed } from "./form.tsx";
import { Failure, Refusal } from "./states.tsx";

interface Props {
  readonly client: Client;
  readonly view: View;
  readonly onRefused: (problem: Problem) => void;
}

const listEveryMs = 30_000;

/** What is asked about a key in a dialog. */
type Asked = { readonly what: "rotate" | "revoke"; readonly of: ProviderKey };

export function ProviderKeys({ client, view, onRefused }: Props) {
  const { tenant } = view;
  const list = useLive(`keys ${tenant}`, (signal) => client.providerKeys(tenant, signal), listEveryMs);
  const clock = useMemo(() => new Clock(zoneOf(view)), [view.zone]);
  const [asked, setAsked] = useState<Asked>();
  const [said, setSaid] = useState("");

  useEffect(() => {
    if (list.problem?.unauthenticated) onRefused(list.problem);
  }, [list.problem]);

  // A request that is given up in the middle may have been carried out.
  const close = () => {
    setAsked(undefined);
    list.reload();
  };
  const done = (text: string) => {
    setSaid(text);
    close();
  };
  if (list.problem?.forbidden) return <NotYours tenant={tenant} problem={list.problem} />;
  return (
    <div class="keys">
      <section class="card panel" aria-label="Provider keys" data-test="keys">
        <div class="head"><h2>Provider keys of {tenant}</h2></div>
        <p class="muted">The proxy calls providers with these. They are stored sealed and shown by their first and last characters only.</p>
        <Said text={said} />
        {list.problem && <Failure problem={list.problem} onRetry={list.reload} />}
        {list.value
          ? <KeyTable keys={sorted(list.value)} clock={clock} onAsk={(next) => { setSaid(""); setAsked(next); }} />
          : !list.problem && <p class="muted">Loading keys…</p>}
      </section>
      {list.value && <AddForm client={client} tenant={tenant} onRefused={onRefused} onDone={done} />}
      {asked?.what === "rotate" && <Rotate {...asked} client={client} tenant={tenant} clock={clock} onRefused={onRefused} onDone={done} onClose={close} />}
      {asked?.what === "revoke" && <Revoke {...asked} client={client} tenant={tenant} onRefused={onRefused} onDone={done} onClose={close} />}
    </div>
  );
}

function NotYours({ tenant, problem }: { tenant: string; problem: Problem }) {
  return (
    <section class="card empty" data-test="forbidden">
      <h2>This token may not see the provider keys of {tenant}</h2>
      <p>{problem.detail || problem.title}. Keys are listed and changed with a token of the scope <code>admin</code>.</p>
    </section>
  );
}

interface TableProps {
  readonly keys: readonly ProviderKey[];
  readonly clock: Clock;
  readonly onAsk: (asked: Asked) => void;
}

function KeyTable({ keys, clock, onAsk }: TableProps) {
  if (keys.length === 0) return <p class="nokeys">There is no key yet: calls through the proxy are answered with 502 until one is added.</p>;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Keys">
      <table class="keylist">
        <thead>
          <tr>
            <th scope="col">Provider</th><th scope="col">Key</th><th scope="col">State</th><th scope="col">Created</th>
            <th scope="col">Retires</th><th scope="col">Address</th><th scope="col"><span class="hidden">Actions</span></th>
          </tr>
        </thead>
        <tbody>{keys.map((key) => <KeyRow key={key.secret_id} of={key} clock={clock} onAsk={onAsk} />)}</tbody>
      </table>
    </div>
  );
}

function KeyRow({ of: key, clock, onAsk }: { of: ProviderKey } & Omit<TableProps, "keys">) {
  const state = stateOf(key, useNow());
  const title = titleOf(key);
  const ask = (what: Asked["what"]) => onAsk({ what, of: key });
  return (
    <tr class={state === "revoked" ? "muted" : ""}>
      <th scope="row" title={key.secret_id}>{title}</th>
      <td><code>{key.masked || "–"}</code> <span class="muted">v{key.version}</span></td>
      <td><span class={`badge ${{ "in force": "good", rotating: "good", due: "due", revoked: "" }[state]}`}>{state === "due" ? "rotation is due" : state}</span></td>
      <td title={key.created_by}>{key.created_at === null ? "–" : clock.moment(key.created_at)}</td>
      <td><Retires of={key} state={state} clock={clock} /></td>
      <td>{key.base_url || <span class="muted">the provider's</span>}</td>
      <td class="actions">
        {state !== "revoked" && (
          <>
            <button type="button" aria-label={`Rotate ${title}`} onClick={() => ask("rotate")}>Rotate</button>
            <button type="button" class="danger" aria-label={`Revoke ${title}`} onClick={() => ask("revoke")}>Revoke</button>
          </>
        )}
      </td>
    </tr>
  );
}

function Retires({ of: key, state, clock }: { of: ProviderKey; state: string; clock: Clock }) {
  if (key.revoked_at !== null) return <>revoked {clock.moment(key.revoked_at)}</>;
  if (state === "rotating" && key.previous_until !== null) return <>old key {clock.moment(key.previous_until)}</>;
  return key.rotate_by === null ? <>–</> : <>rotate by {clock.date(key.rotate_by)}</>;
}

/** Takes a field's text and empties the field. */
function take(form: HTMLFormElement, name: string): string {
  const field = form.elements.namedItem(name) as HTMLInputElement;
  const text = field.value;
  field.value = "";
  return text.trim();
}

/** The field of a key. Its name is the request's, so that a refusal finds it. */
function ValueField({ label, problem }: { label: string; problem: Problem | undefined }) {
  return (
    <TextField label={label} name="value" problem={problem} input={{ type: "password", required: true, autocomplete: "new-password" }}
      hint="Sent once, sealed by the server, never shown again. This field is emptied as it is sent. Of AWS: ACCESS_KEY_ID:SECRET_ACCESS_KEY, or the JSON that the AWS CLI prints." />
  );
}

interface DeedProps extends Pick<Props, "client" | "onRefused"> {
  readonly tenant: string;
  readonly onDone: (said: string) => void;
}

function AddForm({ client, tenant, onRefused, onDone }: DeedProps) {
  const { busy, problem, run } = useDeed(onRefused);
  const names = useId();
  const submit = (form: HTMLFormElement) => run(async (signal) => {
    const key = { provider: textOf(form, "provider"), name: textOf(form, "name"), base_url: textOf(form, "base_url"), value: take(form, "value") };
    const kept = await client.addProviderKey(tenant, key, signal);
    form.reset();
    onDone(`The key ${kept.masked} of ${titleOf(kept)} is added. Every proxy uses it within five seconds.`);
  });
  return (
    <section class="card panel" aria-label="Add a key" data-test="add">
      <form class="deed" onSubmit={(event) => {
        event.preventDefault();
        void submit(event.currentTarget);
      }}>
        <div class="head"><h2>Add a key</h2></div>
        <TextField label="Provider" name="provider" problem={problem} input={{ required: true, list: names }} hint="As in the proxy's paths: openai, anthropic, …">
          <datalist id={names}>{knownProviders.map((one) => <option key={one} value={one} />)}</datalist>
        </TextField>
        <TextField label="Name (optional)" name="name" problem={problem} hint="The provider's name by default; calls go with the key that has it." />
        <TextField label="Address (optional)" name="base_url" problem={problem} input={{ type: "url", placeholder: "https://…" }} hint="What stands before the provider's own paths." />
        <ValueField label="Key" problem={problem} />
        {problem && <Refusal problem={problem} />}
        <button type="submit" class="primary" disabled={busy}>{busy ? "Adding…" : "Add the key"}</button>
      </form>
    </section>
  );
}

interface DialogProps extends DeedProps {
  readonly of: ProviderKey;
  readonly onClose: () => void;
}

function Rotate({ of: key, client, tenant, clock, onRefused, onDone, onClose }: DialogProps & { readonly clock: Clock }) {
  const { busy, problem, run } = useDeed(onRefused);
  const submit = (form: HTMLFormElement) => run(async (signal) => {
    const kept = await client.rotateProviderKey(tenant, key.secret_id, take(form, "value"), signal);
    const until = kept.previous_until === null ? "" : ` The old key lives until ${clock.moment(kept.previous_until)}.`;
    onDone(`${titleOf(kept)} is rotated: new calls go with ${kept.masked}.${until}`);
  });
  return (
    <Dialog title={`Rotate ${titleOf(key)}`} onClose={onClose}>
      <form class="deed" onSubmit={(event) => {
        event.preventDefault();
        void submit(event.currentTarget);
      }}>
        <p>New calls go with the new key within five seconds. The old key <code>{key.masked}</code> lives for 24 hours more, for calls that have begun: end it at the provider after that.</p>
        <ValueField label="New key" problem={problem} />
        {problem && <Refusal problem={problem} />}
        <Answers what={busy ? "Rotating…" : "Rotate"} busy={busy} onClose={onClose} />
      </form>
    </Dialog>
  );
}

function Revoke({ of: key, client, tenant, onRefused, onDone, onClose }: DialogProps) {
  const { busy, problem, run } = useDeed(onRefused);
  const submit = () => run(async (signal) => {
    await client.revokeProviderKey(tenant, key.secret_id, signal);
    onDone(`The key ${key.masked} of ${titleOf(key)} is revoked and its values are taken out.`);
  });
  return (
    <Dialog title={`Revoke ${titleOf(key)}?`} onClose={onClose}>
      <form class="deed" onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}>
        <p>The key <code>{key.masked}</code> is ended for ever and its values are taken out, the old one too. Calls to {key.provider} go with another key of it, or are answered with 502 where there is none.</p>
        {problem && <Refusal problem={problem} />}
        <Answers what={busy ? "Revoking…" : "Revoke for ever"} busy={busy} danger onClose={onClose} />
      </form>
    </Dialog>
  );
}
