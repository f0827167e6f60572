"""How many workers each pool has, and changing that where Ray Serve runs them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol

import msgspec

from controlplane.admin_routes.route import Answer, Call, RefusedError, Route, json_answer
from controlplane.config import PoolSettings
from router.admin_tokens import AdminRole
from workers.types import Role


class Pools(Protocol):
    """The pools, where something can change their sizes."""

    async def sizes(self) -> Mapping[Role, int]:
        """Workers of each pool that is deployed, those that are still starting among them."""
        ...

    async def resize(self, role: Role, size: int) -> None:
        """Have so many. Returns before they have started or drained. Raises PoolsError."""
        ...


class PoolsError(Exception):
    """The sizes could not be changed, or read; says why."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a change."""

    size: Annotated[int, msgspec.Meta(ge=0)]


class Pool(msgspec.Struct, frozen=True):
    """One pool."""

    role: str
    size: int
    configured: int
    most: int


def routes(settings: PoolSettings, pools: Pools | None) -> Sequence[Route]:
    """GET /pools and POST /pools/{role}/size. `pools`: None where somebody else runs the workers."""

    async def listed(_: Call) -> Answer:
        sizes = await _sizes(_resizable(pools))
        return json_answer([_pool(settings, role, size) for role, size in sizes.items()])

    async def resize(call: Call) -> Answer:
        role, size, running = _role(call.path["role"]), call.read(Size).size, _resizable(pools)
        sizes = await _sizes(running)
        if role not in sizes:
            message = f"there is no {role} pool: pools.{role} is 0 in the configuration, which is read at the start"
            raise RefusedError(409, "no_such_pool", message)
        _check(settings, role, size, sizes)
        try:
            await running.resize(role, size)
        except PoolsError as error:
            raise RefusedError(502, "pools_failed", str(error)) from error
        return json_answer(_pool(settings, role, size))

    errors = {400: "bad_size", 404: "unknown_pool", 409: "pools_are_elsewhere", 502: "pools_failed"}
    return (
        Route("GET", "/pools", listed, "How many workers each pool is to have.", gives=list[Pool], errors=errors),
        Route(
            "POST",
            "/pools/{role}/size",
            resize,
            "Start or drain workers, until a pool has so many.",
            AdminRole.OPERATOR,
            takes=Size,
            gives=Pool,
            errors=errors,
        ),
    )


async def _sizes(pools: Pools) -> Mapping[Role, int]:
    try:
        return await pools.sizes()
    except PoolsError as error:
        raise RefusedError(502, "pools_failed", str(error)) from error


def _pool(settings: PoolSettings, role: Role, size: int) -> Pool:
    return Pool(role.value, size, _configured(settings, role), _most(settings, role))


def _most(settings: PoolSettings, role: Role) -> int:
    return max(settings.max_size, _configured(settings, role))


def _configured(settings: PoolSettings, role: Role) -> int:
    return {Role.PREFILL: settings.prefill, Role.DECODE: settings.decode, Role.MIXED: settings.mixed}[role]


def _check(settings: PoolSettings, role: Role, size: int, sizes: Mapping[Role, int]) -> None:
    most = _most(settings, role)
    if size > most:
        raise RefusedError(400, "bad_size", f"size: {size} is not allowed; allowed: up to {most} (pools.max_size)")
    after = {**sizes, role: size}
    if after.get(Role.DECODE, 0) + after.get(Role.MIXED, 0) == 0:
        raise RefusedError(
            400, "bad_size", "at least one decode or mixed worker is needed: nobody could answer a client"
        )


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        allowed = ", ".join(role.value for role in Role)
        raise RefusedError(404, "unknown_pool", f"there is no pool {name[:64]!r}; there are {allowed}") from None


def _resizable(pools: Pools | None) -> Pools:
    if pools is None:
        message = (
            "these workers are not run by Headrace's Ray Serve application: on Kubernetes change the chart's value "
            "`config.pools.ROLE` or use `kubectl scale`; elsewhere start or stop `headrace worker join`"
        )
        raise RefusedError(409, "pools_are_elsewhere", message)
    return pools
