import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { Client, type Problem } from "./api/client.ts";
import { Header } from "./components/header.tsx";
import { ProviderKeys } from "./components/keys.tsx";
import { Overview } from "./components/overview.tsx";
import { Failure, NoTenants, TokenForm } from "./components/states.tsx";
import { useLive } from "./live.ts";
import { dropToken, keepToken, takeToken } from "./token.ts";
import { readView, writeView, type View } from "./view.ts";

/** The view that the address names; changing it writes the address, going back reads it. */
function useView(): [View, (view: View) => void] {
  const [view, setView] = useState(() => readView(location.search));
  useEffect(() => {
    const back = () => setView(readView(location.search));
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  const change = useCallback((next: View) => {
    history.pushState(null, "", location.pathname + writeView(next));
    setView(next);
  }, []);
  return [view, change];
}

const tenantsEveryMs = 10_000;

/** The page: asks for a token where it has none, else shows what the address names of a tenant. */
export function App() {
  const [token, setToken] = useState(takeToken);
  const [refused, setRefused] = useState<Problem>();
  const client = useMemo(() => new Client(token), [token]);

  useEffect(() => {
    const pasted = () => setToken(takeToken());
    addEventListener("hashchange", pasted);
    return () => removeEventListener("hashchange", pasted);
  }, []);

  const onRefused = useCallback((problem: Problem) => {
    dropToken();
    setRefused(problem);
    setToken("");
  }, []);

  if (!token) {
    return <TokenForm refused={refused} onToken={(text) => {
      keepToken(text);
      setRefused(undefined);
      setToken(text.trim());
    }} />;
  }
  return <Signed client={client} onRefused={onRefused} />;
}

function Signed({ client, onRefused }: { client: Client; onRefused: (problem: Problem) => void }) {
  const [chosen, setView] = useView();
  const [live, setLive] = useState(true);
  const tenants = useLive("tenants", (signal) => client.tenants(signal), tenantsEveryMs);
  const view = { ...chosen, tenant: chosen.tenant || (tenants.value?.[0] ?? "") };

  useEffect(() => {
    if (tenants.problem?.unauthenticated) onRefused(tenants.problem);
  }, [tenants.problem]);

  return (
    <>
      <a class="skip" href="#main">Skip to the content</a>
      <Header view={view} tenants={tenants.value ?? []} live={live} onLive={setLive} onView={setView} />
      <main id="main" tabIndex={-1}>
        {view.tenant
          ? view.page === "keys"
            ? <ProviderKeys key={view.tenant} client={client} view={view} onRefused={onRefused} />
            : <Overview client={client} view={view} live={live} onView={setView} onRefused={onRefused} />
          : tenants.problem
            ? <Failure problem={tenants.problem} onRetry={tenants.reload} />
            : tenants.value
              ? <NoTenants />
              : <p class="center muted" role="status">Loading tenants…</p>}
      </main>
    </>
  );
}
