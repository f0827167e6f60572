"""How a request finds the workers that would compute its prompt, seen as one pool: what admission reads. Pure."""

import numpy as np

from router.admission_desk import PoolState
from router.chooser import Chosen
from router.fleet_table import FleetTable
from router.types import Request


def look_at_pool(
    table: FleetTable,
    request: Request,
    chosen: Chosen,
    *,
    uses_prefill_pool: bool,
    is_open: bool,
    output_tokens: int,
    late_s: float,
    now_s: float,
) -> PoolState:
    """The pool of `request`, of which this router has a share where it does not know what other replicas promise."""
    prefill, decode = table.eligible(request.model, request.route)
    rows = prefill if request.can_hand_off and len(prefill) and uses_prefill_pool else decode
    free_in_s = table.backlog_s(rows, now_s)
    if table.is_blind:
        free_in_s = np.sort(free_in_s)[:: table.num_replicas]
    wait_s = 0.0 if chosen.choice is not None else table.next_end_s(decode, output_tokens)
    return PoolState(
        free_in_s=free_in_s,
        is_open=is_open,
        idle_tpot_s=float(table.idle_tpot_s(decode, request.num_prompt_tokens).min()),
        tpot_in_s=wait_s if chosen.num_tpot_blocked == chosen.num_eligible else 0.0,
        kv_in_s=wait_s if chosen.num_kv_blocked == chosen.num_eligible else 0.0,
        late_s=late_s,
    )
