// One decision in words: who asked for what, why it waited or was turned away, why it ran there and not elsewhere, and
// how the forecasts compare with what came. The same record as `headrace explain` (router/explain/explanation.py).
import { html, useEffect, useState } from "./vendor/preact.js";
import { ask, segment } from "./api.js";
import { capital, count, isoTime, measured, path, plural, reason, seconds, term, TERM_NAMES, termWords } from "./format.js";
import { Dialog, Failure, Table } from "./parts.js";

const DURING = {
  waiting: "while it waited: the client went away, or its time was over",
  prefill: "before the first token: the client went away, or its time was over",
  answer: "during the answer: the client went away",
};
const VERDICTS = { true: "met", false: "missed", null: "not judged" };

// step -> [headline, sentences]
const TELL = {
  queued: (step) => ["Queued", [step.num_waiting ? `${plural(step.num_waiting, "other")} waited in this router.` : "", sentence(step.why)]],
  dispatched: (step, whole) => [`Sent to ${path(step.prefill, step.decode)}`, dispatched(step, whole)],
  prefilled: (step) => ["Prefilled", [step.cached_tokens === null ? "" : `${plural(step.cached_tokens, "token")} were cached.`]],
  first_token: (step, whole) => ["First token", [began(step, whole)]],
  aborted: (step) => ["Aborted", [`Attempt ${step.attempt}: ${step.worker} is gone.`]],
  failed: (step) => [
    `Failed on ${step.worker}`,
    [step.retriable ? "The client had seen nothing yet, so it is tried again." : "The client had part of the answer."],
  ],
  rejected: (step) => [
    `Rejected: ${reason(step.reason)}`,
    [
      sentence(step.detail),
      step.retry_after_s === null
        ? "Asking again would not help."
        : `The client was told to come back in ${seconds(step.retry_after_s)}.`,
    ],
  ],
  cancelled: (step) => ["Cancelled", [sentence(DURING[step.during])]],
  done: (step) => ["Done", done(step)],
};

function sentence(text) {
  return text ? `${capital(text)}${/[.!?]$/.test(text) ? "" : "."}` : "";
}

function dispatched(step, whole) {
  const { predicted } = step;
  return [
    step.attempt > 1 ? `Attempt ${step.attempt}.` : "",
    step.attempt === 1 && step.waited_s >= 0.0005 ? `It had waited ${seconds(step.waited_s)}.` : "",
    `${step.promised ? "Its targets are promised" : "Nothing is promised"}${step.why ? `: ${step.why}` : ""}.`,
    `Forecast: first token in ${seconds(predicted.ttft_s)}, then ${seconds(predicted.tpot_s)} a token.`,
    `${count(predicted.overlap_tokens)} of ${plural(whole.arrival.num_prompt_tokens, "prompt token")} are in the caches of ${step.prefill ?? step.decode}.`,
    `Chosen of ${plural(step.num_candidates, "worker")}${step.num_near_equal > 1 ? `, drawn among ${step.num_near_equal} near-equal ways` : ""}.`,
    step.excluded.length ? `Not ${step.excluded.join(", ")}, which failed it before.` : "",
  ];
}

function began(step, whole) {
  const lateS = step.age_s - step.predicted_age_s;
  const how = `${seconds(Math.abs(lateS))} ${lateS >= 0 ? "later" : "earlier"} than forecast (${seconds(step.predicted_age_s)}).`;
  return whole.arrival.streamed ? capital(how) : `${capital(how)} The answer came in one piece, so this is all of it.`;
}

function done(step) {
  return [
    step.output_tokens === null ? "The engine did not say how many tokens." : `${plural(step.output_tokens, "token")} out.`,
    step.cached_tokens === null ? "" : `${plural(step.cached_tokens, "prompt token")} were cached, ${count(step.predicted_cached_tokens)} predicted.`,
    step.tpot_s === null ? "" : `${seconds(step.tpot_s)} a token, ${seconds(step.predicted_tpot_s)} predicted.`,
    `First token ${VERDICTS[step.ttft_met]}, token gap ${VERDICTS[step.tpot_met]}.`,
  ];
}

/** What the forecast is made of, as a bar and in words. */
function Forecast({ predicted }) {
  const parts = TERM_NAMES.filter((name) => predicted[name] > 0);
  const total = parts.reduce((sum, name) => sum + predicted[name], 0);
  if (!parts.length) return null;
  return html`<div class="forecast">
    <div class="stack" aria-hidden="true">
      ${parts.map((name) => html`<span key=${name} class="fill-${TERM_NAMES.indexOf(name)}" style=${{ flexGrow: predicted[name] / total }}></span>`)}
    </div>
    <ul class="legend">
      ${parts.map((name) => html`<li key=${name} title=${termWords(name)}>
        <span class="swatch block fill-${TERM_NAMES.indexOf(name)}" aria-hidden="true"></span>${term(name)} <b>${seconds(predicted[name])}</b>
      </li>`)}
    </ul>
  </div>`;
}

/** Of the terms those that make a difference. */
function wayColumns(ways) {
  const terms = TERM_NAMES.filter((name) => ways.some((way) => way.predicted[name] > 0));
  return [
    { head: "Way", cell: (way) => html`<span class="id">${path(way.prefill, way.decode)}</span>` },
    { head: "Cost", number: true, cell: (way) => measured(way.predicted.cost_s) },
    ...terms.map((name) => ({ head: capital(term(name)), number: true, cell: (way) => measured(way.predicted[name]) })),
    { head: "Cached", number: true, cell: (way) => count(way.predicted.overlap_tokens) },
    { head: "Against the chosen", cell: against },
  ];
}

function against(way) {
  if (!way.mainly) return "chosen";
  return `${seconds(Math.abs(way.over_s))} ${way.over_s < 0 ? "less" : "more"}, mostly ${term(way.mainly)}`;
}

function Step({ step, whole }) {
  const [headline, sentences] = TELL[step.step]?.(step, whole) ?? [step.step, []];
  return html`<li class=${step.step}>
    <span class="age">+${step.age_s.toFixed(3)} s</span>
    <div>
      <h3>${headline}</h3>
      <ul>${sentences.filter(Boolean).map((words) => html`<li key=${words}>${words}</li>`)}</ul>
      ${step.predicted && html`<${Forecast} predicted=${step.predicted} />`}
      ${step.ways?.length > 1 && html`<details>
        <summary>${plural(step.ways.length, "way")} weighed</summary>
        <div class="scroll" role="region" aria-label="Ways weighed" tabindex="0">
          <${Table} caption="Ways weighed, the chosen one first" rows=${step.ways}
            keyOf=${(way) => path(way.prefill, way.decode)} columns=${wayColumns(step.ways)} />
        </div>
      </details>`}
    </div>
  </li>`;
}

function Story({ whole }) {
  const { arrival } = whole;
  const targets = [
    arrival.ttft_s !== null && `first token ${seconds(arrival.ttft_s)}`,
    arrival.tpot_s !== null && `${seconds(arrival.tpot_s)} a token`,
    arrival.deadline_s !== null && `given up after ${seconds(arrival.deadline_s)}`,
  ].filter(Boolean);
  const facts = [
    ["Arrived", html`<time datetime=${isoTime(whole.arrived_at_s)}>${new Date(1000 * whole.arrived_at_s).toLocaleString("en-GB")}</time>`],
    ["Class", arrival.class_name],
    ["Tenant", arrival.tenant],
    ["Targets", targets.join(", ") || "none"],
    ["Model", arrival.model],
    ["Route", `${arrival.route}, ${arrival.streamed ? "streamed" : "in one piece"}`],
    ["Prompt", `${plural(arrival.num_prompt_tokens, "token")}${arrival.tokens_counted ? "" : " (estimated)"}, ${count(arrival.known_prefix_tokens)} in some cache`],
    ["Router", `${whole.router}, ${whole.policy}`],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <ol class="story">${whole.steps.map((step, index) => html`<${Step} key=${index} step=${step} whole=${whole} />`)}</ol>`;
}

export function Explanation({ id, onClose }) {
  const [known, setKnown] = useState({});
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    setKnown({});
    ask("GET", `decisions/${segment(id)}`).then((whole) => setKnown({ whole }), (error) => setKnown({ error }));
  }, [id, turn]);
  return html`<${Dialog} label="explanation-title" onClose=${onClose} wide>
    <div class="heading">
      <h2 id="explanation-title">Request <span class="id">${id}</span></h2>
      <button onClick=${(event) => event.currentTarget.closest("dialog").close()}>Close</button>
    </div>
    ${known.error && html`<${Failure} error=${known.error} onRetry=${() => setTurn(turn + 1)} />`}
    ${known.whole ? html`<${Story} whole=${known.whole} />` : !known.error && html`<p role="status">Loading …</p>`}
  </${Dialog}>`;
}
