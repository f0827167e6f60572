"""Claim: a decision costs microseconds, and grows with the pairs it weighs.

    python -m tests.bench.decide

CPU time of one request through the core (arrived, prefill done, first token, done) for fleets of several sizes.
"""

import json
import time
from random import Random

from kvstore.types import RequestId
from router.core import RouterCore
from router.events import FirstToken, PrefillDone, RequestArrived, RequestDone, WorkerChanged
from router.policy import LeastPredictedWork
from tests.builders import make_decode, make_prefill, make_request

ROUNDS = 300


def measure(num_workers: int) -> dict[str, float]:
    """Microseconds of CPU per request with half the workers in each pool."""
    core = RouterCore(LeastPredictedWork(Random(1)), max_attempts=3, retry_after_s=1.0)
    for index in range(num_workers // 2):
        core.handle(WorkerChanged(make_prefill(f"p{index}")), 0.0)
        core.handle(WorkerChanged(make_decode(f"d{index}")), 0.0)
    began_s = time.process_time()
    for index in range(ROUNDS):
        request_id = RequestId(f"r{index}")
        core.handle(RequestArrived(make_request(request_id)), 0.0)
        core.handle(PrefillDone(request_id, 1), 0.0)
        core.handle(FirstToken(request_id, 1), 0.0)
        core.handle(RequestDone(request_id, 1), 0.0)
    return {"workers": num_workers, "cpu_us_per_request": round((time.process_time() - began_s) / ROUNDS * 1e6, 1)}


def main() -> None:
    """Print the table and one JSON line."""
    rows = [measure(num_workers) for num_workers in (2, 10, 100)]
    for row in rows:
        print(f"{row['workers']:>5} workers {row['cpu_us_per_request']:>10} us of CPU per request")
    print(json.dumps({"bench": "decide", "rows": rows}))


if __name__ == "__main__":
    main()
