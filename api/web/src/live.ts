/** Hooks that keep the page current. All stop when their component goes or the tab is hidden. */
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Problem } from "./api/client.ts";

export interface Live<T> {
  readonly value: T | undefined;
  readonly problem: Problem | undefined;
  /** True while an answer is awaited. */
  readonly busy: boolean;
  readonly reload: () => void;
}

/**
 * Calls `load` now, whenever `key` changes, and every `everyMs` after an answer
 * (0: never again by itself). Keeps the last value while it asks anew and when
 * that fails; a new key drops it unless `keep` says otherwise.
 */
export function useLive<T>(key: string, load: (signal: AbortSignal) => Promise<T>, everyMs: number, keep = false): Live<T> {
  const [state, setState] = useState<{ key: string; value?: T | undefined; problem?: Problem | undefined; busy: boolean }>({ key, busy: true });
  const [turn, setTurn] = useState(0);
  const latest = useRef(load);
  latest.current = load;

  useEffect(() => {
    const gone = new AbortController();
    let timer = 0;
    const ask = async () => {
      if (document.hidden && everyMs > 0) return void (timer = window.setTimeout(ask, everyMs));
      setState((old) => ({ ...old, key, busy: true, ...(old.key !== key && !keep && { value: undefined, problem: undefined }) }));
      try {
        const value = await latest.current(gone.signal);
        if (!gone.signal.aborted) setState({ key, value, busy: false });
      } catch (cause) {
        if (gone.signal.aborted) return;
        const problem = cause instanceof Problem ? cause : new Problem(0, "The page failed", String(cause), "");
        setState((old) => ({ ...old, key, problem, busy: false }));
      }
      if (everyMs > 0 && !gone.signal.aborted) timer = window.setTimeout(ask, everyMs);
    };
    void ask();
    return () => {
      gone.abort();
      clearTimeout(timer);
    };
  }, [key, turn, everyMs]);

  const reload = useCallback(() => setTurn((old) => old + 1), []);
  const fresh = state.key === key || keep;
  return { value: fresh ? state.value : undefined, problem: fresh ? state.problem : undefined, busy: state.busy, reload };
}

/** The time, anew every second. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
