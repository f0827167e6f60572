"""Least squares with coefficients that are not negative, for a handful of unknowns. Pure.

Adding up times: no part of the work takes less than no time. Setting a negative coefficient to zero afterwards would
leave the others wrong, so the constraint is part of the solution.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

Matrix = list[list[float]]


def solve_nonnegative(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    """The x >= 0 that minimises x'Ax/2 - b'x, with A symmetric and positive definite. Exact up to rounding.

    Entries that the free solution has negative are held at zero and the rest solved again. That is the answer if no
    entry is negative now and none at zero wants to grow; else every set of entries that may differ from zero is
    tried: 2^n small systems, for n of at most four.
    """
    free = _solve(matrix, vector)
    if min(free) >= 0.0:
        return free
    guess = _solve_on(tuple(i for i, entry in enumerate(free) if entry >= 0.0), matrix, vector)
    if min(guess) >= 0.0 and _is_best(guess, matrix, vector):
        return guess
    found = (_solve_on(support, matrix, vector) for support in _proper_subsets(len(vector)))
    feasible = (x for x in found if min(x) >= 0.0)
    # On its support x'Ax = b'x, so twice the value is -b'x.
    return max(feasible, key=lambda x: _dot(x, vector))


def _is_best(x: Sequence[float], matrix: Matrix, vector: Sequence[float]) -> bool:
    """Whether the slope of the value is not downwards at any entry that is zero."""
    return all(entry > 0.0 or _dot(row, x) >= right for entry, row, right in zip(x, matrix, vector, strict=True))


def _solve_on(support: Sequence[int], matrix: Matrix, vector: Sequence[float]) -> list[float]:
    """The free solution with all entries outside `support` zero."""
    part = _solve([[matrix[i][j] for j in support] for i in support], [vector[i] for i in support])
    solution = [0.0] * len(vector)
    for entry, i in zip(part, support, strict=True):
        solution[i] = entry
    return solution


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _proper_subsets(size: int) -> Iterator[tuple[int, ...]]:
    for count in range(size):
        yield from combinations(range(size), count)


def _solve(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    """Gaussian elimination without pivoting, which a positive definite matrix does not need."""
    size = len(vector)
    if size == 3:
        return _solve_three(matrix, vector)
    rows = [[*row, right] for row, right in zip(matrix, vector, strict=True)]
    for i in range(size):
        pivot = rows[i]
        for j in range(i + 1, size):
            row = rows[j]
            factor = row[i] / pivot[i]
            for k in range(i + 1, size + 1):
                row[k] -= factor * pivot[k]
    solution = [0.0] * size
    for i in reversed(range(size)):
        row = rows[i]
        rest = row[size]
        for k in range(i + 1, size):
            rest -= row[k] * solution[k]
        solution[i] = rest / row[i]
    return solution


def _solve_three(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    """The same, written out: it is done for every prompt, and takes a third of the time."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    u, v, w = vector
    lower = d / a
    e, f, v = e - lower * b, f - lower * c, v - lower * u
    lower = g / a
    h, i, w = h - lower * b, i - lower * c, w - lower * u
    lower = h / e
    z = (w - lower * v) / (i - lower * f)
    y = (v - f * z) / e
    return [(u - b * y - c * z) / a, y, z]
