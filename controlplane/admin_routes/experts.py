"""Where the experts of expert-parallel engines are."""

from collections.abc import Callable, Sequence

from controlplane.admin_routes.route import Answer, Call, RefusedError, Route, json_answer
from controlplane.expert_placer import ExpertPlacer
from controlplane.placement.loads import ExpertLoadWindow, encode
from controlplane.placement.plan_file import decode_plan
from controlplane.placement.types import PlacementError
from kvstore.types import WorkerId
from router.admin_tokens import AdminRole
from workers.errors import WorkerError
from workers.expert_client import PlacementBusyError, PlacementRefusedError


def routes(placer: ExpertPlacer, mode: str) -> Sequence[Route]:
    """GET /experts, /experts/{worker}/loads and /class-loads, POST /experts/{worker}/placement."""

    async def experts(_: Call) -> Answer:
        return json_answer({"mode": mode, "engines": placer.status()})

    async def loads(call: Call) -> Answer:
        return _windows(call, placer.loads)

    async def class_loads(call: Call) -> Answer:
        return _windows(call, placer.class_loads)

    async def place(call: Call) -> Answer:
        worker_id = WorkerId(call.path["worker"])
        try:
            return json_answer(await placer.place(worker_id, decode_plan(call.body, "plan")))
        except KeyError:
            raise _unknown(worker_id) from None
        except (PlacementError, PlacementRefusedError) as error:
            raise RefusedError(400, "bad_plan", str(error)) from error
        except PlacementBusyError as error:
            raise RefusedError(409, "busy", str(error)) from error
        except WorkerError as error:
            raise RefusedError(502, "worker_failed", str(error)) from error

    unknown = {404: "unknown_worker"}
    placing = {400: "bad_plan", **unknown, 409: "busy", 502: "worker_failed"}
    return (
        Route("GET", "/experts", experts, "What expert-parallel engines hold, and how even their load is."),
        Route("GET", "/experts/{worker}/loads", loads, "An engine's latest windows of load.", errors=unknown),
        Route(
            "GET",
            "/experts/{worker}/class-loads",
            class_loads,
            "Their sum, as it is likely to divide by class of traffic.",
            errors=unknown,
        ),
        Route(
            "POST",
            "/experts/{worker}/placement",
            place,
            "Put a plan into a running engine.",
            AdminRole.OPERATOR,
            errors=placing,
        ),
    )


def _windows(call: Call, of: Callable[[WorkerId], list[ExpertLoadWindow]]) -> Answer:
    try:
        return Answer(200, encode(of(WorkerId(call.path["worker"]))))
    except KeyError:
        raise _unknown(call.path["worker"]) from None


def _unknown(worker_id: str) -> RefusedError:
    return RefusedError(404, "unknown_worker", f"no expert-parallel worker {worker_id!r} is in the fleet")
