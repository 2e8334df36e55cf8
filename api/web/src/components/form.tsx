/** What forms are made of: fields that show which rule they break, dialogs, and one request at a time. */
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { Problem } from "../api/client.ts";

/** What a person asked for: one request at a time, given up when its component goes. */
export function useDeed(onRefused: (problem: Problem) => void) {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem>();
  const gone = useRef(new AbortController());
  useEffect(() => () => gone.current.abort(), []);
  const run = async (deed: (signal: AbortSignal) => Promise<void>) => {
    setBusy(true);
    setProblem(undefined);
    try {
      await deed(gone.current.signal);
    } catch (cause) {
      if (gone.current.signal.aborted) return;
      const told = cause instanceof Problem ? cause : new Problem(0, "The page failed", String(cause), "");
      if (told.unauthenticated) onRefused(told);
      setProblem(told);
    } finally {
      if (!gone.current.signal.aborted) setBusy(false);
    }
  };
  return { busy, problem, run };
}

export const textOf = (form: HTMLFormElement, name: string) => (form.elements.namedItem(name) as HTMLInputElement).value.trim();

interface FieldProps {
  readonly label: string;
  readonly name: string;
  readonly problem: Problem | undefined;
  readonly hint?: string;
  readonly children?: ComponentChildren;
  readonly input?: Record<string, unknown>;
}

/** A field with its label; marked where the server said that it breaks a rule. */
export function TextField({ label, name, problem, hint, input, children }: FieldProps) {
  const id = useId();
  const broken = problem?.violations.some((one) => one.field === name) ?? false;
  return (
    <div class="stacked">
      <label for={id}>{label}</label>
      <input id={id} name={name} autocomplete="off" spellcheck={false} aria-invalid={broken} aria-describedby={hint ? `${id}-hint` : undefined} {...input} />
      {hint && <span id={`${id}-hint`} class="muted small">{hint}</span>}
      {children}
    </div>
  );
}

/** What was done. What was pressed may be gone with it, so the focus goes here. */
export function Said({ text }: { text: string }) {
  const status = useRef<HTMLParagraphElement>(null);
  useEffect(() => {
    if (text) status.current?.focus();
  }, [text]);
  return <p ref={status} class="said" role="status" tabIndex={-1} data-test="said">{text}</p>;
}

/** A modal dialog: the browser keeps the focus in it, closes it on Escape and gives the focus back. */
export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const shown = dialog.current!;
    shown.showModal();
    return () => shown.close();
  }, []);
  return (
    <dialog ref={dialog} class="card" aria-labelledby={id} onClose={onClose}>
      <h2 id={id}>{title}</h2>
      {children}
    </dialog>
  );
}

/** A dialog's buttons. What cannot be undone does not have the focus at first. */
export function Answers({ what, busy, danger = false, onClose }: { what: string; busy: boolean; danger?: boolean; onClose: () => void }) {
  return (
    <p class="answers">
      <button type="button" onClick={onClose}>Cancel</button>
      <button type="submit" class={danger ? "danger" : "primary"} disabled={busy}>{what}</button>
    </p>
  );
}
