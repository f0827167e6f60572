"""Claim: a match over a fleet takes microseconds, side by side with the indexes that others use.

    python -m tests.bench.index_peers PEER CASE NUM_BLOCKS     one of each; prints one JSON line

Every peer is filled with the same holders and asked the same prompts, in a process of its own, which may be another
interpreter: a peer that cannot be imported reports so. Times are what the caller sees from Python, answers included.
"""

import json
import sys
import time
from importlib import import_module
from random import Random
from typing import Any, Protocol

from tests.bench.index_workload import NUM_WORKERS, num_prompts, overlaps, percentile, prompt_chain, rss_bytes, stores

NUM_MATCHES = 4000
NUM_CHECKED = 20


class Peer(Protocol):
    """An index under test. What `prepare_*` does is not timed."""

    differs: str

    def prepare_store(self, worker: int, chain: list[int], depth: int) -> Any: ...

    def store(self, prepared: Any) -> None: ...

    def prepare_match(self, chain: list[int]) -> Any: ...

    def match(self, prepared: Any) -> Any: ...

    def overlaps(self, answer: Any) -> dict[int, int] | None: ...  # by worker; None: it does not tell


class Headrace:
    """kvstore/prefix_index.py."""

    differs = "answers with one bitset of workers for each distinct depth"

    def __init__(self, evict: bool) -> None:
        self._evict = evict
        self._index = import_module("kvstore.prefix_index").PrefixIndex(1 << 30)
        for _ in range(NUM_WORKERS):
            self._index.open_slot()

    def prepare_store(self, worker: int, chain: list[int], depth: int) -> Any:
        if self._evict:
            return worker, chain, chain[depth:][::-1]
        return worker, chain[:depth], ()

    def store(self, prepared: Any) -> None:
        worker, stored, removed = prepared
        self._index.store(worker, stored)
        if removed:
            self._index.remove(worker, removed)

    def prepare_match(self, chain: list[int]) -> Any:
        return chain

    def match(self, prepared: Any) -> Any:
        return self._index.match(prepared)

    def overlaps(self, answer: Any) -> dict[int, int] | None:
        depths: dict[int, int] = {}
        for depth, bits in answer:
            digits = bin(bits)
            last, at = len(digits) - 1, digits.find("1")
            while at >= 0:
                depths[last - at] = depth
                at = digits.find("1", at + 1)
        return depths


class PlainDict(Headrace):
    """What one would write first: a dict from block hash to a bitset, and a bisection of the chain for each row."""

    differs = "a Python dict of bitsets, bisected; no budget, no sweep"

    def __init__(self, evict: bool) -> None:
        self._evict = evict
        self._holders: dict[int, int] = {}
        self._bits = [1 << worker for worker in range(NUM_WORKERS)]

    def store(self, prepared: Any) -> None:
        worker, stored, removed = prepared
        holders, bit = self._holders, self._bits[worker]
        for block in stored:
            before = holders.get(block)
            holders[block] = bit if before is None else before | bit
        for block in removed:
            holders[block] ^= bit
            if not holders[block]:
                del holders[block]

    def match(self, prepared: Any) -> Any:
        rows = []
        low, bits, get = 0, self._holders.get(prepared[0], 0), self._holders.get
        further = [(len(prepared), 0)]
        while bits:
            high, at_high = further[-1]
            if at_high == bits:
                low = high
                further.pop()
            elif high == low + 1:
                rows.append((high, bits))
                low, bits = further.pop()
            else:
                middle = (low + high) // 2
                further.append((middle, get(prepared[middle], 0)))
        return tuple(rows)


class Dynamo:
    """The radix tree of ai-dynamo-runtime, in Rust, behind its Python class."""

    differs = "Rust; events as JSON (encoding not timed), tree in a thread of its own; answers with a dict by worker"

    def __init__(self, evict: bool) -> None:
        self._evict = evict
        self._tree = import_module("dynamo._core").RadixTree()
        self._num_events = 0

    def prepare_store(self, worker: int, chain: list[int], depth: int) -> Any:
        stored = chain if self._evict else chain[:depth]
        blocks = [{"block_hash": block, "tokens_hash": block} for block in stored]
        events: list[dict[str, Any]] = [{"stored": {"parent_hash": None, "blocks": blocks}}]
        if self._evict and chain[depth:]:
            events.append({"removed": {"block_hashes": chain[depth:][::-1]}})
        return worker, [self._encoded(event) for event in events]

    def store(self, prepared: Any) -> None:
        worker, events = prepared
        for event in events:
            self._tree.apply_event(worker, event)

    def prepare_match(self, chain: list[int]) -> Any:
        return chain

    def match(self, prepared: Any) -> Any:
        return self._tree.find_matches(prepared).scores

    def overlaps(self, answer: Any) -> dict[int, int] | None:
        return {worker: depth for (worker, _dp_rank), depth in answer.items()}

    def _encoded(self, data: dict[str, Any]) -> bytes:
        self._num_events += 1
        return json.dumps({"event_id": self._num_events, "data": data, "dp_rank": 0}).encode()


class RayTree:
    """The prefix tree of Ray Serve LLM's prefix-aware router."""

    differs = "Python, over text (64 characters a block); approximate: answers with the deepest match's workers only"

    def __init__(self, evict: bool) -> None:
        if evict:
            raise ImportError("its eviction chooses for itself what goes")
        module = "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree"
        self._tree = import_module(module).PrefixTree()
        self._tree.add_tenants([str(worker) for worker in range(NUM_WORKERS)], 0.0)

    def prepare_store(self, worker: int, chain: list[int], depth: int) -> Any:
        return str(worker), self.prepare_match(chain[:depth])

    def store(self, prepared: Any) -> None:
        worker, text = prepared
        self._tree.insert(text, worker, 0.0)

    def prepare_match(self, chain: list[int]) -> Any:
        return "".join(f"{block:064b}" for block in chain)

    def match(self, prepared: Any) -> Any:
        return self._tree.prefix_match(prepared)

    def overlaps(self, answer: Any) -> dict[int, int] | None:
        return None


PEERS: dict[str, Any] = {
    "headrace": Headrace,
    "plain dict": PlainDict,
    "dynamo RadixTree": Dynamo,
    "ray PrefixTree": RayTree,
}


def measure_peer(name: str, case: str, num_blocks: int, num_matches: int = NUM_MATCHES) -> dict[str, Any]:
    """Fill one peer, ask it. Seconds are CPU of all threads, microseconds wall clock, bytes growth of this process."""
    try:
        peer: Peer = PEERS[name](evict=case == "evicted")
    except (ImportError, AttributeError) as error:
        return {"skipped": str(error)}
    before_bytes, store_s, num_stored = rss_bytes(), 0.0, 0
    for worker, chain, depth in stores(case, num_blocks):
        prepared = peer.prepare_store(worker, chain, depth)
        began_s = time.process_time()
        peer.store(prepared)
        store_s += time.process_time() - began_s
        num_stored += depth
    grown_bytes = rss_bytes() - before_bytes
    times_us, cpu_us, spread_us = _time_matches(peer, case, num_blocks, num_matches)
    return {
        "differs": peer.differs,
        "blocks": num_blocks,
        "match_p50_us": round(percentile(times_us, 0.50), 1),
        "match_p99_us": round(percentile(times_us, 0.99), 1),
        "match_p99_cpu_us": round(percentile(cpu_us, 0.99), 1),
        "by_worker_p50_us": round(percentile(spread_us, 0.50), 1),
        "store_us_per_block": round(store_s / num_stored * 1e6, 2),
        "bytes_per_block": round(grown_bytes / num_blocks, 1),
    }


def _time_matches(
    peer: Peer, case: str, num_blocks: int, num_matches: int
) -> tuple[list[float], list[float], list[float]]:
    """Each match: wall clock; CPU of all threads, which leaves out that others ran; with its answer made a dict."""
    random, times_us, cpu_us, spread_us = Random(1), list[float](), list[float](), list[float]()
    for at in range(num_matches):
        number = random.randrange(num_prompts(case, num_blocks))
        prepared = peer.prepare_match(prompt_chain(case, number))
        began_cpu_ns, began_ns = time.process_time_ns(), time.perf_counter_ns()
        answer = peer.match(prepared)
        times_us.append((time.perf_counter_ns() - began_ns) / 1000)
        cpu_us.append((time.process_time_ns() - began_cpu_ns) / 1000)
        found = peer.overlaps(answer)
        spread_us.append((time.perf_counter_ns() - began_ns) / 1000)
        if at < NUM_CHECKED and found is not None:
            assert found == overlaps(case, number), f"{peer} is wrong about {case} prompt {number}"
    return times_us, cpu_us, spread_us


def main() -> None:
    """One peer, one case."""
    print(json.dumps(measure_peer(sys.argv[1], sys.argv[2], int(sys.argv[3]))))


if __name__ == "__main__":
    main()
