"""What routers decided, and the stream of what happens."""

from collections.abc import Sequence

from controlplane.admin_routes.route import Answer, Call, Query, RefusedError, Route, json_answer
from controlplane.decision_list import DecisionList, Found, Wanted
from controlplane.watch import Watch
from router.explain.explanation import Explanation

_MOST_LISTED = 500
_MOST_STREAMS = 64
_FILTERS = {
    "request": "how its id begins, the client's or the router's",
    "class": "its class",
    "tenant": "its tenant",
    "outcome": "done, rejected, failed, cancelled; missed: late or slow; or the reason of a rejection, such as kv_full",
    "worker": "an engine or rank that an attempt was sent to",
}


def decision_routes(decisions: DecisionList, ttl_s: float) -> Sequence[Route]:
    """GET /decisions and /decisions/{id}. `ttl_s`: how long routers keep them in Redis."""

    async def listed(call: Call) -> Answer:
        wanted = Wanted(
            request=call.query.get("request"),
            class_name=call.query.get("class"),
            tenant=call.query.get("tenant"),
            outcome=call.query.get("outcome"),
            worker=call.query.get("worker"),
        )
        return json_answer(await decisions.find(wanted, round(call.number("limit", 50, 1, _MOST_LISTED))))

    async def one(call: Call) -> Answer:
        data = await decisions.get(call.path["id"])
        if data is None:
            words = f"no decision about {call.path['id'][:64]!r}: unknown, still running, or ended over {ttl_s:g} s ago"
            raise RefusedError(404, "decision_not_found", words)
        return Answer(200, data)

    queries = [Query(name, words) for name, words in _FILTERS.items()]
    limit = Query("limit", f"how many, up to {_MOST_LISTED}; 50 if not said", "integer")
    return (
        Route(
            "GET",
            "/decisions",
            listed,
            "Ended requests, the newest first: where they ran or why they did not.",
            query=(*queries, limit),
            gives=Found,
        ),
        Route(
            "GET",
            "/decisions/{id}",
            one,
            "Everything that was decided about one request.",
            gives=Explanation,
            errors={404: "decision_not_found"},
        ),
    )


def event_routes(watch: Watch) -> Sequence[Route]:
    """GET /events."""

    async def events(_: Call) -> Answer:
        if watch.num_watching >= _MOST_STREAMS:
            raise RefusedError(503, "too_many_streams", f"{_MOST_STREAMS} streams of events are open already")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Answer(200, media_type="text/event-stream", headers=headers, stream=watch.stream())

    words = "Server-sent events, each second: `fleet`, `slo` (of a minute), each new `decision`; `stale` without Redis."
    return (Route("GET", "/events", events, words, media_type="text/event-stream", errors={503: "too_many_streams"}),)
