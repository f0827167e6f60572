"""What router/http/lag.py measures, on both kinds of event loop."""

import asyncio
import statistics
import time
from collections.abc import Callable

import pytest
import uvloop

from router.http.lag import TurnWatch


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("num_tasks", [0, 20])
def test_a_turn_is_as_long_as_its_work(new_loop: Callable[[], asyncio.AbstractEventLoop], num_tasks: int) -> None:
    turns: list[float] = []

    async def work() -> None:
        while len(turns) < 10:
            time.sleep(0.002)  # noqa: ASYNC251  that is the work
            await asyncio.sleep(0)

    async def main() -> None:
        watch = TurnWatch(lambda now_s, turn_s: turns.append(turn_s))
        tasks = [asyncio.create_task(work()) for _ in range(num_tasks)]
        while len(turns) < 10:
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        watch.stop()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    if num_tasks:
        assert statistics.median(turns) >= 0.002 * num_tasks
    else:
        assert min(turns) < 0.02
