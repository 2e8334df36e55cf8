import { useState } from "preact/hooks";
import { applyTheme, readTheme, themes } from "../theme.ts";
import { dimensions, ownable, pages, windows, writeView, type View } from "../view.ts";
import { Choice } from "./choice.tsx";

interface Props {
  readonly view: View;
  readonly tenants: readonly string[];
  readonly live: boolean;
  readonly onLive: (live: boolean) => void;
  readonly onView: (view: View) => void;
}

/** More tenants than this are typed and completed, not scrolled through. */
const longestMenu = 200;

export function Header({ view, tenants, live, onLive, onView }: Props) {
  return (
    <header class="bar">
      <div class="brand"><Mark /><h1>Tallystick</h1></div>
      <Pages view={view} onView={onView} />
      <TenantPicker view={view} tenants={tenants} onView={onView} />
      {view.page === "overview" && <ReportChoices view={view} onView={onView} />}
      <span class="grow" />
      <Choice label="Times in" options={[["utc", "UTC"], ["local", "Local"]] as const} value={view.zone} onChange={(zone) => onView({ ...view, zone })} />
      {view.page === "overview" && (
        <button type="button" class={`live ${live ? "on" : ""}`} aria-pressed={live} onClick={() => onLive(!live)}
          title={live ? "The page updates by itself. Press to pause." : "Paused. Press to update again."}>
          <i aria-hidden="true" />{live ? "Live" : "Paused"}
        </button>
      )}
      <ThemeButton />
    </header>
  );
}

/** Links, so that a page opens in another tab too; within the tab the document stays. */
function Pages({ view, onView }: Pick<Props, "view" | "onView">) {
  return (
    <nav class="pages" aria-label="Pages">
      {pages.map(([page, title]) => (
        <a key={page} href={location.pathname + writeView({ ...view, page })} aria-current={view.page === page ? "page" : undefined}
          onClick={(event) => {
            if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
            event.preventDefault();
            onView({ ...view, page });
          }}>{title}</a>
      ))}
    </nav>
  );
}

function ReportChoices({ view, onView }: Pick<Props, "view" | "onView">) {
  return (
    <>
      <Choice label="Window" options={windows} value={view.window} onChange={(window) => onView({ ...view, window })} />
      <label class="field">
        <span>Group by</span>
        <select value={view.by} onChange={(event) => {
          const by = dimensions.find((name) => name === event.currentTarget.value);
          if (by) onView({ ...view, by });
        }}>
          {dimensions.map((name) => <option key={name} value={name}>{name}</option>)}
        </select>
      </label>
      {ownable(view.by) && (
        <label class="field">
          <span>Untagged</span>
          <select value={view.allocate} onChange={(event) => onView({ ...view, allocate: event.currentTarget.value === "none" ? "none" : "default_owner" })}>
            <option value="none">apart</option>
            <option value="default_owner">owner's</option>
          </select>
        </label>
      )}
    </>
  );
}

function TenantPicker({ view, tenants, onView }: Pick<Props, "view" | "tenants" | "onView">) {
  const choose = (tenant: string) => {
    if (tenant && tenant !== view.tenant) onView({ ...view, tenant, filters: [] });
  };
  if (tenants.length > longestMenu) {
    return (
      <label class="field">
        <span>Tenant</span>
        <input list="tenants" value={view.tenant} spellcheck={false} autocomplete="off" onChange={(event) => choose(event.currentTarget.value.trim())} />
        <datalist id="tenants">{tenants.map((id) => <option key={id} value={id} />)}</datalist>
      </label>
    );
  }
  const listed = view.tenant && !tenants.includes(view.tenant) ? [view.tenant, ...tenants] : tenants;
  return (
    <label class="field">
      <span>Tenant</span>
      <select value={view.tenant} onChange={(event) => choose(event.currentTarget.value)}>
        {listed.map((id) => <option key={id} value={id}>{id}</option>)}
      </select>
    </label>
  );
}

function ThemeButton() {
  const [theme, setTheme] = useState(readTheme);
  const next = themes[(themes.indexOf(theme) + 1) % themes.length]!;
  const icon = { auto: "◐", light: "☀", dark: "☾" }[theme];
  return (
    <button type="button" class="icon" aria-label={`Theme: ${theme}. Change to ${next}`} title={`Theme: ${theme}`}
      onClick={() => {
        applyTheme(next);
        setTheme(next);
      }}>{icon}</button>
  );
}

/** A tally: four notches and the one across. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" />
      <path class="notch" d="M8 8v16M13.3 8v16M18.6 8v16M24 8v16" />
      <path class="across" d="M5 21 27 11" />
    </svg>
  );
}
