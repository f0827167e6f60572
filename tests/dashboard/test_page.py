"""The operators' page in a real Chromium, on a real control plane, routers and Redis, with fake engines."""

import asyncio
import re
from typing import Any

import redis.asyncio
from playwright.sync_api import Locator, Page, expect

from tests.admin_server import OPERATOR, VIEWER
from tests.dashboard.conftest import Open
from tests.dashboard.stage import ACME, GLOBEX, Stage, complete


def row(page: Page, caption: str, name: str) -> Locator:
    """A table's row by its first cell."""
    table = page.get_by_role("table", name=caption)
    return table.get_by_role("row").filter(has=page.get_by_role("rowheader").filter(has_text=name))


def confirm(page: Page, button: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=button, exact=True).click()


def test_a_token_is_needed_and_a_viewer_sees_no_buttons(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url)
    expect(page.get_by_role("heading", name="Sign in to Headrace")).to_be_visible()
    expect(page.get_by_label("Token")).to_be_focused()
    page.get_by_label("Token").fill("hra-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Nobody here has this token.")
    page.get_by_label("Token").fill(VIEWER)
    page.keyboard.press("Enter")
    expect(page.get_by_text("vic viewer")).to_be_visible()
    expect(page.get_by_role("main")).to_be_focused()
    expect(row(page, "Decode workers", "decode-0")).to_be_visible()
    for name in ("Drain", "Pause", "Resize"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    assert page.evaluate("document.cookie") == "", "no script reads the session"
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def test_what_happens_is_shown_as_it_happens(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, VIEWER)
    expect(page.get_by_role("row").filter(has_text="decode-")).to_have_count(3)
    assert on.complete("tell me", x_headrace_class="chat", x_request_id="live-1") == 200
    seen = row(page, "Newest decisions", "live-1")
    expect(seen).to_contain_text("done")
    expect(seen).to_contain_text("→ decode-")
    expect(row(page, "Service classes", "chat")).to_contain_text("100 %")
    expect(row(page, "Mixed workers", "moe-0")).to_contain_text("54.0 %")
    page.get_by_text("4 ranks").click()
    expect(page.get_by_text("19 running, 3 waiting, KV 88.0 %")).to_be_visible()
    expect(row(page, "Expert-parallel engines", "moe-0")).to_contain_text("%")
    goodput = page.get_by_role("img", name="Goodput, the last 10 minutes. chat:")
    expect(goodput.locator("canvas")).to_be_visible()


def test_an_operator_drains_a_worker_and_sees_it_drained(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, OPERATOR)
    worker = row(page, "Decode workers", "decode-1")
    expect(worker).to_contain_text("ready")
    worker.get_by_role("button", name="Drain").click()
    expect(page.get_by_role("dialog", name="Drain decode-1?")).to_be_visible()
    confirm(page, "Cancel")
    expect(worker).to_contain_text("ready")
    worker.get_by_role("button", name="Drain").click()
    page.get_by_label("Reason").fill("a new driver")
    confirm(page, "Drain")
    expect(page.get_by_role("status").filter(has_text="decode-1 gets nothing new.")).to_be_visible()
    expect(worker).to_contain_text("draining")
    expect(worker).to_contain_text("by olga")
    expect(worker).to_contain_text("nothing left")
    expect(worker).to_contain_text("a new driver")
    on.call(on.fleet.wait_for_workers([*_ready_without("decode-1")]))
    worker.get_by_role("button", name="Undrain").click()
    confirm(page, "Undrain")
    expect(worker).to_contain_text("ready")


def _ready_without(name: str) -> list[str]:
    names = ["prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2", "moe-0", "moe-0/1", "moe-0/2", "moe-0/3"]
    return [one for one in names if one != name]


def test_an_operator_pauses_a_class_and_resizes_a_pool(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, OPERATOR)
    batch = row(page, "Service classes", "batch")
    batch.get_by_role("button", name="Pause").click()
    page.get_by_label("Reason").fill("month's end")
    confirm(page, "Pause")
    expect(batch).to_contain_text("by olga: month's end")
    assert on.complete("later", x_headrace_class="batch") == 503
    expect(batch).to_contain_text("1 class paused")
    batch.get_by_role("button", name="Resume").click()
    confirm(page, "Resume")
    expect(batch.get_by_role("button", name="Pause")).to_be_visible()
    page.get_by_role("button", name="Resize the decode pool").click()
    page.get_by_label("Workers (3 configured, up to 4)").fill("4")
    confirm(page, "Resize")
    expect(row(page, "Decode workers", "decode-3")).to_contain_text("ready")
    page.get_by_role("button", name="Resize the decode pool").click()
    page.get_by_label("Workers (3 configured, up to 4)").fill("0")
    confirm(page, "Resize")
    refused = page.get_by_role("alert").filter(has_text="Not done: ")
    expect(refused).to_contain_text("at least one decode or mixed worker is needed")
    page.get_by_label("Workers (3 configured, up to 4)").fill("3")
    confirm(page, "Resize")
    expect(row(page, "Decode workers", "decode-3")).to_have_count(0)


def test_a_rejected_request_is_found_and_says_why(on: Stage, open_page: Open) -> None:
    headers = {"x_headrace_class": "interactive", "x_headrace_ttft_s": "0.000001"}
    assert on.complete("too late", x_request_id="late-1", **headers) == 429
    assert on.complete("in time", x_request_id="in-time", x_headrace_class="interactive") == 200
    page = open_page(on.admin.url, VIEWER)
    row(page, "Service classes", "interactive").get_by_role("link", name="first token too late").click()
    expect(page.get_by_text("1 decision of ")).to_be_visible()
    expect(row(page, "Decisions found", "in-time")).to_have_count(0)
    page.get_by_role("button", name="late-1").click()
    story = page.get_by_role("dialog", name="Request late-1")
    expect(story).to_contain_text("Rejected: first token too late")
    expect(story).to_contain_text("on an idle worker, the target is 1e-06 s")
    expect(story).to_contain_text("Asking again would not help.")
    page.reload()  # the address says all: it can be sent to a colleague
    expect(story).to_contain_text("Rejected: first token too late")
    page.keyboard.press("Escape")
    expect(story).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Request id begins with").fill("in-t")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="in-time").click()
    done = page.get_by_role("dialog", name="Request in-time")
    for words in ("Its targets are promised", "Forecast: first token in", "tokens out", "First token met"):
        expect(done).to_contain_text(words)


def test_nothing_found_and_a_failure_are_said_and_can_be_mended(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, VIEWER)
    page.get_by_label("Request id begins with").fill("nobody")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("No such decision")).to_be_visible()
    page.context.set_offline(True)
    page.get_by_label("Request id begins with").fill("nobody-else")
    page.get_by_role("button", name="Search").click()
    found = page.get_by_role("region", name="Decisions")  # charts fail as well
    failure = found.get_by_role("alert").filter(has_text="This could not be read.")
    expect(failure).to_contain_text("the control plane does not answer")
    page.context.set_offline(False)
    failure.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("No such decision")).to_be_visible()


def test_a_page_whose_control_plane_stops_says_so_and_comes_back(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.get_by_text("read only")).to_be_visible()
    on.call(on.closed.stop())
    try:
        said = page.get_by_role("status").filter(has_text="Disconnected.")
        expect(said).to_contain_text("What you see is from")
        expect(row(page, "Decode workers", "decode-0")).to_be_visible()
        assert page.title().startswith("Disconnected")
        fresh = open_page(on.admin.url)
        expect(fresh.get_by_label("Token")).to_be_visible()
    finally:
        on.call(on.closed.start())
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(said).to_have_count(0)


def test_a_page_is_stale_while_redis_is_away(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()

    async def pause(for_s: float) -> None:
        client = redis.asyncio.Redis(unix_socket_path=on.fleet.redis_url.removeprefix("unix://"))
        await client.client_pause(round(for_s * 1000))
        await client.aclose()

    on.call(pause(6.0))
    expect(page.get_by_role("status").filter(has_text="Stale.")).to_contain_text("What you see is from")
    expect(row(page, "Decode workers", "decode-0")).to_be_visible()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()


def test_under_a_name_that_is_not_loopbacks_a_closed_page_shows_nothing(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url.replace("127.0.0.1", "elsewhere.test"))
    expect(page.get_by_role("heading", name="Not from here")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("without admin.tokens_file")


def test_on_a_phone_nothing_is_wider_than_the_screen(on: Stage, open_page: Open) -> None:
    assert on.complete("small", x_request_id="a-rather-long-request-id-of-a-client-0123456789abcdef") == 200
    page = open_page(on.admin.url, OPERATOR, width=320)
    expect(page.get_by_role("button", name="a-rather-long-request-id")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.get_by_role("button", name="a-rather-long-request-id").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("tokens out")
    assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth")
    page.keyboard.press("Escape")
    small = "[...document.querySelectorAll('main button:not(.link), header button, header select')].filter(one => "
    small += "one.offsetParent && (one.offsetHeight < 40 || one.offsetWidth < 40)).length"
    assert page.evaluate(small) == 0, "fingers are large"


def test_everything_is_reached_by_keyboard_and_the_focus_is_seen(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, OPERATOR)
    page.reload()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert focus[1] != "none", focus
        names.append(focus[0].replace("\n", " ").strip())
        if names[-1].endswith("worker prefill-1"):
            break
    pauses = [name for name in names if name.startswith("Pause")]
    assert pauses == ["Pause class interactive", "Pause class chat", "Pause class batch"], names
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Drain prefill-1?")
    expect(dialog.get_by_label("Reason")).to_be_focused()
    for _ in range(6):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(row(page, "Prefill workers", "prefill-1").get_by_role("button")).to_be_focused()


def test_what_a_screen_reader_is_told_does_not_chatter(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, VIEWER)
    page.evaluate(
        """() => {
          window.changes = 0;
          window.looks = 0;
          const spoken = "[role=status], [role=alert], [aria-live]";
          new MutationObserver((all) => {
            window.looks += 1;
            window.changes += all.filter(({target}) => (target.closest ?? (() => target.parentElement.closest(spoken)))
              .call(target, spoken)).length;
          }).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    for number in range(3):
        assert on.complete(f"quiet {number}", x_request_id=f"quiet-{number}") == 200
    expect(row(page, "Newest decisions", "quiet-2")).to_be_visible()
    assert page.evaluate("window.looks") > 0
    assert page.evaluate("window.changes") == 0


def test_an_answer_that_comes_before_the_page_is_drawn_is_not_missed(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url)
    told = """async () => {
      const app = [...document.scripts].find(({src}) => src.endsWith("/app.js")).src;
      const { Live } = await import(new URL("live.js", app));
      let seen = null;
      new Live().listen(({phase}) => (seen = phase));
      return seen;
    }"""
    assert page.evaluate(told) == "loading"


def test_light_and_dark_are_the_systems_or_the_readers(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url)
    page.emulate_media(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_label("Theme").select_option("Light")
    light = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == light, "before anything is shown"
    page.get_by_label("Theme").select_option("System theme")
    assert page.evaluate(ground) == dark
    motion = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(motion) == "smooth"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(motion) == "auto"


def test_tenants_are_shown_with_what_they_used_and_were_refused(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, VIEWER)
    acme, globex = row(page, "Use of this month", "acme"), row(page, "Use of this month", "globex")
    expect(acme).to_contain_text("600 requests")
    expect(acme).to_contain_text("class chat")
    assert on.complete("of acme", authorization=f"Bearer {ACME}") == 200
    assert on.complete("of globex", authorization=f"Bearer {GLOBEX}", x_headrace_class="interactive") == 429
    expect(globex).to_contain_text("1 over its budget")
    expect(globex).to_contain_text("0 of 10; 2")
    expect(acme).to_contain_text(" of 100,000; 2")
    expect(acme.get_by_role("cell").nth(1)).to_have_text("1")
    expect(row(page, "Service classes", "interactive")).to_contain_text("1 over its budget")
    expect(row(page, "API keys", "acme")).to_have_count(0)
    expect(page.get_by_role("table", name="API keys").get_by_role("row").filter(has_text="acme")).to_contain_text(
        "in the configuration"
    )
    expect(page.get_by_role("button", name="Revoke")).to_have_count(0)
    page.get_by_role("link", name="Tenants").click()
    expect(page.get_by_role("heading", name="Tenants")).to_be_in_viewport()


def test_an_operator_revokes_a_key_that_was_made_at_run_time(on: Stage, open_page: Open) -> None:
    made = on.operate("POST", "keys", {"tenant": "initech", "expires_s": 3600, "note": "nightly report"})
    page = open_page(on.admin.url, OPERATOR)
    key = row(page, "API keys", made["id"])
    expect(key).to_contain_text("active ends soon")
    expect(key).to_contain_text("by olga")
    expect(key).to_contain_text("nightly report")
    assert made["key"] not in page.content()
    expect(row(page, "Use of this month", "initech")).to_contain_text("as default")
    key.get_by_role("button", name=f"Revoke key {made['id']} of initech").click()
    dialog = page.get_by_role("dialog", name=f"Revoke key {made['id']} of initech?")
    expect(dialog).to_contain_text("it cannot be given back")
    confirm(page, "Revoke")
    expect(page.get_by_role("status").filter(has_text=f"The key {made['id']} is revoked.")).to_be_visible()
    expect(key).to_contain_text("revoked")
    expect(key.get_by_role("button")).to_have_count(0)
    expect(page.get_by_role("heading", name="API keys")).to_be_focused()


def test_where_nobody_is_told_apart_there_are_no_tenants(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url)
    shown = """async (state) => {
      const app = [...document.scripts].find(({src}) => src.endsWith("/app.js")).src;
      const { hasTenants } = await import(new URL("tenants.js", app));
      return hasTenants(state);
    }"""
    default = {"name": "default", "source": "default"}
    off = {"identity": {"required": False, "takes_tokens": False}, "tenants": [default], "keys": []}
    assert page.evaluate(shown, {**off, "identity": None}) is False, "nothing was heard yet"
    assert page.evaluate(shown, off) is False
    changes: tuple[dict[str, Any], ...] = (
        {"identity": {"required": True, "takes_tokens": False}},
        {"tenants": [{**default, "source": "config"}]},
        {"keys": [{}]},
    )
    for change in changes:
        assert page.evaluate(shown, {**off, **change}) is True, change


def test_requests_that_wait_are_shown_by_class_now_and_over_time(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url, VIEWER)

    async def crowd() -> list[int]:
        """Each prompt takes a prefill worker 0.4 s, and more of them come at once than are sent ahead."""
        prompts = [f"{number} " + "long " * 360 for number in range(40)]
        return await asyncio.gather(*(complete(on.fleet, one, {"x-headrace-class": "batch"}) for one in prompts))

    asking = asyncio.run_coroutine_threadsafe(crowd(), on.loop)
    waiting = row(page, "Service classes", "batch").get_by_role("cell").nth(4)
    expect(waiting).to_have_text(re.compile(r"^[1-9]"))
    assert set(asking.result(timeout=60)) == {200}
    expect(waiting).to_have_text("0")
    expect(page.get_by_role("img", name=re.compile(r"^Waiting, .*batch: \d+ now, \d+ to [1-9]"))).to_be_visible()
