"""Who may do what with the admin API. Numbers: invariants of controlplane/admin_routes/access.py."""

import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controlplane.admin_routes.access import COOKIE, CSRF_HEADER, Access
from controlplane.admin_routes.route import Answer, Call, RefusedError, Route, RouteTable
from controlplane.admin_settings import AdminSettings, is_loopback
from controlplane.config import ConfigError, load_config
from controlplane.operate_cli import admin_app
from router.admin_tokens import AdminRole, AdminTokens, AdminTokensError, Operator, digest_of
from tests.admin_server import OPERATOR, VIEWER, tokens_file


async def nothing(_: Call) -> Answer:
    return Answer(200)


READ = Route("GET", "/fleet", nothing, "")
CHANGE = Route("POST", "/workers/{id}/drain", nothing, "", AdminRole.OPERATOR)
OPEN = Route("GET", "/healthz", nothing, "", None)


class Door:
    """An `Access` with a clock of ours."""

    def __init__(self, path: Path | None, **settings: Any) -> None:
        self.now_s = 0.0
        tokens_path = str(path) if path else None
        self.tokens = AdminTokens(tokens_path)
        self.access = Access(AdminSettings(tokens_file=tokens_path, **settings), self.tokens, lambda: self.now_s)

    def opens(self, route: Route, **headers: str) -> str:
        """Who may pass, or the code of the refusal."""
        try:
            return self.access.check(route, {name.replace("_", "-"): value for name, value in headers.items()}).name
        except RefusedError as refused:
            return refused.code

    def log_in(self, token: str) -> str:
        """A cookie header."""
        _, headers = self.access.open_session(token)
        return headers["Set-Cookie"].partition(";")[0]


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_invariant_1_by_token(tmp_path: Path) -> None:
    door = Door(tokens_file(tmp_path))
    assert door.opens(OPEN) == "anonymous"
    for route in (READ, CHANGE):
        assert door.opens(route) == "token_missing"
        assert door.opens(route, authorization="Basic b2xnYTo=") == "token_missing"
        assert door.opens(route, authorization=bearer("hra-nobody")) == "invalid_token"
        assert door.opens(route, authorization=bearer(OPERATOR)) == "olga"
    assert door.opens(READ, authorization=bearer(VIEWER)) == "vic"
    assert door.opens(CHANGE, authorization=bearer(VIEWER)) == "not_an_operator"
    assert door.opens(READ, authorization=bearer(digest_of(OPERATOR))) == "invalid_token", "a digest is no token"


def test_invariant_1_by_cookie(tmp_path: Path) -> None:
    door = Door(tokens_file(tmp_path))
    cookie = door.log_in(OPERATOR)
    assert cookie.startswith(f"{COOKIE}=")
    assert door.opens(READ, cookie=cookie) == "olga"
    assert door.opens(CHANGE, cookie=cookie) == "csrf_missing"
    assert door.opens(CHANGE, cookie=cookie, **{CSRF_HEADER: "1"}) == "olga"
    assert door.opens(CHANGE, cookie=door.log_in(VIEWER), **{CSRF_HEADER: "1"}) == "not_an_operator"
    assert door.opens(READ, cookie=f"{COOKIE}=guess") == "session_ended"
    assert door.opens(READ, cookie="\x00;;=") == "token_missing"
    assert door.opens(CHANGE, cookie=cookie, authorization=bearer("hra-nobody")) == "invalid_token"
    with pytest.raises(RefusedError, match="nobody here"):
        door.log_in("hra-nobody")


def test_invariant_2_a_session_ends_by_time_by_log_out_and_with_its_token(tmp_path: Path) -> None:
    path = tokens_file(tmp_path)
    door = Door(path, session_s=60)
    early, late = door.log_in(OPERATOR), door.log_in(OPERATOR)
    assert "Max-Age=0" in door.access.end_session({"cookie": early})["Set-Cookie"]
    assert door.opens(READ, cookie=early) == "session_ended"
    door.now_s = 59.9
    assert door.opens(READ, cookie=late) == "olga"
    door.now_s = 60.0
    assert door.opens(READ, cookie=late) == "session_ended"
    cookie = door.log_in(OPERATOR)
    path.write_text(f"{digest_of(VIEWER)}: {{name: vic, role: viewer}}\n")
    assert door.opens(READ, cookie=cookie) == "session_ended"
    assert door.opens(READ, authorization=bearer(OPERATOR)) == "invalid_token"
    assert door.opens(READ, authorization=bearer(VIEWER)) == "vic"


def test_invariant_3_neither_tokens_nor_cookies_are_kept(tmp_path: Path) -> None:
    door = Door(tokens_file(tmp_path))
    cookie = door.log_in(OPERATOR)
    kept = repr(vars(door.access)) + repr(vars(door.tokens)) + repr(door.access._sessions)
    assert OPERATOR not in kept
    assert cookie.partition("=")[2] not in kept


def test_sessions_are_bounded(tmp_path: Path) -> None:
    door = Door(tokens_file(tmp_path))
    cookies = [door.log_in(OPERATOR) for _ in range(1030)]
    assert door.opens(READ, cookie=cookies[0]) == "session_ended"
    assert door.opens(READ, cookie=cookies[-1]) == "olga"
    assert len(door.access._sessions) == 1024


def test_a_cookie_is_for_this_site_and_no_script(tmp_path: Path) -> None:
    tls = {"cert_file": "a", "key_file": "b"}
    for settings, secure in (({}, False), ({"tls": tls}, True)):
        header = Door(tokens_file(tmp_path), **settings).access.open_session(OPERATOR)[1]["Set-Cookie"]
        assert "HttpOnly; SameSite=Strict" in header
        assert header.endswith("; Secure") == secure


def test_without_tokens_this_machine_reads_and_nobody_changes() -> None:
    door = Door(None)
    for host in ("", "127.0.0.1:8002", "localhost:8002", "[::1]:8002", "localhost"):
        assert door.opens(READ, host=host) == "anonymous", host
    assert door.opens(READ, host="evil.example:8002") == "admin_closed"
    assert door.opens(CHANGE, authorization=bearer(OPERATOR)) == "admin_closed"
    with pytest.raises(RefusedError, match="closed by default"):
        door.log_in(OPERATOR)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)),
        *(("::", False), ("10.0.0.1", False), ("localhost.evil.example", False), ("", False)),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_file_that_cannot_be_used_is_refused_at_the_start_and_ignored_later(tmp_path: Path) -> None:
    path = tokens_file(tmp_path)
    tokens = AdminTokens(str(path))
    assert tokens.find(OPERATOR) == Operator("olga", AdminRole.OPERATOR)
    good = path.read_text()
    for bad in (
        "[",
        "[]",
        f"{OPERATOR}: {{name: a, role: viewer}}",
        f"{digest_of('a')}: {{name: a, role: root}}",
        "\x00",
    ):
        path.write_text(bad)
        with pytest.raises(AdminTokensError, match=r"admin\.tokens_file") as caught:
            AdminTokens(str(path))
        assert OPERATOR not in str(caught.value), "somebody may have put a token there"
        assert tokens.find(OPERATOR) is not None, "going on with what was read before"
    path.unlink()
    assert tokens.find(OPERATOR) is not None
    with pytest.raises(AdminTokensError, match="cannot be read"):
        AdminTokens(str(path))
    path.write_text(good.replace("operator", "viewer"))
    assert tokens.find(OPERATOR) == Operator("olga", AdminRole.VIEWER)


def test_an_address_that_others_reach_needs_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_file: none is not allowed with the host"):
        load_config(overrides=["admin.host=0.0.0.0"])
    config = load_config(overrides=["admin.host=0.0.0.0", f"admin.tokens_file={tmp_path / 'tokens.yaml'}"])
    assert config.admin.url == "http://127.0.0.1:8002"


def test_a_token_is_made_for_the_file(tmp_path: Path) -> None:
    runner = CliRunner()
    into = tmp_path / "token"
    made = runner.invoke(admin_app, ["--name", "ann", "--role", "operator", "--into", str(into)])
    assert made.exit_code == 0, made.output
    token = into.read_text().strip()
    assert stat.S_IMODE(into.stat().st_mode) == 0o600
    assert token not in made.stdout
    path = tmp_path / "tokens.yaml"
    path.write_text(made.stdout)
    assert AdminTokens(str(path)).find(token) == Operator("ann", AdminRole.OPERATOR)
    assert runner.invoke(admin_app, ["--name", "ann", "--into", str(into)]).exit_code == 1, "never over an old one"
    shown = runner.invoke(admin_app, ["--name", "bob"])
    assert "shown this once: hra-" in shown.stderr
    assert "hra-" not in shown.stdout
    assert runner.invoke(admin_app, ["--name", "a b"]).exit_code == 2


def test_routes_are_found_by_path_and_method() -> None:
    table = RouteTable((READ, CHANGE))
    assert table.find("POST", "/workers/a%2Fb/drain") == (CHANGE, {"id": "a/b"})
    for method, path, status in (("DELETE", "/fleet", 405), ("GET", "/fleet/", 404), ("POST", "/workers//drain", 404)):
        with pytest.raises(RefusedError) as caught:
            table.find(method, path)
        assert caught.value.status == status
