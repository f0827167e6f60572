"""Claim: fitted while it serves, the latency model predicts a worker within a few per cent where the prior is far off.

    python -m tests.bench.latency_fit PERF_MODEL_CSV PROFILER_JSON

Real measurements of vLLM-like engines, from two public repositories:
  splitwise    Mutinifni/splitwise-sim, data/perf_model.csv (MIT): llama2-70b and bloom-176b on A100 and H100, TP 2 to
               8: rows as measured. 7 of 10 rows in random order are learned from, the rest is predicted.
  distserve    LLMServe/DistServe, simdistserve/estimators/profile_data/profiler-a100-80g.distserve.json (Apache-2.0):
               coefficients that were fitted to OPT-13B to 175B; samples with 10 % of noise are drawn from them, half
               the prompts behind others, and what is predicted is judged without noise. Decode is piecewise linear in
               the batch there, so one line cannot be exact.
Rows of Splitwise where a larger batch took less time than half of it did not fit into the GPUs' memory; left out.
"""

import argparse
import csv
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any, NamedTuple

from router.latency import LatencyPrior, WorkerLatency
from router.latency.fitted_time import COLD_SAMPLES

SEEDS = range(5)
STREAMED = 200  # samples of each kind drawn from a DistServe profile


class Row(NamedTuple):
    """One measurement: the work of a prefill and of the decode steps after it."""

    prefill: tuple[int, float, float]  # prompts, new tokens, 10^6 new * context tokens
    prefill_s: float
    step: tuple[float, float]  # sequences, KV tokens
    step_s: float
    true_prefill_s: float  # without noise, where that is known
    true_step_s: float


class Errors(NamedTuple):
    """Mean absolute relative errors of one kind of time on one worker."""

    prior: float
    early: float  # of the predictions made before each of the first 20 samples
    fitted: float  # on rows that were not learned from


def splitwise(path: Path) -> Iterator[tuple[str, list[Row]]]:
    """Rows of each (model, GPU, TP) of Splitwise's measurements."""
    measured: dict[str, list[dict[str, str]]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            measured[f"{row['model']} {row['hardware']} TP{row['tensor_parallel']}"].append(row)
    for name, rows in measured.items():
        by_size: dict[tuple[int, int], list[float]] = defaultdict(list)
        for row in rows:
            by_size[int(row["prompt_size"]), int(row["batch_size"])].append(float(row["prompt_time"]))
        yield (
            f"splitwise {name}",
            [
                _splitwise_row(row)
                for row in rows
                if median(by_size[size := (int(row["prompt_size"]), int(row["batch_size"]))])
                >= median(by_size.get((size[0], size[1] // 2), [0.0]))
            ],
        )


def _splitwise_row(row: dict[str, str]) -> Row:
    prompt, batch, output = int(row["prompt_size"]), int(row["batch_size"]), int(row["token_size"])
    prefill_s, step_s = float(row["prompt_time"]) / 1e3, float(row["token_time"]) / 1e3
    return Row(
        prefill=(batch, batch * prompt, batch * prompt * prompt / 1e6),
        prefill_s=prefill_s,
        step=(batch, batch * (prompt + output / 2)),
        step_s=step_s,
        true_prefill_s=prefill_s,
        true_step_s=step_s,
    )


def distserve(path: Path) -> Iterator[tuple[str, list[Row]]]:
    """Samples drawn from each (model, TP) of DistServe's profiles."""
    for model, by_parallelism in json.loads(path.read_text()).items():
        for tensor_parallel, profile in by_parallelism.items():
            rng = Random(f"{model} {tensor_parallel}")
            yield f"distserve {model} TP{tensor_parallel}", [_distserve_row(profile, rng) for _ in range(STREAMED)]


def _distserve_row(profile: dict[str, Any], rng: Random) -> Row:
    lengths = [min(2_000.0, math.exp(rng.gauss(5.5, 1.0))) for _ in range(rng.choice((1, 1, 1, 2, 3, 6)))]
    a, b, c = profile["prefill"]  # ms; a once for each prompt: they are computed one after the other
    prefill_s = sum(a + b * length + c * length * length for length in lengths) / 1e3
    batch, context = rng.randint(1, 160), math.exp(rng.gauss(6.0, 0.7))
    is_small = batch < profile["decoding_large_small_bs_threshold"]
    a, b, c = profile["decoding_smallbs" if is_small else "decoding_largebs"]
    step_s = (a + b * batch * context + c * batch) / 1e3
    return Row(
        prefill=(len(lengths), sum(lengths), sum(length * length for length in lengths) / 1e6),
        prefill_s=prefill_s * math.exp(rng.gauss(0.0, 0.1)),
        step=(batch, batch * context),
        step_s=step_s * math.exp(rng.gauss(0.0, 0.1)),
        true_prefill_s=prefill_s,
        true_step_s=step_s,
    )


def warm_model() -> WorkerLatency:
    """A model that will believe the next sample."""
    latency = WorkerLatency(LatencyPrior())
    for _ in range(COLD_SAMPLES):
        latency.observe_prefill(1.0, 1, 1, 1, now_s=0.0)
        latency.observe_step(1.0, 1, 1, 1, now_s=0.0)
        latency.observe_transfer(1.0, 1, now_s=0.0)
    return latency


def stream(rows: Sequence[Row], seed: int) -> tuple[Errors, Errors]:
    """Errors of prefill and step predictions, rows in the order that `seed` gives."""
    shuffled = list(rows)
    Random(seed).shuffle(shuffled)
    num_learned = len(rows) * 7 // 10
    learned, held_out = shuffled[:num_learned], shuffled[num_learned:]
    prior, latency = WorkerLatency(LatencyPrior()), warm_model()
    early: tuple[list[float], list[float]] = ([], [])
    for row in learned:
        early[0].append(_prefill_error(latency, row))
        early[1].append(_step_error(latency, row))
        latency.observe_prefill(row.prefill_s, *row.prefill, now_s=0.0)
        latency.observe_step(row.step_s, *row.step, steps=30, now_s=0.0)
    kinds: tuple[Callable[[WorkerLatency, Row], float], ...] = (_prefill_error, _step_error)
    prefill, step = (
        Errors(
            prior=mean(error(prior, row) for row in held_out),
            early=mean(before[:20]),
            fitted=mean(error(latency, row) for row in held_out),
        )
        for error, before in zip(kinds, early, strict=True)
    )
    return prefill, step


def _prefill_error(latency: WorkerLatency, row: Row) -> float:
    c0, c1, c2 = latency.params()[:3]
    prompts, tokens, quad = row.prefill
    return abs(c0 * prompts + c1 * tokens / 1e3 + c2 * quad - row.true_prefill_s) / row.true_prefill_s


def _step_error(latency: WorkerLatency, row: Row) -> float:
    return abs(latency.predict_step_s(*row.step) - row.true_step_s) / row.true_step_s


def cost_us() -> dict[str, float]:
    """Microseconds of CPU of one observation of each kind."""
    latency, rounds = warm_model(), 2_000
    kinds: dict[str, Callable[[int], object]] = {
        "prefill": lambda i: latency.observe_prefill(0.1 + i % 7, 1 + i % 3, 500.0, 1.0, 0.0),
        "step": lambda i: latency.observe_step(0.03 + 0.001 * (i % 7), i % 9, 500.0, 30, 0.0),
        "transfer": lambda i: latency.observe_transfer(0.02 + 0.001 * (i % 7), 500.0 * (i % 3), 0.0),
    }
    taken = {}
    for kind, observe in kinds.items():
        began_s = time.process_time()
        for index in range(rounds):
            observe(index)
        taken[kind] = round((time.process_time() - began_s) / rounds * 1e6, 1)
    return taken


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description="Against measurements that others have published.")
    parser.add_argument("perf_model_csv", type=Path)
    parser.add_argument("profiler_json", type=Path)
    given = parser.parse_args()
    print(f"{'mean error, %':<42}{'prefill: prior':>15} first 20   fitted{'step: prior':>14} first 20   fitted")
    totals: dict[str, list[Errors]] = defaultdict(list)
    for name, rows in (*splitwise(given.perf_model_csv), *distserve(given.profiler_json)):
        runs = [stream(rows, seed) for seed in SEEDS]
        kinds = [Errors(*(mean(column) for column in zip(*kind, strict=True))) for kind in zip(*runs, strict=True)]
        print(f"{name:<42}" + "".join(f"{e.prior:>15.1%}{e.early:>9.1%}{e.fitted:>9.1%}" for e in kinds))
        for kind, errors in zip(("prefill", "step"), kinds, strict=True):
            totals[f"{name.split()[0]}_{kind}"].append(errors)
    result = {
        kind: {field: round(100 * mean(getattr(errors, field) for errors in all_errors), 1) for field in Errors._fields}
        for kind, all_errors in totals.items()
    }
    print(json.dumps({"bench": "latency_fit", "mean_abs_error_percent": result, "observe_us": cost_us()}))


if __name__ == "__main__":
    main()
