"""Everything that is claimed about the decision core's speed, in one run: what `make bench-index` makes.

    python -m tests.bench.index_report [--python INTERPRETER] [--scale 1.0]

The prefix index and its peers, decisions, a router's cold start, and a chat's tokens; tables, then one JSON line.
"""

import argparse
import asyncio
import json
import sys

from controlplane.app import demo_model_path
from controlplane.config import Config
from tests.bench import decide, index, tokenise
from tests.bench.index_cold_start import cold_start

COLD_BLOCKS = 1_000_000


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description="The decision core's benchmarks.")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has ai-dynamo-runtime")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full size")
    arguments = parser.parse_args()
    print("decisions: RouterCore.handle(RequestArrived), everything on")
    decide.main()
    print(f"\na router that starts with {COLD_BLOCKS:,} blocks in Redis")
    started = cold_start(int(COLD_BLOCKS * arguments.scale))
    print(f"  {started}")
    print("\na chat of 20 turns, tokens and block hashes")
    asyncio.run(tokenise.main(demo_model_path(Config())))
    measured = index.measure(arguments.scale, arguments.python)
    index.print_tables(measured)
    handle = decide.handle_times()
    print(json.dumps({**index.summary(measured), **handle, "cold_start_s": started["cold_start_s"]}))


if __name__ == "__main__":
    main()
