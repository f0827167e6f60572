"""What a worker is, as the rest of Headrace sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kvstore.types import WorkerId


class Role(StrEnum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class Phase(StrEnum):
    """Where a worker is in its life. Only READY workers are chosen."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What does not change while an engine runs. `epoch` counts the engine's starts under this id."""

    id: WorkerId
    role: Role
    model: str
    address: str  # http://host:port of the engine's OpenAI server; empty while it starts
    epoch: int
    kv_blocks_total: int
    block_size_tokens: int
    max_model_len_tokens: int
    routes: Mapping[str, tuple[str, ...]]  # route -> top-level request fields it knows; empty: not known
    adapters: tuple[str, ...] = ()  # LoRA adapters that it has loaded, by name
    rank: int | None = None  # of an engine with several data-parallel ranks: which one this worker is


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """What the engine reported last. Sums over its data-parallel ranks; counters rise from 0 while the engine lives."""

    running_seqs: int
    waiting_seqs: int
    kv_blocks_used: int
    kv_tokens_used: int = 0  # that these blocks have room for
    # Decode: every gap between two outputs of a sequence, and the engine's iterations (a mean over ranks). So
    # gaps / iterations is the mean batch, and seconds / gaps the mean length of a step.
    itl_sum_s: float = 0.0
    itl_count: int = 0
    engine_steps: int = 0
    computed_prompt_tokens: int = 0  # neither cached nor transferred; counted when the prompt is done
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    # Speculative decoding; 0 without. A draft is a sequence's proposal in one step.
    spec_drafts: int = 0
    spec_draft_tokens: int = 0
    spec_accepted_tokens: int = 0
    # Prompt tokens that were not computed: found in its own cache, or pulled from another engine or a lower tier.
    cached_prompt_tokens: int = 0
    transferred_prompt_tokens: int = 0
    # NIXL: what it pulled, pulls that failed, and requests whose blocks were given up before they were pulled.
    nixl_bytes: int = 0
    nixl_failed_transfers: int = 0
    nixl_expired: int = 0


@dataclass(frozen=True, slots=True)
class RankState:
    """One data-parallel rank of an engine that has several."""

    kv_blocks_total: int
    load: WorkerLoad


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker now. An engine's lease describes all of its ranks; `workers/ranks.py` makes a worker of each."""

    spec: WorkerSpec
    phase: Phase
    load: WorkerLoad
    ranks: tuple[RankState, ...] = ()  # empty: the engine has one


NO_LOAD = WorkerLoad(running_seqs=0, waiting_seqs=0, kv_blocks_used=0)
