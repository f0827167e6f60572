// The fleet in eight numbers.
import { html } from "./vendor/preact.js";
import { count, part, rate, share } from "./format.js";

const sum = (list, of) => list.reduce((total, one) => total + of(one), 0);

function numbers(fleet, slo) {
  const classes = slo?.classes ?? [];
  const attained = part(sum(classes, (one) => one.met), sum(classes, (one) => one.judged));
  const rejected = sum(classes, (one) => sum(Object.values(one.rejected), (number) => number));
  const ready = fleet.workers.filter((worker) => worker.phase === "ready").length;
  const kv = part(sum(fleet.workers, (one) => one.kv_blocks_used), sum(fleet.workers, (one) => one.kv_blocks_total));
  return [
    ["SLO attainment", share(attained), tone(attained)],
    ["Goodput", rate(sum(classes, (one) => one.goodput_per_s)), ""],
    ["Rejected", count(rejected), rejected ? "warn" : ""],
    ["Waiting", count(sum(fleet.routers, (one) => one.waiting)), ""],
    ["In flight", count(sum(fleet.routers, (one) => one.in_flight)), ""],
    ["Prefix hits", share(slo?.prefix_hit_rate), ""],
    ["KV in use", share(kv), kv > 0.95 ? "bad" : ""],
    ["Workers ready", `${ready} of ${fleet.workers.length}`, ready < fleet.workers.length ? "warn" : ""],
  ];
}

export function tone(attained) {
  if (attained === null || attained === undefined) return "";
  return attained < 0.95 ? "bad" : attained < 0.99 ? "warn" : "";
}

export function Summary({ fleet, slo }) {
  return html`<dl class="summary" aria-label="Last minute">
    ${numbers(fleet, slo).map(([name, value, tone]) => html`<div key=${name}><dt>${name}</dt><dd class=${tone}>${value}</dd></div>`)}
  </dl>`;
}
