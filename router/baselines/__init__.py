"""Routing policies as peers ship them, for comparison in the same core. Each says where it comes from."""

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType

from router.baselines.cache_aware import ray_prefix, sglang, vllm_router
from router.baselines.dynamo import dynamo
from router.baselines.llmd import llmd
from router.baselines.load import least_loaded, power_of_two, round_robin
from router.baselines.papers import Mooncake, Preble
from router.baselines.session_hash import session_hash
from router.choice.interfaces import RoutingPolicy

BASELINES: Mapping[str, Callable[[Random], RoutingPolicy]] = MappingProxyType(
    {
        "round_robin": round_robin,
        "least_loaded": least_loaded,
        "power_of_two": power_of_two,
        "session_hash": session_hash,
        "dynamo": dynamo,
        "llmd": llmd,
        "sglang": sglang,
        "vllm_router": vllm_router,
        "ray_prefix": ray_prefix,
        "mooncake": Mooncake,
        "preble": Preble,
    }
)
