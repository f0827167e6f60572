"""Claims about the prefix index: microseconds to match, bytes a block, events a second, flat memory; and its peers.

    python -m tests.bench.index [--python INTERPRETER] [--scale 1.0]

INTERPRETER has `ai-dynamo-runtime` where this one has not. Runs each measurement in a process of its own, one after the
other; prints tables, then one JSON line. Other benches add to that line: every part is a function that returns a dict.
"""

import argparse
import json
import sys
from typing import Any

from tests.bench.index_memory import in_fresh_process, measure_memory
from tests.bench.index_peers import PEERS
from tests.bench.index_workload import CASES

NUM_BLOCKS = 2_000_000
# Text and a node's dicts of a thousand tenants would take all the time and memory there is.
PEER_SCALE = {"ray PrefixTree": 0.05}
CASE_SCALE = {"evicted": 0.25}  # there is more to build
MATCH_CASES = ("shared", "scattered")  # those with a promise; `evicted` is reported beside them


def measure_peers(scale: float, python: str) -> dict[str, dict[str, Any]]:
    """By case, by peer: what `index_peers.measure_peer` found."""
    module = "tests.bench.index_peers"
    results: dict[str, dict[str, Any]] = {}
    for case in CASES:
        results[case] = {}
        for peer in PEERS:
            num_blocks = str(int(NUM_BLOCKS * scale * CASE_SCALE.get(case, 1.0) * PEER_SCALE.get(peer, 1.0)))
            interpreter = python if peer.startswith("dynamo") else sys.executable
            results[case][peer] = in_fresh_process(peer, case, num_blocks, python=interpreter, module=module)
    return results


def measure(scale: float = 1.0, python: str = sys.executable) -> dict[str, Any]:
    """Everything, by part."""
    return {
        "peers": measure_peers(scale, python),
        "depths": in_fresh_process(module="tests.bench.index_depths"),
        "memory": measure_memory(scale),
        "apply": in_fresh_process(module="tests.bench.index_apply"),
    }


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """The JSON line: the worse of the cases with a promise, and what peers did in each."""
    ours = [measured["peers"][case]["headrace"] for case in MATCH_CASES]
    peers = {
        peer: {case: _headline(measured["peers"][case][peer]) for case in CASES} for peer in PEERS if peer != "headrace"
    }
    return {
        "bench": "index",
        "match_p50_us": max(row["match_p50_us"] for row in ours),
        "match_p99_us": max(row["match_p99_us"] for row in ours),
        "match_p99_cpu_us": max(row["match_p99_cpu_us"] for row in ours),
        "bytes_per_block": measured["memory"]["one-holder"]["bytes_per_block"],
        "worst_bytes_per_block": measured["memory"]["one-holder"]["worst_bytes_per_block"],
        "match_us_by_depths": measured["depths"],
        **measured["apply"],
        "peers": peers,
    }


def print_tables(measured: dict[str, Any]) -> None:
    """One table for each claim."""
    for case, rows in measured["peers"].items():
        print(f"\n{case}: prompts of 512 blocks, 1,000 workers")
        print(f"{' ':39}p50 us   p99 us  p99 CPU us  by worker  store us/block  bytes/block")
        for peer, row in rows.items():
            if "skipped" in row:
                print(f"  {peer:<18} skipped: {row['skipped']}")
                continue
            print(f"  {peer:<17}{row['blocks']:>10,} blocks{row['match_p50_us']:>9,.1f}", end="")
            print(
                f"{row['match_p99_us']:>9,.1f}{row['match_p99_cpu_us']:>12,.1f}{row['by_worker_p50_us']:>11,.1f}",
                end="",
            )
            print(f"{row['store_us_per_block']:>16.2f}{row['bytes_per_block']:>13.1f}")
    print("\nwhat differs")
    for peer, row in measured["peers"][CASES[0]].items():
        print(f"  {peer:<18} {row.get('differs', 'skipped')}")
    print("\nmatch, p50 us by number of different depths:", measured["depths"])
    print("\nmemory of one fresh process")
    for run, row in measured["memory"].items():
        print(f"  {run:<12} {row}")
    print("\nblock events a CPU second:", measured["apply"])


def _headline(row: dict[str, Any]) -> dict[str, Any]:
    wanted = ("skipped", "blocks", "match_p50_us", "match_p99_us", "store_us_per_block", "bytes_per_block")
    return {key: row[key] for key in wanted if key in row}


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description="Bench of the prefix index.")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has ai-dynamo-runtime")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full size")
    arguments = parser.parse_args()
    measured = measure(arguments.scale, arguments.python)
    print_tables(measured)
    print(json.dumps(summary(measured)))


if __name__ == "__main__":
    main()
