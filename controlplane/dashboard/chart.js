// Lines over time, by uPlot. The canvas has a text of its own: each line's latest value and its lowest and highest.
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { clock } from "./format.js";

const HEIGHT = 168;
const COLOURS = 6;
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000]; // steps where there are no halves
const DASHES = [[], [6, 3], [2, 3], [10, 3, 2, 3]]; // not by colour alone

/** What a CSS colour comes to here: a canvas does not know light-dark(). */
function resolved(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function options({ series, format, range, isWhole, width, onCursor }) {
  const [muted, line] = [resolved("--muted"), resolved("--line")];
  const axis = { stroke: muted, font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: line, width: 1 } };
  const narrow = width < 400;
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { setScale: false }, points: { size: 6 } },
    padding: [8, 28, 0, 0], // half of the last time beside the plot
    hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)] },
    scales: { y: { range: range ?? ((_, __, most) => [0, most > 0 ? 1.1 * most : 1]) } },
    axes: [
      { ...axis, size: 28, space: narrow ? 80 : 60, values: (_, at, __, ___, stepS) => at.map((s) => clock(s).slice(0, stepS < 60 ? 8 : 5)) },
      { ...axis, ...(isWhole && { incrs: WHOLE }), size: 52, space: 32, values: (_, at) => at.map((value) => format(value).replace(/\.0+(?=\D)/, "")) },
    ],
    series: [
      {},
      ...series.map((one, index) => ({
        label: one.label,
        stroke: resolved(`--line-${index % COLOURS}`),
        dash: DASHES[Math.floor(index / COLOURS) % DASHES.length],
        width: 1.5,
        points: { size: 4 }, // shown where they are far apart or alone
        spanGaps: false,
      })),
    ],
  };
}

/** Rises when colours may have changed. */
function useTheme() {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const next = () => setTurn((n) => n + 1);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    document.addEventListener("themechange", next);
    dark.addEventListener("change", next);
    return () => {
      document.removeEventListener("themechange", next);
      dark.removeEventListener("change", next);
    };
  }, []);
  return turn;
}

function inWords(title, series, format, words) {
  const told = series.map((one) => {
    const known = one.values.filter((value) => value !== null);
    if (!known.length) return `${one.label}: nothing`;
    return `${one.label}: ${format(known.at(-1))} now, ${format(Math.min(...known))} to ${format(Math.max(...known))}`;
  });
  return `${title}, the last ${words}. ${told.join("; ") || "Nothing"}.`;
}

export function Chart({ title, series, format, range, isWhole, times, words }) {
  const [box, plot] = [useRef(null), useRef(null)];
  const [at, setAt] = useState(null);
  const theme = useTheme();
  const data = [times, ...series.map((one) => one.values)];
  const labels = series.map((one) => one.label).join("\n");
  const isEmpty = !series.some((one) => one.values.some((value) => value !== null));
  useEffect(() => {
    if (isEmpty) return undefined;
    const width = box.current.clientWidth;
    const made = new globalThis.uPlot(options({ series, format, range, isWhole, width, onCursor: setAt }), data, box.current);
    plot.current = made;
    const sized = new ResizeObserver(([{ contentRect }]) => made.setSize({ width: contentRect.width, height: HEIGHT }));
    sized.observe(box.current);
    return () => {
      plot.current = null;
      sized.disconnect();
      made.destroy();
    };
  }, [labels, theme, isEmpty]);
  useEffect(() => plot.current?.setData(data), [times, labels]);
  const shown = at ?? times.length - 1;
  return html`<figure>
    <figcaption><h3>${title}</h3>${at !== null && html`<span class="muted">${clock(times[at])}</span>`}</figcaption>
    <ul class="legend" aria-hidden="true">
      ${series.map((one, index) => html`<li key=${one.label}>
        <span class="swatch line-${index % COLOURS}"></span>${one.label} <b>${one.values[shown] === null ? "–" : format(one.values[shown])}</b>
      </li>`)}
    </ul>
    ${isEmpty
      ? html`<p class="nothing">Nothing in the last ${words}</p>`
      : html`<div class="plot" ref=${box} role="img" aria-label=${inWords(title, series, format, words)}></div>`}
  </figure>`;
}
