"""One decision's view of the fleet: the rows that may serve a request, and what is known of each. Pure, read only."""

import numpy as np

from kvstore.types import WorkerId
from router.fleet_table import TIERS, Column, FleetTable, Rows
from router.lazy import lazy
from router.types import Overlap, Request


class Side:
    """Rows of one side of a decision (prefill, or decode), with their columns. All columns are aligned with `rows`."""

    def __init__(self, view: "View", rows: Rows) -> None:
        self._view = view
        self._table = view.table
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @lazy
    def ids(self) -> list[WorkerId]:
        """Worker ids."""
        return [self._table.state_at(row).spec.id for row in self.rows]

    @lazy
    def backlog_s(self) -> Column:
        """Seconds of prefill promised and not yet over."""
        return self._table.backlog_s(self.rows, self._view.now_s)

    @lazy
    def seqs(self) -> Column:
        """Sequences running or promised."""
        return self._table.seqs[self.rows]

    @lazy
    def kv_tokens(self) -> Column:
        """Tokens of KV in use or promised."""
        return self._table.kv_tokens[self.rows]

    @lazy
    def kv_total_tokens(self) -> Column:
        """KV capacity; inf where unknown."""
        return self._table.kv_total_tokens[self.rows]

    @lazy
    def min_tpot_s(self) -> Column:
        """The tightest promise among the sequences there; inf where there is none."""
        return self._table.min_tpot_s[self.rows]

    @lazy
    def params(self) -> Column:
        """(rows, 8) coefficients of the latency model: c0 c1 c2, d0 d1 d2, t0 t1."""
        return self._table.params.take(self.rows, axis=0)

    @lazy
    def stall_s_per_1k_tokens(self) -> Column:
        """What each running sequence waits while 1000 prompt tokens are computed beside it."""
        return self._table.stall_s_per_1k_tokens[self.rows]

    @lazy
    def stall_s_per_step(self) -> Column:
        """What the prompts that are computed in the same steps add to each, of late."""
        return self.stall_s_per_1k_tokens * (self._table.prompt_tokens_per_step[self.rows] / 1e3)

    @lazy
    def tokens_per_step(self) -> Column:
        """What a decode step of a sequence yields; 1 without speculation."""
        return self._table.tokens_per_step[self.rows]

    @lazy
    def step_margin(self) -> Column:
        """Safety factor of predicted decode steps, at least 1."""
        return self._table.step_margin[self.rows]

    @lazy
    def device_tokens(self) -> Column:
        """Leading tokens of the prompt that each row has on its device; never the last token."""
        return self._tokens_within(0)

    @lazy
    def reachable_tokens(self) -> tuple[Column, Column]:
        """The same within host memory, and within disk: each includes the tiers before it."""
        if not self._table.has_lower_tiers:
            return self.device_tokens, self.device_tokens
        host = np.maximum(self.device_tokens, self._tokens_within(1))
        return host, np.maximum(host, self._tokens_within(2))

    def _tokens_within(self, tier: int) -> Column:
        # Slot -1, as slots that the index made after the match, has nothing.
        tokens: Column = self._view.slot_tokens[self._table.slots[tier][self.rows]]
        # An engine reuses whole blocks of its own, which may be larger than the index's.
        return tokens - tokens % self._table.engine_block_tokens[self.rows]


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
