// Numbers, times and codes as people read them. A number and its unit stay on one line.

const NBSP = "\u00a0";

export const NONE = "–";

/** 0.984 -> "98.4 %"; null -> "–". */
export function share(value) {
  return value === null || value === undefined ? NONE : `${(100 * value).toFixed(value === 1 || value === 0 ? 0 : 1)}${NBSP}%`;
}

export function part(some, all) {
  return all > 0 ? some / all : null;
}

/** As long as it has to be: "0.342 s", "60 s", "3 min 20 s". */
export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value > 0 && value < 0.001) return `under 0.001${NBSP}s`;
  if (value >= 1e8) return "never";
  const size = Math.abs(value);
  if (size < 10) return `${Number(value.toFixed(size < 1 ? 3 : 2))}${NBSP}s`;
  if (size < 120) return `${Number(value.toFixed(1))}${NBSP}s`;
  if (size < 7200) return twoUnits(Math.round(value), 60, "min", "s");
  return twoUnits(Math.round(value / 60), 60, "h", "min");
}

/** Always as many places, for columns: "0.640 s", "12.300 s". */
export function measured(value, places = 3) {
  return value === null || value === undefined ? NONE : value < 120 ? `${value.toFixed(places)}${NBSP}s` : seconds(value);
}

function twoUnits(value, size, large, small) {
  const rest = value % size;
  return `${Math.floor(value / size)}${NBSP}${large}${rest ? ` ${rest}${NBSP}${small}` : ""}`;
}

export function count(value) {
  return value === null || value === undefined ? NONE : value.toLocaleString("en");
}

export function rate(value) {
  return `${value < 10 ? value.toFixed(2) : value.toFixed(1)}/s`;
}

/** Of Unix seconds, in the reader's time zone. */
export function clock(atS) {
  return new Date(1000 * atS).toLocaleTimeString("en-GB");
}

/** The day and the minute of Unix seconds, in the reader's time zone; null -> "–". */
export function day(atS) {
  return atS === null || atS === undefined ? NONE : new Date(1000 * atS).toLocaleString("sv-SE").slice(0, 16);
}

export function isoTime(atS) {
  return new Date(1000 * atS).toISOString();
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// RejectReason of router/events.py.
const REASONS = {
  unknown_model: "unknown model",
  route_not_served: "route not served",
  no_worker: "no worker",
  attempts_exhausted: "every attempt failed",
  ttft_infeasible: "first token too late",
  tpot_infeasible: "tokens too slow",
  kv_full: "KV cache full",
  over_share: "tenant over its share",
  queue_full: "queue full",
  deadline_passed: "came after its deadline",
  expired: "expired while waiting",
};

// Refused at the door (router/refusals.py): nothing was decided about them, so there is nothing to look for.
const REFUSALS = {
  class_paused: "class paused",
  invalid_api_key: "no valid key",
  model_not_allowed: "model not allowed",
  class_not_allowed: "class not allowed",
  rate_limit_exceeded: "over its rate",
  insufficient_quota: "over its budget",
  cache_not_isolated: "cache not isolated",
};

export const REASON_CODES = Object.keys(REASONS);

export function reason(code) {
  return REASONS[code] ?? REFUSALS[code] ?? code.replaceAll("_", " ");
}

const TERMS = {
  queue_s: ["queue", "waiting behind what the worker has"],
  fetch_s: ["fetch", "fetching cached blocks"],
  prefill_s: ["prefill", "computing the prompt"],
  transfer_s: ["transfer", "moving KV blocks to the decode worker"],
  step_s: ["step", "the first decode step"],
  harm_s: ["harm", "delay that this costs the others"],
};

export const TERM_NAMES = Object.keys(TERMS);
export const term = (name) => TERMS[name]?.[0] ?? name;
export const termWords = (name) => TERMS[name]?.[1] ?? "";

export function path(prefill, decode) {
  return prefill === null ? decode : `${prefill} → ${decode}`;
}
