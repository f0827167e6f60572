"""What there is: workers, routers, and what operators want of them."""

from collections.abc import Callable, Sequence

from controlplane.admin_routes.route import Answer, Call, Query, Route, json_answer
from controlplane.fleet_status import FleetReader, FleetStatus
from controlplane.slo_report import SloReport
from controlplane.watch import INTERVAL_S, MAX_WINDOW_S, Watch
from kvstore.intents import Intents

_MOST_POINTS = 240


def fleet_routes(reader: FleetReader, intents: Callable[[], Intents]) -> Sequence[Route]:
    """GET /fleet, and /status, its older name."""

    async def fleet(_: Call) -> Answer:
        return json_answer(await reader.read(intents()))

    words = "Workers with role, phase, load, KV and lease; routers; drains and paused classes."
    return (
        Route("GET", "/fleet", fleet, words, gives=FleetStatus),
        Route("GET", "/status", fleet, "The same as /fleet.", gives=FleetStatus),
    )


def slo_routes(watch: Watch) -> Sequence[Route]:
    """GET /slo."""

    async def slo(call: Call) -> Answer:
        window_s = call.number("window_s", 60.0, 2 * INTERVAL_S, MAX_WINDOW_S)
        return json_answer(watch.slo(window_s))

    async def history(call: Call) -> Answer:
        window_s = call.number("window_s", 600.0, 2 * INTERVAL_S, MAX_WINDOW_S)
        points = round(call.number("points", 60, 1, _MOST_POINTS))
        step_s = max(2 * INTERVAL_S, window_s / points)
        ages = [number * step_s for number in range(int(window_s / step_s))]
        return json_answer([watch.slo(step_s, ago_s=ago_s) for ago_s in reversed(ages)])

    window = Query("window_s", f"seconds to look back, up to {MAX_WINDOW_S:g}", "number")
    return (
        Route("GET", "/slo", slo, "Attainment and goodput by class, over a window.", query=(window,), gives=SloReport),
        Route(
            "GET",
            "/slo/history",
            history,
            "The same for each part of a window, the oldest first.",
            query=(window, Query("points", f"parts, up to {_MOST_POINTS}", "integer")),
            gives=list[SloReport],
        ),
    )
