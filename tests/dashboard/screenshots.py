"""The pictures in docs, of a fleet with more to do than it can: `python -m tests.dashboard.screenshots docs/images`."""

import asyncio
import io
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from router.admin_tokens import digest_of
from tests.admin_server import OPERATOR
from tests.dashboard.browser import chromium
from tests.dashboard.stage import Stage, complete, stage
from workers.fake.plan import Timing

_SLO = {
    "classes": {
        "interactive": {"ttft_s": 0.4, "tpot_s": 0.05, "deadline_s": 5, "value": 4},
        "chat": {"ttft_s": 1.5, "tpot_s": 0.1, "deadline_s": 20, "value": 2},
        "batch": {"ttft_s": 20, "tpot_s": 0.5, "deadline_s": 60, "on_overload": "best_effort"},
    }
}
_TIMING = Timing(prefill_s_per_token=0.0008, decode_s_per_token=0.012, decode_s_per_seq=0.003, max_running_seqs=8)
_MIX = ("chat", "chat", "interactive", "chat", "batch", "interactive", "chat")
_TENANTS = ("acme", "globex", "initech", "umbrella")
_ASKING = ("acme", "globex", "acme", "initech", "acme", "umbrella", "globex")
_IDENTITY = {
    "poll_s": 0.2,
    "keys": {digest_of(f"hr-{name}"): {"tenant": name} for name in _TENANTS},
    "tenants": {
        "acme": {"weight": 2, "budget_tokens": 2_000_000, "requests_per_min": 3000},
        "globex": {"budget_tokens": 120_000, "budget_period": "day", "classes": ["chat", "interactive", "batch"]},
        "initech": {"budget_tokens": 60_000, "tokens_per_min": 100_000},
        "umbrella": {"class": "chat", "requests_per_min": 40},
    },
}
_KEYS = (
    {"tenant": "acme", "expires_s": 90 * 86400, "note": "web"},
    {"tenant": "acme", "class": "batch", "expires_s": 5 * 86400, "note": "nightly report"},
    {"tenant": "initech", "note": "support desk"},
)
_CLIENTS = 26
_SECONDS = 75


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, _stage(Path(scratch)) as on, chromium() as browser:
        made = [on.operate("POST", "keys", key) for key in _KEYS]
        on.operate("DELETE", f"keys/{made[-1]['id']}")
        page = browser.new_page(viewport={"width": 1280, "height": 1130})
        page.goto(on.admin.url)
        page.get_by_label("Token").fill(OPERATOR)
        page.keyboard.press("Enter")
        with _clients(on):
            time.sleep(_SECONDS)
            for number in range(3):
                on.complete("in a hurry " * 40, x_request_id=f"hurry-{number}", x_headrace_ttft_s="0.05")
            _take(page, folder)


def _stage(folder: Path) -> AbstractContextManager[Stage]:
    return stage(folder, _TIMING, _SLO, _IDENTITY)


def _take(page: Page, folder: Path) -> None:
    page.wait_for_timeout(1000)
    _save(page.screenshot(), folder / "dashboard.png")
    page.get_by_role("button", name="Drain worker decode-1").click()
    page.get_by_label("Reason").fill("new driver")
    page.get_by_role("dialog").get_by_role("button", name="Drain", exact=True).click()
    page.wait_for_timeout(2500)
    page.emulate_media(color_scheme="dark")
    page.evaluate("document.activeElement.blur(); document.getElementById('fleet').scrollIntoView()")
    page.wait_for_timeout(7000)
    _save(page.screenshot(), folder / "dashboard-fleet.png")
    page.emulate_media(color_scheme="light")
    page.evaluate("document.getElementById('tenants').scrollIntoView()")
    page.wait_for_timeout(1000)
    _save(page.screenshot(), folder / "dashboard-tenants.png")
    page.get_by_role("link", name="first token too late").first.click()
    page.locator("#decisions tbody button").first.click()
    page.wait_for_timeout(1000)
    _save(page.screenshot(), folder / "dashboard-rejected.png")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Outcome").select_option("done")
    page.get_by_role("button", name="Search").click()
    page.locator("#decisions tbody button").first.click()
    page.locator("summary").filter(has_text="ways weighed").click()
    page.wait_for_timeout(500)
    _save(page.screenshot(), folder / "dashboard-decision.png")
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 360, "height": 780})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    _save(page.screenshot(), folder / "dashboard-phone.png")


def _save(shot: bytes, path: Path) -> None:
    """The 256 colours that are there most; others as the nearest of these: a third of the size, and nobody sees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    pixels = list(zip(*[iter(image.tobytes())] * 3, strict=True))
    most = [colour for colour, _ in Counter(pixels).most_common(256)]
    places = {colour: place for place, colour in enumerate(most)}
    for colour in set(pixels) - places.keys():
        places[colour] = min(range(len(most)), key=lambda place: math.dist(most[place], colour))
    small = Image.new("P", image.size)
    small.putpalette([part for colour in most for part in colour])
    small.putdata([places[pixel] for pixel in pixels])
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


@contextmanager
def _clients(on: Stage) -> Iterator[None]:
    """Come and go in waves; each asks again when it has its answer."""
    stop = asyncio.Event()
    asking = asyncio.run_coroutine_threadsafe(_ask(on, stop), on.loop)
    try:
        yield
    finally:
        on.loop.call_soon_threadsafe(stop.set)
        asking.result(timeout=60)


async def _ask(on: Stage, stop: asyncio.Event) -> None:
    seed, began_s = random.Random(7), time.monotonic()

    async def client(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            phase = (time.monotonic() - began_s) / 45 % 1  # a wave every 45 s
            if number > _CLIENTS * (0.35 + 0.65 * abs(2 * phase - 1)):
                await asyncio.sleep(0.5)
                continue
            words = f"document {number % 5} " * seed.randint(20, 60) + f"question {turn}"
            key = f"hr-{_ASKING[number % len(_ASKING)]}"
            named = {"x-headrace-class": seed.choice(_MIX), "x-request-id": f"req-{number:02}{turn:04}"}
            named["authorization"] = f"Bearer {key}"
            status = await complete(on.fleet, words, named, seed.randint(16, 64))
            await asyncio.sleep(seed.random() / 4 if status == 200 else 2 + 3 * seed.random())

    async with asyncio.TaskGroup() as group:
        for number in range(_CLIENTS):
            group.create_task(client(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
