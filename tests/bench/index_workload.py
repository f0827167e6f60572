"""Prompts and who holds them, for every index that is compared. Standard library only: peers run in interpreters of
their own.

Block hashes are random, as a good hash makes them. They are made afresh each time they are needed, so that a look-up
finds them in the state that hashing a prompt leaves behind, and the index not in the cache.

    shared     every worker holds the same first 64 blocks; each prompt's other 448 are held by one to three workers,
               one of them to the end
    scattered  nothing is shared; four workers hold the beginning of each prompt, to four different depths
    evicted    as scattered, but every worker stored the whole prompt and then removed what is beyond its depth
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

NUM_WORKERS = 1000
PROMPT_BLOCKS = 512
SYSTEM_BLOCKS = 64
CASES = ("shared", "scattered", "evicted")
_SYSTEM_SEED = 1 << 41
_HOLDERS_SEED = 1 << 40  # and on; prompts have their number
_PAGE_BYTES = 4096


def prompt_chain(case: str, number: int) -> list[int]:
    """The block hashes of one prompt."""
    if case != "shared":
        return _hashes(number, PROMPT_BLOCKS)
    return _hashes(_SYSTEM_SEED, SYSTEM_BLOCKS) + _hashes(number, PROMPT_BLOCKS - SYSTEM_BLOCKS)


def prompt_holders(case: str, number: int) -> dict[int, int]:
    """How many leading blocks each worker holds, the shared ones apart."""
    random = Random(_HOLDERS_SEED + number)
    num_holders = random.choice((1, 1, 2, 3)) if case == "shared" else 4
    first = SYSTEM_BLOCKS + 1 if case == "shared" else 1
    holders = {
        worker: random.randint(first, PROMPT_BLOCKS) for worker in random.sample(range(NUM_WORKERS), num_holders)
    }
    if case == "shared":
        holders[next(iter(holders))] = PROMPT_BLOCKS
    return holders


def overlaps(case: str, number: int) -> dict[int, int]:
    """The right answer: every worker's leading blocks."""
    shared = dict.fromkeys(range(NUM_WORKERS), SYSTEM_BLOCKS) if case == "shared" else {}
    return shared | prompt_holders(case, number)


def num_prompts(case: str, num_blocks: int) -> int:
    """How many prompts make about so many distinct blocks."""
    blocks_each = PROMPT_BLOCKS - SYSTEM_BLOCKS if case == "shared" else PROMPT_BLOCKS * 4 // 5
    return max(1, num_blocks // blocks_each)


def stores(case: str, num_blocks: int) -> Iterator[tuple[int, list[int], int]]:
    """(worker, a whole chain, how many leading blocks of it the worker holds in the end), for an empty index."""
    if case == "shared":
        for worker in range(NUM_WORKERS):
            yield worker, _hashes(_SYSTEM_SEED, SYSTEM_BLOCKS), SYSTEM_BLOCKS
    for number in range(num_prompts(case, num_blocks)):
        for worker, depth in prompt_holders(case, number).items():
            yield worker, prompt_chain(case, number), depth


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def rss_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _hashes(seed: int, count: int) -> list[int]:
    bits = Random(seed).getrandbits
    return [bits(64) for _ in range(count)]
