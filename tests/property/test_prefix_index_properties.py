"""PrefixIndex against a brute-force twin. Numbers: invariants of kvstore/prefix_index.py.

Blocks are the nodes of a random tree. A history stores paths of it (whole or in part, several at a time), removes
blocks with all that hangs below them, retires and opens slots, sweeps a little, and asks for matches in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvstore.prefix_index import PrefixIndex
from kvstore.slot_lives import SLOT_BYTES

SLOTS_PER_BUCKET = 4  # two blocks a bucket: splits all the time
Tree = list[int]  # parent of each node by node, -1 at the top

OPS = ["store"] * 6 + ["remove"] * 4 + ["open"] * 2 + ["retire", "sweep", "sweep", "sweep"]
Step = tuple[str, int, list[int]]
History = list[Step]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Tree, History]:
    """A tree and what happens to it, drawn as a seed: long histories reach what drawing every number does not."""
    random = Random(draw(st.integers(0, 2**32)))
    num_nodes, num_steps = draw(st.integers(1, 150)), draw(st.integers(0, 80))
    branching = random.random() / 2
    tree = [node - 1 if random.random() > branching else random.randint(-1, node - 1) for node in range(num_nodes)]
    steps: History = []
    for _ in range(num_steps):
        nodes = [random.randrange(1000) for _ in range(random.choice([1, 1, 1, 3]))]
        steps.append((random.choice(OPS), random.randrange(1000), nodes))
    return tree, steps


def block_of(node: int) -> int:
    return xxh3_64_intdigest(node.to_bytes(4, "little"))


@dataclass
class Twin:
    """What every open slot holds, as sets of nodes, and how to hold an index against it."""

    tree: Tree
    budget_bytes: int = 1 << 20
    index: PrefixIndex = field(init=False)
    held: dict[int, set[int]] = field(default_factory=dict)
    refused: int = 0
    num_opened: int = 0

    def __post_init__(self) -> None:
        self.index = PrefixIndex(self.budget_bytes, slots_per_bucket=SLOTS_PER_BUCKET)

    def path(self, node: int) -> list[int]:
        """From the top to the node."""
        above = [] if self.tree[node] < 0 else self.path(self.tree[node])
        return [*above, node]

    def slot(self, number: int) -> int | None:
        return sorted(self.held)[number % len(self.held)] if self.held else None

    def apply(self, op: str, number: int, numbers: list[int]) -> None:
        slot, nodes = self.slot(number), [value % len(self.tree) for value in numbers]
        if op == "open" or slot is None:
            self.open()
        elif op == "store":
            self.store(slot, nodes, only_missing=number % 2 == 0)
        elif op == "remove":
            self.remove(slot, nodes[0])
        elif op == "retire":
            self.index.retire(slot)
            del self.held[slot]
        else:
            self.index.sweep(1 + number % 50)

    def open(self) -> None:
        slot = self.index.open_slot()
        assert slot not in self.held
        assert slot <= len(self.held) or self.index.needs_sweep  # the lowest, but for those not swept yet
        self.held[slot] = set()
        self.num_opened += 1
        assert self.index.held_by(slot) == 0
        assert not self.index.is_truncated(slot)

    def store(self, slot: int, nodes: list[int], only_missing: bool) -> None:
        wanted = [node for last in nodes for node in self.path(last)]
        if only_missing:
            wanted = [node for node in wanted if node not in self.held[slot]]
        distinct = list(dict.fromkeys(wanted))
        truncated = self.index.is_truncated(slot)
        refused = self.index.store(slot, [block_of(node) for node in wanted])
        assert refused == len(distinct) if truncated else refused <= len(distinct)  # invariant 4
        assert self.index.is_truncated(slot) == (truncated or refused > 0)
        self.held[slot].update(distinct[: len(distinct) - refused])
        self.refused += refused

    def remove(self, slot: int, node: int) -> None:
        """The node and everything below it, children first, and some that the slot does not hold."""
        below = [other for other in range(len(self.tree)) if node in self.path(other)]
        self.index.remove(slot, [block_of(other) for other in sorted(below, key=lambda n: -len(self.path(n)))])
        self.held[slot].difference_update(below)
        if self.index.held_by(slot) != len(self.held[slot]):  # invariant 4: no memory even to remove
            assert self.index.is_truncated(slot)
            assert self.index.held_by(slot) == 0
            self.held[slot] = set()

    def check(self, node: int) -> None:
        chain = self.path(node)
        rows = self.index.match([block_of(other) for other in chain])
        assert rows == self.rows(chain)  # invariant 2
        assert self.index.match([block_of(other) for other in chain]) == rows  # invariant 6: also with spans put right
        assert self.index.num_live_slots == len(self.held)
        assert self.index.num_refused_blocks == self.refused
        assert self.index.bytes_used <= self.budget_bytes + SLOT_BYTES * self.num_opened  # invariant 5

    def rows(self, chain: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The same by walking."""
        overlaps = {slot: overlap(held, chain) for slot, held in self.held.items()}
        depths = sorted(set(overlaps.values()) - {0})
        return tuple((depth, sum(1 << slot for slot in overlaps if overlaps[slot] >= depth)) for depth in depths)


def overlap(held: set[int], chain: Sequence[int]) -> int:
    for num_blocks, node in enumerate(chain):
        if node not in held:
            return num_blocks
    return len(chain)


def run(twin: Twin, history: History) -> None:
    """Apply a history; the last number of each step also chooses a prompt to look at."""
    for op, number, values in history:
        twin.apply(op, number, values)
        twin.check(values[-1] % len(twin.tree))
        assert all(twin.tree[node] in held | {-1} for held in twin.held.values() for node in held)  # invariant 4
    for node in range(len(twin.tree)):
        twin.check(node)
    for slot, held in twin.held.items():
        assert twin.index.held_by(slot) == len(held)
    twin.index.validate()


@settings(max_examples=200)
@given(histories())
def test_the_index_is_its_twin(drawn: tuple[Tree, History]) -> None:
    tree, history = drawn
    twin = Twin(tree)
    run(twin, history)
    assert twin.refused == 0
    assert not any(twin.index.is_truncated(slot) for slot in twin.held)


@settings(max_examples=300)
@given(histories(), st.integers(1000, 8000))
def test_invariants_4_and_5_the_index_is_its_twin_also_without_memory(
    drawn: tuple[Tree, History], budget_bytes: int
) -> None:
    tree, history = drawn
    run(Twin(tree, budget_bytes), history)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(0, 200))
def test_invariant_4_many_holders_of_one_chain_leave_it_one_by_one(seed: int, num_slots: int, spare: int) -> None:
    """Every removal splits a set. When even the reserve is used up slots are lost, and the others stay exact."""
    random, tree = Random(seed), [node - 1 for node in range(40)]
    stores: History = [("open", 0, [0])] * num_slots + [("store", slot, [39]) for slot in range(num_slots)]
    removes: History = [("remove", random.randrange(num_slots), [random.randrange(40)]) for _ in range(40)]
    for budget_bytes in range(2500, 20_000, 50):
        least = Twin(tree, budget_bytes)
        for op, number, nodes in stores:
            least.apply(op, number, nodes)
        if not least.refused:
            break
    run(Twin(tree, budget_bytes + spare), stores + removes)


@given(histories())
def test_invariants_1_and_3_nothing_is_left_of_slots_that_were_retired_and_swept(drawn: tuple[Tree, History]) -> None:
    tree, history = drawn
    twin = Twin(tree)
    run(twin, history)
    for slot in twin.held:
        twin.index.retire(slot)
    twin.index.sweep(1 << 30)
    assert not twin.index.needs_sweep
    assert twin.index.num_blocks == twin.index.num_holder_sets == twin.index.num_live_slots == 0
    twin.held = {}
    twin.open()
    run(twin, [("store", 0, [len(tree) - 1])])
