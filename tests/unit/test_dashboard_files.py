"""What the browser is served, and with which headers; no browser is needed for that."""

import asyncio
import gzip
import hashlib
import re
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from controlplane.admin_routes.dashboard import dashboard_routes
from controlplane.admin_routes.route import Answer, Call, RefusedError, RouteTable
from router.admin_tokens import AdminRole, Operator

FOLDER = Path(str(resources.files("controlplane"))) / "dashboard"
VENDORED = {
    "preact.js": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
    "uplot.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
NOBODY = Operator("nobody", AdminRole.VIEWER)


class Links(HTMLParser):
    """What a page loads, and whether anything in it is inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.inline: list[str] = []
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        self.inline += [f"{tag} {name}" for name, _ in attrs if name == "style" or name.startswith("on")]
        self.targets += [value for name, value in attrs if tag != "a" and name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in = None


def get(path: str, **headers: str) -> Answer:
    """The answer, or that of the refusal."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        route, parameters = RouteTable(dashboard_routes()).find("GET", path)
        assert route.role is None
        return asyncio.run(_done(route.handle, Call(NOBODY, parameters, {}, named, b"")))
    except RefusedError as refused:
        return refused.answer()


async def _done(handle: Callable[[Call], Awaitable[Answer]], call: Call) -> Answer:
    return await handle(call)


@pytest.fixture(scope="module")
def links() -> Links:
    return Links(get("/").body.decode())


def test_the_page_is_asked_for_again_and_its_files_never_are(links: Links) -> None:
    page = get("/")
    assert (page.status, page.headers["Cache-Control"]) == (200, "no-cache")
    assert get("/", if_none_match=page.headers["ETag"]).status == 304
    assert get("/", if_none_match='W/"other"').status == 200
    assert len(links.targets) == 7
    for target in links.targets:
        answer = get(f"/{target}")
        assert answer.status == 200, target
        assert "immutable" in answer.headers["Cache-Control"]
        zipped = get(f"/{target}", accept_encoding="gzip, br")
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(zipped.body) == answer.body
        assert len(zipped.body) < len(answer.body) or len(answer.body) < 500


def test_nothing_runs_that_is_not_ours(links: Links) -> None:
    """Invariant 2."""
    policy = dict(part.split(" ", 1) for part in get("/").headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in str(policy)
    assert links.inline == []
    for file in FOLDER.glob("*.*"):
        if file.suffix in (".js", ".css", ".html"):
            assert not re.search(r"https?://|innerHTML|dangerously|\beval\b", file.read_text()), file


def test_every_module_that_is_imported_is_there_and_every_file_is_used(links: Links) -> None:
    used = {target.split("/", 2)[2] for target in links.targets}
    for file in FOLDER.glob("*.js"):
        used |= {name.removeprefix("./") for name in re.findall(r'from "(\./[^"]+)"', file.read_text())}
    served = {file.name for file in FOLDER.iterdir() if file.suffix in (".js", ".css", ".svg")}
    assert used == served | {f"vendor/{name}" for name in VENDORED}


def test_a_file_of_another_version_or_outside_is_not_found(links: Links) -> None:
    """Invariant 1."""
    version = links.targets[0].split("/")[1]
    assert get(f"/assets/{version}/app.js").status == 200
    assert get("/assets/0000000000000000/app.js").status == 404
    for name in ("nothing.js", "..%2F__init__.py", "index.html", "vendor/README.md", "vendor/LICENSE-htm"):
        assert get(f"/assets/{version}/{name}").status == 404, name


def test_code_of_others_is_as_it_was_published() -> None:
    for name, digest in VENDORED.items():
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest
    for licence in ("LICENSE-htm", "LICENSE-preact", "LICENSE-uplot"):
        assert (FOLDER / "vendor" / licence).stat().st_size > 500


def test_the_page_is_small() -> None:
    """A phone on a bad line has it in a second or two."""
    zipped = [
        gzip.compress(file.read_bytes())
        for file in FOLDER.rglob("*")
        if file.suffix in (".js", ".css", ".html", ".svg")
    ]
    assert sum(map(len, zipped)) < 64 * 1024
