"""Dynamo's linear cost, in blocks. Pure.

    cost = prefill_load_scale * max(active_prefill + prompt_blocks - overlap_credit, 0)
           + active_decode + incoming_blocks
    overlap_credit = 1.0 device + 0.75 host + 0.25 disk blocks

Source: ai-dynamo/dynamo `lib/kv-router/src/scheduling/selector.rs` (`worker_logit`) and
`docs/components/router/router-concepts.md`; weights and scales are its defaults, softmax temperature 0. With a prefill
pool the decode router has overlap credit 0 and does not track prefill: it takes the fewest decode blocks
(`docs/components/router/disaggregated-serving.md`).
What differs: equals are drawn, where Dynamo takes the first of its map; blocks in use are counted in tokens over the
block size; other replicas' sequences and KV are known, their prefill tokens are not (Dynamo's replica sync is opt-in).
"""

from random import Random

from router.baselines.pools import PerPool, least
from router.choice.view import Side, View

_PREFILL_LOAD_SCALE = 1.0
_HOST_CREDIT = 0.75
_DISK_CREDIT = 0.25


class DynamoCost:
    """The worker with the smallest cost."""

    def __init__(self, rng: Random, *, credits_overlap: bool) -> None:
        self._rng = rng
        self._credits_overlap = credits_overlap

    def __call__(self, view: View, side: Side) -> int:
        """Its position."""
        prompt_tokens = view.request.num_prompt_tokens
        decode_tokens = side.kv_tokens + prompt_tokens
        if not self._credits_overlap:
            return least(decode_tokens, self._rng)
        device, (host, disk) = side.device_tokens, side.reachable_tokens
        credit = device + _HOST_CREDIT * (host - device) + _DISK_CREDIT * (disk - host)
        active_prefill = view.table.own_prefill_tokens[side.rows]
        prefill_tokens = (active_prefill + prompt_tokens - credit).clip(min=0.0)
        # Every term is in blocks there and in tokens here: dividing all of them by the block size changes no order.
        return least(_PREFILL_LOAD_SCALE * prefill_tokens + decode_tokens, self._rng)


def dynamo(rng: Random) -> PerPool:
    """Overlap counts where the prompt is computed, and only there."""
    with_credit, without = DynamoCost(rng, credits_overlap=True), DynamoCost(rng, credits_overlap=False)
    return PerPool(mixed=with_credit, prefill=with_credit, decode=without)
