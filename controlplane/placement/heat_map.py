"""A placement as text: a row a layer, a column a rank, darker where there is more to do. Pure."""

import numpy as np

from controlplane.placement.objective import even_loads, rank_loads
from controlplane.placement.types import Placement, Tokens, Topology

# Up to so many times the even load; the last beyond.
_SHADES = ((0.0, "x"), (0.75, "·"), (0.95, "░"), (1.05, "▒"), (1.25, "▓"))
_DARKEST = "█"
LEGEND = "· under 0.75 of the even load   ░ 0.95   ▒ 1.05   ▓ 1.25   █ above   x dead"


def heat_map(placement: Placement, topology: Topology, tokens: Tokens) -> list[str]:
    """A line for each layer: shades of its ranks, nodes apart, and the load of the slowest rank."""
    loads = rank_loads(placement, topology, tokens) / even_loads(topology, tokens)[:, None]
    width = len(str(len(loads) - 1))
    breaks = {int(at) + 1 for at in np.flatnonzero(np.diff(topology.nodes))}
    return [
        f"{layer:>{width}} " + "".join(_shades(row, breaks, topology)) + f"  {row.max():.2f} rank {row.argmax()}"
        for layer, row in enumerate(loads)
    ]


def _shades(row: "np.ndarray[tuple[int], np.dtype[np.float64]]", breaks: set[int], topology: Topology) -> list[str]:
    shades = []
    for rank, load in enumerate(row):
        if rank in breaks:
            shades.append(" ")
        limit = 0.0 if not topology.ranks[rank].is_alive else max(float(load), 1e-9)
        shades.append(next((shade for most, shade in _SHADES if limit <= most), _DARKEST))
    return shades
