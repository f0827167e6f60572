"""Claim: one core follows the KV events of an engine far faster than any engine makes them.

    python -m tests.bench.kv_mirror

Bytes to typed events to changes of reachability, prompts of 16 blocks of 32 tokens, for several canonical block sizes:
stores alone, and each store with the removal of an older prompt. In CPU time, so that a busy machine does not count.
"""

import json
import random
import time
from collections.abc import Sequence

import msgspec

from workers.fake.blocks import BlockRemoved, BlockStored, EventBatch
from workers.kv_event_codec import decode_batch
from workers.kv_mirror import KvMirror

PROMPTS = 3_000
BLOCKS = 16
ENGINE_BLOCK_TOKENS = 32
KEPT_PROMPTS = 200


def payloads(*, forget: bool) -> list[bytes]:
    """One message for each prompt, none of which shares anything with another."""
    rng = random.Random(1)
    kept: list[list[int]] = []
    messages = []
    for _ in range(PROMPTS):
        hashes = [rng.getrandbits(64) for _ in range(BLOCKS)]
        tokens = [rng.randrange(150_000) for _ in range(BLOCKS * ENGINE_BLOCK_TOKENS)]
        events: list[BlockStored | BlockRemoved] = []
        if forget and len(kept) == KEPT_PROMPTS:
            events += [BlockRemoved([block], "GPU", group_idx=0) for block in reversed(kept.pop(0))]
        extra_keys: list[tuple[str, ...] | None] = [None] * BLOCKS
        events.append(
            BlockStored(hashes, None, tokens, ENGINE_BLOCK_TOKENS, None, "GPU", None, extra_keys, 0, "full_attention")
        )
        kept.append(hashes)
        messages.append(msgspec.msgpack.encode(EventBatch(0.0, [*events], 0)))
    return messages


def stores_per_s(messages: Sequence[bytes], size_tokens: int) -> float:
    """Blocks stored a second; with removals, as many are removed."""
    mirror = KvMirror(size_tokens, max_blocks=1_000_000)
    started_s = time.process_time()
    for payload in messages:
        mirror.apply(decode_batch(payload).events)
    return len(messages) * BLOCKS / (time.process_time() - started_s)


def main() -> None:
    """A table and one JSON line."""
    found = {}
    print(f"{'canonical block':>16} {'stores only':>14} {'stores, each with a removal':>28}   blocks stored/s")
    growing, steady = payloads(forget=False), payloads(forget=True)
    for size_tokens in (16, 32, 48, 64):
        stores, both = stores_per_s(growing, size_tokens), stores_per_s(steady, size_tokens)
        print(f"{size_tokens:>16} {stores:>14,.0f} {both:>28,.0f}")
        found[f"stores_per_s_{size_tokens}"] = round(stores)
        found[f"replacements_per_s_{size_tokens}"] = round(both)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
