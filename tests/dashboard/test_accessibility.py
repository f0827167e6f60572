"""axe-core finds nothing to complain about, in any state of the page, light and dark."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.admin_server import OPERATOR
from tests.dashboard.conftest import Open
from tests.dashboard.stage import GLOBEX, Stage

_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_CONTRAST = {"type": "rule", "values": ["color-contrast"]}


def check(page: Page, state: str) -> None:
    """Everything in the light, and in the dark what colours can change."""
    for scheme, rules in (("light", _RULES), ("dark", _CONTRAST)):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        results = Axe().run(page, options={"runOnly": rules, "resultTypes": ["violations"]})
        assert results.violations_count == 0, f"{state}, {scheme}: {results.generate_report()}"


def test_axe_is_clean_in_every_state(on: Stage, open_page: Open) -> None:
    page = open_page(on.admin.url)
    expect(page.get_by_label("Token")).to_be_visible()
    check(page, "sign-in")
    late = {"x_request_id": "axe-late", "x_headrace_ttft_s": "0.000001", "x_headrace_class": "interactive"}
    assert on.complete("too late", **late) == 429
    assert on.complete("in time", x_request_id="axe-fine") == 200
    assert on.complete("too much", authorization=f"Bearer {GLOBEX}") == 429
    on.operate("POST", "keys", {"tenant": "initech", "expires_s": 3600, "note": "axe"})
    page.get_by_label("Token").fill(OPERATOR)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="first token too late")).to_be_visible()
    expect(page.get_by_role("img", name="Goodput")).to_be_visible()
    expect(page.get_by_role("table", name="Expert-parallel engines")).to_be_visible()
    expect(page.get_by_role("table", name="API keys")).to_contain_text("ends soon")
    check(page, "overview")
    for name in ("Drain worker decode-0", "Revoke key"):
        page.get_by_role("button", name=name).click()
        check(page, f"{name}: confirmation")
        page.keyboard.press("Escape")
    _open_explanation(page)
    check(page, "explanation")
    page.keyboard.press("Escape")
    page.context.set_offline(True)
    page.get_by_label("Outcome").select_option("cancelled")
    page.get_by_role("button", name="Search").click()
    expect(
        page.get_by_role("region", name="Decisions").get_by_role("alert").filter(has_text="This could not be read.")
    ).to_be_visible()
    check(page, "failure")


def test_axe_is_clean_on_a_phone(on: Stage, open_page: Open) -> None:
    assert on.complete("in time", x_request_id="axe-fine") == 200
    page = open_page(on.admin.url, OPERATOR, width=320)
    expect(page.get_by_role("img", name="Goodput")).to_be_visible()
    check(page, "overview")
    _open_explanation(page)
    check(page, "explanation")


def test_axe_is_clean_when_disconnected(on: Stage, open_page: Open) -> None:
    page = open_page(on.closed.url)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    on.call(on.closed.stop())
    try:
        expect(page.get_by_role("status").filter(has_text="Disconnected.")).to_be_visible()
        check(page, "disconnected")
    finally:
        on.call(on.closed.start())


def _open_explanation(page: Page) -> None:
    page.get_by_role("button", name="axe-fine").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("tokens out")
    page.locator("summary").filter(has_text="ways weighed").click()
