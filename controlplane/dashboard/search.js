// What is looked for among decisions lives in the address, so that it can be sent to a colleague.
//
// #decisions?class=chat&outcome=kv_full, and &id=... while one is open.
import { useEffect, useState } from "./vendor/preact.js";

const PLACE = "#decisions";
export const FILTERS = ["request", "class", "outcome", "worker"];

/** The address's fragment for these filters; empty ones are left out. */
export function linkTo(wanted) {
  const kept = Object.entries(wanted).filter(([, value]) => value);
  return kept.length ? `${PLACE}?${new URLSearchParams(kept)}` : PLACE;
}

function read() {
  const [place, query] = location.hash.split("?");
  return place === PLACE ? Object.fromEntries(new URLSearchParams(query)) : {};
}

/** [what is wanted, change it]. */
export function useSearch() {
  const [wanted, setWanted] = useState(read());
  useEffect(() => {
    const onHash = () => {
      if (!location.hash.startsWith(PLACE)) return;
      setWanted(read());
      document.getElementById("decisions")?.scrollIntoView();
    };
    addEventListener("hashchange", onHash);
    if (location.hash.startsWith(`${PLACE}?`)) onHash();
    return () => removeEventListener("hashchange", onHash);
  }, []);
  const change = (next) => {
    history.replaceState(null, "", linkTo(next)); // not a new place: nothing scrolls
    setWanted(next);
  };
  return [wanted, change];
}
