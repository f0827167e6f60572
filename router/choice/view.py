"""One decision's view of the fleet: the rows that may serve a request, and what is known of each. Pure, read only."""

from typing import Any

import numpy as np

from kvstore.types import WorkerId
from router.choice.lazy import lazy
from router.fleet.table import (
    BLOCK_TOKENS,
    C0,
    KV,
    KV_TOTAL,
    MIN_TPOT,
    SEQS,
    STEP_MARGIN,
    T1,
    TIERS,
    TOKENS_PER_STEP,
    Column,
    FleetTable,
    Rows,
)
from router.types import Overlap, Request

Amount = Any  # of one row: a float; of several: a Column. Formulas are the same text for both, and the same to the bit
Amounts = Any  # by place in `FleetTable.seen`
Held = tuple[Amount, Amount, Amount]  # tokens on the device, within host memory, within disk
NOTHING_HELD: Held = (0.0, 0.0, 0.0)  # by any row


class Side:
    """Rows of one side of a decision (prefill, or decode), with their columns. All columns are aligned with `rows`."""

    def __init__(self, view: "View", rows: Rows) -> None:
        self._view = view
        self._table = view.table
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @lazy
    def seen(self) -> Column:
        """These rows of `FleetTable.seen`: (columns, rows)."""
        return self._table.seen.take(self.rows, axis=1)

    @lazy
    def held(self) -> "Held":
        """Leading tokens of the prompt that each row has on its device, within host memory, and within disk.

        Each includes the tiers before it, and none the prompt's last token: an engine always computes that.
        """
        if not self._view.overlap.levels:
            return NOTHING_HELD
        device = self._tokens_within(0)
        if not self._table.has_lower_tiers:
            return device, device, device
        host = np.maximum(device, self._tokens_within(1))
        return device, host, np.maximum(host, self._tokens_within(2))

    @lazy
    def by_row(self) -> list[tuple[list[float], "Held"]]:
        """`seen` and `held` row by row, as floats."""
        return [(self.seen_at(at), self.held_at(at)) for at in range(len(self.rows))]

    def seen_at(self, at: int) -> list[float]:
        """`FleetTable.seen` of one of these rows, by position."""
        values: list[float] = self._table.seen[:, self.rows.item(at)].tolist()
        return values

    def held_at(self, at: int) -> "Held":
        """The same as `held`, of one of these rows, by position."""
        if not self._view.overlap.levels:
            return NOTHING_HELD
        row = self.rows.item(at)
        slots: list[int] = self._table.slots[:, row].tolist()
        block_tokens = self._table.engine_block_tokens.item(row)
        device = self._view.tokens_of_slot(slots[0], block_tokens)
        if not self._table.has_lower_tiers:
            return device, device, device
        host = max(device, self._view.tokens_of_slot(slots[1], block_tokens))
        return device, host, max(host, self._view.tokens_of_slot(slots[2], block_tokens))

    @lazy
    def ids(self) -> list[WorkerId]:
        """Worker ids."""
        return [self._table.state_at(row).spec.id for row in self.rows]

    @lazy
    def backlog_s(self) -> Column:
        """Seconds of prefill promised and not yet over."""
        return self._table.backlog_s(self.rows, self._view.now_s)

    @property
    def seqs(self) -> Column:
        """Sequences running or promised."""
        return self._column_of(SEQS)

    @property
    def kv_tokens(self) -> Column:
        """Tokens of KV in use or promised."""
        return self._column_of(KV)

    @property
    def kv_total_tokens(self) -> Column:
        """KV capacity; inf where unknown."""
        return self._column_of(KV_TOTAL)

    @property
    def min_tpot_s(self) -> Column:
        """The tightest promise among the sequences there; inf where there is none."""
        return self._column_of(MIN_TPOT)

    @property
    def params(self) -> Column:
        """(rows, 8) coefficients of the latency model: c0 c1 c2, d0 d1 d2, t0 t1."""
        params: Column = self.seen[C0 : T1 + 1].T
        return params

    @property
    def tokens_per_step(self) -> Column:
        """What a decode step of a sequence yields; 1 without speculation."""
        return self._column_of(TOKENS_PER_STEP)

    @property
    def step_margin(self) -> Column:
        """Safety factor of predicted decode steps, at least 1."""
        return self._column_of(STEP_MARGIN)

    @property
    def device_tokens(self) -> Column:
        """Leading tokens of the prompt that each row has on its device; never the last token."""
        return self._column(self.held[0])

    @property
    def reachable_tokens(self) -> tuple[Column, Column]:
        """The same within host memory, and within disk: each includes the tiers before it."""
        return self._column(self.held[1]), self._column(self.held[2])

    def _column_of(self, place: int) -> Column:
        column: Column = self.seen[place]
        return column

    def _column(self, held: Amount) -> Column:
        column: Column = np.zeros(len(self.rows)) if isinstance(held, float) else held
        return column

    def _tokens_within(self, tier: int) -> Column:
        # Slot -1, as slots that the index made after the match, has nothing.
        tokens: Column = self._view.slot_tokens.take(self._table.slots[tier].take(self.rows))
        # An engine reuses whole blocks of its own, which may be larger than the index's.
        part: Column = tokens % self.seen[BLOCK_TOKENS]
        return tokens - part


class View:
    """What a policy chooses from. `prefill` may be empty; every row of `decode` can also prefill for itself."""

    def __init__(
        self,
        request: Request,
        overlap: Overlap,
        now_s: float,
        table: FleetTable,
        prefill_rows: Rows,
        decode_rows: Rows,
        may_prefill_locally: bool = True,  # False where the operator wants every prompt handed off
    ) -> None:
        self.request = request
        self.overlap = overlap
        self.now_s = now_s
        self.table = table
        self.prefill_rows = prefill_rows
        self.decode_rows = decode_rows
        self.may_prefill_locally = may_prefill_locally

    def with_decode_rows(self, rows: Rows) -> "View":
        """The same with fewer decode workers."""
        return View(
            self.request, self.overlap, self.now_s, self.table, self.prefill_rows, rows, self.may_prefill_locally
        )

    @lazy
    def prefill(self) -> Side:
        """Workers that may compute the prompt for another."""
        return Side(self, self.prefill_rows)

    @lazy
    def decode(self) -> Side:
        """Workers that may answer."""
        return Side(self, self.decode_rows)

    @property
    def most_cached_tokens(self) -> int:
        """An engine always computes the last token of a prompt."""
        return self.request.num_prompt_tokens - 1

    def tokens_of_slot(self, slot: int, block_tokens: float) -> float:
        """Leading tokens held by a slot of the prefix index, in whole blocks of the engine."""
        if slot >= 0:
            for blocks, slots in reversed(self.overlap.levels):
                if slots >> slot & 1:
                    tokens = float(min(blocks * self.overlap.block_size_tokens, self.most_cached_tokens))
                    return tokens - tokens % block_tokens
        return 0.0

    @lazy
    def slot_tokens(self) -> Column:
        """Leading tokens held, by slot of the prefix index; a zero at the end stands for no slot."""
        levels = self.overlap.levels
        num_slots = max(self.table.num_slots, levels[0][1].bit_length() if levels else 0)
        tokens: Column = np.zeros(num_slots + 1)
        num_bytes = (num_slots + 7) // 8
        for blocks, slots in levels:
            held_tokens = min(blocks * self.overlap.block_size_tokens, self.most_cached_tokens)
            if slots.bit_count() <= _FEW:
                while slots:
                    lowest = slots & -slots
                    tokens[lowest.bit_length() - 1] = held_tokens
                    slots ^= lowest
            else:
                packed = np.frombuffer(slots.to_bytes(num_bytes, "little"), dtype=np.uint8)
                held = np.unpackbits(packed, bitorder="little", count=num_slots).view(np.bool_)
                tokens[:-1][held] = held_tokens
        return tokens


_FEW = 8  # below it, picking bits one by one is faster than unpacking a fleet's worth
assert TIERS == 3
