/**
 * The default owners of a tenant, where a report shows untagged usage as theirs.
 * Whoever reads reports sees them; who may change them is the API's to say.
 */
import { useEffect, useState } from "preact/hooks";
import { Problem, type Client } from "../api/client.ts";
import type { DefaultOwners } from "../api/messages.ts";
import { useLive } from "../live.ts";
import { owned, ownersFrom, ownersOf } from "../owners.ts";
import { startOfDay, type Clock } from "../period.ts";
import type { View } from "../view.ts";
import { Answers, Dialog, Said, TextField, textOf, useDeed } from "./form.tsx";
import { Failure, Refusal } from "./states.tsx";

interface Props {
  readonly client: Client;
  readonly view: View;
  readonly clock: Clock;
  readonly onRefused: (problem: Problem) => void;
  /** Reports are others from here on. */
  readonly onChanged: () => void;
}

const ownersEveryMs = 30_000;

export function Owners({ client, view, clock, onRefused, onChanged }: Props) {
  const { tenant } = view;
  const newest = useLive(`owners ${tenant}`, (signal) => client.defaultOwners(tenant, signal), ownersEveryMs);
  const [asked, setAsked] = useState(false);
  const [said, setSaid] = useState("");

  useEffect(() => {
    if (newest.problem?.unauthenticated) onRefused(newest.problem);
  }, [newest.problem]);

  // A request that is given up in the middle may have been carried out.
  const close = () => {
    setAsked(false);
    newest.reload();
  };
  const done = (text: string) => {
    setSaid(text);
    close();
    onChanged();
  };
  const failure = newest.problem && <Failure problem={newest.problem} onRetry={newest.reload} />;
  if (!newest.value) return failure ?? null;
  return (
    <section aria-label="Default owners" data-test="owners">
      {failure}
      <p class="chips">
        <span class="muted">Default owners</span>
        {ownersOf(newest.value, view.by).map(([dimension, owner]) => (
          <span key={dimension} class="badge owner">{dimension} {owner ? <b>{owner}</b> : <>has none: untagged usage stays apart</>}</span>
        ))}
        <span class="muted">{since(newest.value, clock)}</span>
        <button type="button" class="chip" onClick={() => { setSaid(""); setAsked(true); }}>Change…</button>
      </p>
      <Said text={said} />
      {asked && (
        <Change client={client} view={view} clock={clock} newest={newest.value} onRefused={onRefused} onOutdated={newest.reload} onDone={done} onClose={close} />
      )}
    </section>
  );
}

/** "version 3, for usage from 1 Oct 2026, 00:00:00" */
function since(owners: DefaultOwners, clock: Clock): string {
  return owners.version === 0n || owners.effective_from === null ? "" : `version ${owners.version}, for usage from ${clock.moment(owners.effective_from)}`;
}

interface ChangeProps extends Omit<Props, "onChanged"> {
  readonly newest: DefaultOwners;
  readonly onOutdated: () => void;
  readonly onDone: (said: string) => void;
  readonly onClose: () => void;
}

/** Makes the next version of the one that its fields show; of another, which somebody has made meanwhile, only once that was looked at. */
function Change({ client, view, clock, newest, onRefused, onOutdated, onDone, onClose }: ChangeProps) {
  const { busy, problem, run } = useDeed(onRefused);
  const [base, setBase] = useState(newest);
  const outdated = newest.version > base.version;
  const submit = (form: HTMLFormElement) => run(async (signal) => {
    const day = textOf(form, "effective_from");
    const owners = ownersFrom((dimension) => textOf(form, `owners.${dimension}`));
    try {
      const made = await client.putDefaultOwners(view.tenant, owners, day && startOfDay(day, view.zone), base.version, signal);
      onDone(made.version === base.version ? "That is what the owners are already: nothing is changed." : `The default owners are changed: ${since(made, clock)}.`);
    } catch (cause) {
      if (cause instanceof Problem && cause.conflict) onOutdated();
      throw cause;
    }
  });
  return (
    <Dialog title={`Default owners of ${view.tenant}`} onClose={onClose}>
      <form class="deed" onSubmit={(event) => {
        event.preventDefault();
        void submit(event.currentTarget);
      }}>
        <p>Reports show untagged usage as theirs where they are asked to. No entry of the ledger changes. What is empty has no owner: its usage stays untagged.</p>
        <div class="fields" key={`${base.version}`}>
          {owned.map(([dimension, title]) => (
            <TextField key={dimension} label={title} name={`owners.${dimension}`} problem={problem} input={{ defaultValue: base.owners.get(dimension) ?? "" }} />
          ))}
        </div>
        <TextField label="From (optional)" name="effective_from" problem={problem} input={{ type: "date", max: "9999-12-31" }}
          hint={`Midnight of that day (${clock.zone}), which may be past; else the hour that is running. Usage before it goes by the versions before.`} />
        {problem && !(problem.conflict && outdated) && <Refusal problem={problem} />}
        {problem?.forbidden && <p>Default owners are changed with a token of the scope <code>admin</code>.</p>}
        {outdated && (
          <div class="alert" role="alert">
            <span>Version {`${newest.version}`} was made meanwhile by {newest.created_by}, so this change is refused.</span>
            <button type="button" onClick={() => run(async () => setBase(newest))}>Show its owners</button>
          </div>
        )}
        <Answers what={busy ? "Changing…" : "Change the owners"} busy={busy} onClose={onClose} />
      </form>
    </Dialog>
  );
}
