"""How a request finds the workers that would compute its prompt, seen as one pool: what admission reads. Pure."""

import numpy as np

from router.admission_desk import PoolState
from router.chooser import Chosen
from router.cost import least
from router.fleet_table import FleetTable


def look_at_pool(table: FleetTable, chosen: Chosen, *, is_open: bool, output_tokens: int, late_s: float) -> PoolState:
    """The pool, of which this router has a share where it does not know what other replicas promise."""
    view = chosen.eligible.view
    free_in_s = (view.prefill if len(view.prefill_rows) else view.decode).backlog_s
    if table.is_blind:
        free_in_s = np.sort(free_in_s)[:: table.num_replicas]
    wait_s = 0.0 if chosen.choice is not None else table.next_end_s(view.decode_rows, output_tokens)
    return PoolState(
        free_in_s=free_in_s,
        is_open=is_open,
        idle_tpot_s=least(chosen.eligible.decode.idle_tpot_s),
        tpot_in_s=wait_s if chosen.num_tpot_blocked == chosen.num_eligible else 0.0,
        kv_in_s=wait_s if chosen.num_kv_blocked == chosen.num_eligible else 0.0,
        late_s=late_s,
    )
