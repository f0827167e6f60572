"""Linear and mixed-integer programs, handed to HiGHS. Nothing else here knows the solver. Pure.

One thread and one seed: the same program has the same answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import PlacementError

INF = float("inf")

_new: Callable[[], highspy.Highs] = highspy.Highs
_SOLVED, _OUT_OF_TIME = highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit


@dataclass(frozen=True, slots=True)
class Solved:
    """What came of it. With integers `bound` may be below `value`: time ran out, or the gap that was asked is met."""

    value: float  # inf if no solution was found in time
    bound: float  # no solution is below it
    columns: NDArray[np.float64]  # empty if no solution was found in time
    row_duals: NDArray[np.float64]  # empty with integers


@dataclass(slots=True)
class Program:
    """Minimise cost times columns, each row between its bounds."""

    _costs: list[float] = field(default_factory=list)
    _lower: list[float] = field(default_factory=list)
    _upper: list[float] = field(default_factory=list)
    _is_integer: list[bool] = field(default_factory=list)
    _row_lower: list[float] = field(default_factory=list)
    _row_upper: list[float] = field(default_factory=list)
    _row_starts: list[int] = field(default_factory=lambda: [0])
    _at: list[int] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)

    def column(self, lower: float = 0.0, upper: float = INF, *, cost: float = 0.0, is_integer: bool = False) -> int:
        """Add a column; its number."""
        self._costs.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._is_integer.append(is_integer)
        return len(self._costs) - 1

    def row(self, columns: Sequence[int], values: Sequence[float], lower: float, upper: float) -> int:
        """Add lower <= sum of values times columns <= upper; its number."""
        self._at.extend(columns)
        self._values.extend(values)
        self._row_starts.append(len(self._at))
        self._row_lower.append(lower)
        self._row_upper.append(upper)
        return len(self._row_lower) - 1

    def solve(self, *, limit_s: float = INF, gap: float = 0.0) -> Solved:
        """The best solution, or the best found by `limit_s` or within `gap` (relative); PlacementError if none is."""
        highs = self._loaded(limit_s, gap)
        highs.run()
        status, info = highs.getModelStatus(), highs.getInfo()
        is_found = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
        if status not in (_SOLVED, _OUT_OF_TIME) or (status == _SOLVED and not is_found):
            raise PlacementError(f"the solver found nothing: {highs.modelStatusToString(status)}")
        has_integers = any(self._is_integer)
        if not is_found:
            return Solved(INF, float(info.mip_dual_bound) if has_integers else -INF, np.zeros(0), np.zeros(0))
        solution, value = highs.getSolution(), float(info.objective_function_value)
        if has_integers:
            return Solved(value, float(info.mip_dual_bound), np.array(solution.col_value), np.zeros(0))
        return Solved(value, value, np.array(solution.col_value), np.array(solution.row_dual))

    def _loaded(self, limit_s: float, gap: float) -> highspy.Highs:
        highs = _new()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("threads", 1)
        highs.setOptionValue("random_seed", 0)
        highs.setOptionValue("time_limit", limit_s)
        highs.setOptionValue("mip_rel_gap", gap)
        highs.setOptionValue("mip_abs_gap", 0.0)
        highs.passModel(
            len(self._costs),
            len(self._row_lower),
            len(self._at),
            int(highspy.MatrixFormat.kRowwise),
            int(highspy.ObjSense.kMinimize),
            0.0,
            np.array(self._costs),
            np.array(self._lower),
            np.array(self._upper),
            np.array(self._row_lower),
            np.array(self._row_upper),
            np.array(self._row_starts, dtype=np.int32),
            np.array(self._at, dtype=np.int32),
            np.array(self._values),
            np.array(self._is_integer, dtype=np.int32),
        )
        return highs
