"""Identities that every package shares."""

from typing import NewType

RequestId = NewType("RequestId", str)
WorkerId = NewType("WorkerId", str)  # one KV cache and one queue: an (engine, data-parallel rank) pair
