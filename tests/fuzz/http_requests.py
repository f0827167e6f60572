"""Longer fuzzing of what reads requests: `python -m tests.fuzz.http_requests --seconds 600`.

The suite checks the same for a bounded number of examples. Here it goes on with fresh ones until the time is over; a
failure prints its smallest example.
"""

import argparse
import time

from hypothesis import HealthCheck, Phase, given, settings

from tests.http_properties import CHECKS

_EXAMPLES = 2000


def main() -> None:
    """Run until the time is over or something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    end_s = time.monotonic() + parser.parse_args().seconds
    longer = settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    num_examples = 0
    while time.monotonic() < end_s:
        for check, strategies in CHECKS.values():
            longer(given(**strategies)(check))()
            num_examples += _EXAMPLES
    print(f"{num_examples} examples, nothing found")


if __name__ == "__main__":
    main()
