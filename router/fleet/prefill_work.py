"""Prompts that workers are to compute. Pure."""

from typing import NamedTuple

from msgspec import Struct


class PrefillWork(NamedTuple):
    """A prompt that a worker is to compute, and the regressors of the latency model that predict its time."""

    tokens: int  # that no cache holds
    quad: float  # tokens * prompt length / 10^6
    work_s: float  # predicted


class PendingPrefill(Struct):
    """A prompt that was sent to a worker and is not known to be computed."""

    work: PrefillWork
    ends_at_s: float  # predicted
    is_observed: bool  # its end will be an event; else it is presumed when predicted
