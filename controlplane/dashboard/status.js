// Whose page it is, and how fresh.
import { html, useEffect, useState } from "./vendor/preact.js";
import { clock } from "./format.js";
import { hasTenants } from "./tenants.js";
import { ThemeSwitch } from "./theme_switch.js";

const PHASES = { live: "Live", stale: "Stale", away: "Disconnected", loading: "Connecting" };

export function Header({ onSignOut, ...state }) {
  const { phase, who } = state;
  return html`<header>
    <div class="bar-inside">
      <a class="name" href="#main">Headrace</a>
      <nav aria-label="Sections">
        <a href="#promises">Promises</a>
        <a href="#fleet">Fleet</a>
        ${hasTenants(state) && html`<a href="#tenants">Tenants</a>`}
        <a href="#decisions">Decisions</a>
      </nav>
      <span class="phase ${phase}"><span class="dot" aria-hidden="true"></span>${PHASES[phase]}</span>
      <span class="who">${who?.is_closed ? "read only" : who && html`${who.name} <span class="muted">${who.role}</span>`}</span>
      <${ThemeSwitch} />
      ${who && !who.is_closed && html`<button onClick=${onSignOut}>Sign out</button>`}
    </div>
  </header>`;
}

/** Present at all times, so that a screen reader hears when it fills; the age is no part of what is announced. */
export function Freshness({ phase, why, heardAt, onRetry }) {
  const [, tick] = useState(0);
  const isOld = phase === "stale" || phase === "away";
  useEffect(() => {
    const timer = isOld && setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, [isOld]);
  const since = heardAt === null ? "" : `What you see is from ${clock(heardAt / 1000)}`;
  return html`<div class="freshness ${isOld ? phase : ""}">
    <div class="bar-inside">
      <p role="status">${isOld && html`<strong>${PHASES[phase]}.</strong> ${since}: ${why}.`}</p>
      ${isOld && html`<span class="age" aria-hidden="true">${Math.round((Date.now() - heardAt) / 1000)} s old</span>`}
      ${phase === "away" && html`<button onClick=${onRetry}>Try now</button>`}
    </div>
  </div>`;
}
