"""From what was measured in each round to rows, a table and a JSON line."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tests.bench.data_plane.cases import STREAM_EVENTS, Case

Measured = dict[str, Any]  # of one case of one contender in one round, as load.py gives it, and its rss_mb
Rounds = Mapping[tuple[str, Case], Sequence[Measured]]

DIRECT = "direct"
_KEYS = (
    "rps", "p50_us", "p99_us", "first_p50_us", "event_p50_us", "event_p99_us", "cpu_us_per_request", "rss_mb",
    "client_us_per_request", "others_share",
)  # fmt: skip
_COLUMNS = {
    "rps": "rps",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "added_p50_us": "added",
    "added_p99_us": "p99",
    "event_p50_us": "event",
    "event_p99_us": "p99",
    "cpu_us_per_request": "CPU us/req",
    "cpu_us_per_chunk": "/chunk",
    "rss_mb": "RSS MB",
    "errors": "errors",
}


def rows(rounds: Rounds) -> list[dict[str, Any]]:
    """Medians over the rounds, one row a contender and case."""
    made = []
    for (contender, case), measured in rounds.items():
        row: dict[str, Any] = {"contender": contender, "case": case.kind, "connections": case.connections}
        row |= {key: _median([each.get(key) for each in measured]) for key in _KEYS}
        row["cpu_us_per_chunk"] = _per_chunk(rounds, contender, case)
        row |= _added(rounds, contender, case)
        row["errors"] = sum(each["errors"] for each in measured)
        row["error"] = next((each["error"] for each in measured if each["error"]), None)
        made.append(row)
    return made


def _per_chunk(rounds: Rounds, contender: str, case: Case) -> float | None:
    """CPU of a stream less that of an answer in one piece to the same prompts, an event; without that case, of all."""
    if not case.streams:
        return None
    plain = rounds.get((contender, Case("unary-400", case.connections)))
    base = _median([each["cpu_us_per_request"] for each in plain]) if plain else None
    whole = _median([each["cpu_us_per_request"] for each in rounds[(contender, case)]])
    return None if whole is None else round((whole - (base or 0.0)) / STREAM_EVENTS, 2)


def _added(rounds: Rounds, contender: str, case: Case) -> dict[str, float | None]:
    """Latency beyond that of the engine itself, at one connection, within each round."""
    direct = rounds.get((DIRECT, case))
    if direct is None or contender == DIRECT or case.connections != 1 or contender.startswith("dynamo"):
        return {"added_p50_us": None, "added_p99_us": None}
    pairs = list(zip(rounds[(contender, case)], direct, strict=False))
    return {
        f"added_{key}": _median([mine[key] - base[key] for mine, base in pairs if key in mine and key in base])
        for key in ("p50_us", "p99_us")
    }


def _median(seen: Sequence[float | None]) -> float | None:
    known = [each for each in seen if each is not None]
    return round(median(known), 2) if known else None


def print_table(made: Sequence[Mapping[str, Any]]) -> None:
    """By case, one line a contender."""
    cases = list(dict.fromkeys((row["case"], row["connections"]) for row in made))
    for kind, connections in cases:
        print(f"\n{kind}, {connections} connection{'s' if connections > 1 else ''}")
        print(f"  {'':<34}" + "".join(f"{title:>11}" for title in _COLUMNS.values()))
        for row in made:
            if (row["case"], row["connections"]) == (kind, connections):
                print(f"  {row['contender']:<34}" + "".join(f"{_cell(row[key]):>11}" for key in _COLUMNS))
                if row["error"]:
                    print(f"      {row['error']}")


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


def json_line(made: Sequence[Mapping[str, Any]], idle: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """What a program reads."""
    return json.dumps({"bench": "data_plane", **about, "rows": made, "idle_streams": idle})


def print_idle(measured: Mapping[str, Any]) -> None:
    """One line a contender."""
    streams, before, after = measured["streams"], measured["rss_before_mb"], measured["rss_mb"]
    per_stream = (after - before) * 1000 / max(1, streams)
    print(
        f"{streams:,} idle streams, {measured['contender']}: {after:.0f} MB, before {before:.0f};"
        f" {per_stream:.1f} kB each" + (f"; {measured['error']}" if measured["error"] else "")
    )
