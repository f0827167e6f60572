"""How a request finds the workers that would compute its prompt, seen as one pool: what admission reads. Pure."""

import numpy as np

from router.admission.desk import PoolState
from router.choice.chooser import Chosen
from router.choice.cost import column, decode_room, least
from router.fleet.table import FleetTable


def look_at_pool(
    table: FleetTable, chosen: Chosen, *, is_open: bool, is_due: bool, output_tokens: int, late_s: float
) -> PoolState:
    """The pool, of which this router has a share where it does not know what other replicas promise."""
    costs = chosen.eligible
    view, request = costs.view, costs.view.request
    free_in_s = column((costs.prefill if len(view.prefill_rows) else costs.local_prefill).backlog_s)
    if table.is_blind:
        free_in_s = np.sort(free_in_s)[:: table.num_replicas]
    return PoolState(
        free_in_s=free_in_s,
        is_open=is_open,
        idle_tpot_s=least(costs.idle_tpot_s),
        has_room=chosen.choice is not None,
        kv_is_short=chosen.num_kv_blocked > chosen.num_tpot_blocked,
        decode_room=lambda: decode_room(
            costs,
            tpot_s=request.terms.slo.tpot_s,
            kv_tokens=request.num_prompt_tokens + output_tokens,
            output_tokens=output_tokens,
            with_margin=not is_due,
            num_replicas=table.num_replicas,
        ),
        late_s=late_s,
    )
