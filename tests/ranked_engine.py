"""One engine of several data-parallel ranks: fake engines behind what vLLM's API server does for its own ranks."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from tests.fleet import MODEL
from workers.fake import FakeEngine, FakeSettings, Plan
from workers.ports import free_ports
from workers.ranks import RANK_HEADER

HOST = "127.0.0.1"


class RankedEngine:
    """The front of the ranks. A request goes to the rank that its header names, to rank 0 without one."""

    def __init__(self, ranks: Sequence[FakeEngine], session: aiohttp.ClientSession) -> None:
        self.ranks = ranks
        self.without_a_rank = 0  # completions that named none
        self.address = ""
        self._session = session

    def app(self) -> web.Application:
        """All routes."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/kv_event_sources", self._kv_event_sources)
        app.router.add_route("*", "/{path:.*}", self._relay)
        return app

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and RANK_HEADER not in request.headers:
            self.without_a_rank += 1
        rank = self.ranks[int(request.headers.get(RANK_HEADER, "0"))]
        async with self._session.request(
            request.method, f"{rank.address}{request.path}", data=await request.read(), headers=_own(request)
        ) as reply:
            return web.Response(body=await reply.read(), status=reply.status, content_type=reply.content_type)

    async def _metrics(self, request: web.Request) -> web.Response:
        pages = []
        for number, rank in enumerate(self.ranks):
            async with self._session.get(f"{rank.address}/metrics") as reply:
                pages.append((await reply.text()).replace('engine="0"', f'engine="{number}"'))
        # Families have to be together in one page; the reader of the metrics takes lines and does not mind.
        return web.Response(text="\n".join(pages))

    async def _kv_event_sources(self, request: web.Request) -> web.Response:
        sources: dict[str, Any] = {}
        for number, rank in enumerate(self.ranks):
            async with self._session.get(f"{rank.address}/kv_event_sources") as reply:
                sources[str(number)] = (await reply.json())["0"]
        return web.json_response(sources)


@asynccontextmanager
async def ranked_engine(num_ranks: int, plan: Plan) -> AsyncIterator[RankedEngine]:
    """An engine of fake ranks, listening."""
    async with AsyncExitStack() as stack:
        ranks = []
        for number in range(num_ranks):
            events, replay = free_ports(HOST, 2)
            settings = FakeSettings(
                model=MODEL,
                plan=plan,
                engine_id=f"rank-{number}",
                kv_events_endpoint=f"tcp://{HOST}:{events}",
                kv_replay_endpoint=f"tcp://{HOST}:{replay}",
            )
            ranks.append(await stack.enter_async_context(FakeEngine(settings).serving()))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        engine = RankedEngine(ranks, session)
        runner = web.AppRunner(engine.app())
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        engine.address = f"http://{HOST}:{runner.addresses[0][1]}"
        yield engine


def _own(request: web.Request) -> dict[str, str]:
    """Its headers, without those of the connection."""
    connection = ("host", "content-length", "transfer-encoding")
    return {name: value for name, value in request.headers.items() if name.lower() not in connection}
