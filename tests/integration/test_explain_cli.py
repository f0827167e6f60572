"""`headrace explain` and `headrace replay` as typed."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

from controlplane.embedded_redis import embedded_redis
from controlplane.explain_cli import tell_again
from kvstore.board import open_board
from kvstore.types import RequestId
from router.build import build_core, core_recipe
from router.events import Reject, RejectReason, RequestArrived
from router.explain.decision_store import DecisionStore
from router.explain.explainer import Explainer
from router.explain.explanation import encode
from router.replay.recording import End, Header, RecordingWriter
from router.settings import RouterSettings
from router.slo_settings import SloSettings
from tests.builders import make_request
from tests.histories import History
from tests.integration.test_command_line import headrace, write

_REQUEST = make_request("4f0c")
_REJECT = Reject(_REQUEST.id, RejectReason.TTFT_INFEASIBLE, "3 s of work are ahead", 2.0)
_EXPLAINER = Explainer(router="router-1", policy="least_cost", unix_offset_s=1.7e9)
(_ENDED,) = _EXPLAINER.observe(1.0, RequestArrived(_REQUEST), [_REJECT])
EXPLANATION = _EXPLAINER.tell(_ENDED.packed)


@contextmanager
def admin(answers: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """Answers GET by path, 404 for any other; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b'{"error": {"message": "no such request"}}'))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_explain_prints_the_story(tmp_path: Path) -> None:
    told = (200, encode(EXPLANATION))
    with admin({"/decisions/mine": told, "/headrace/decisions/mine": told}) as url:
        shown = headrace("explain", "mine", "--admin", url)
        assert shown.returncode == 0, shown.stderr
        assert "ttft_infeasible: 3 s of work are ahead" in shown.stdout
        assert "come back in 2 s" in shown.stdout
        assert headrace("explain", "mine", "--url", url).stdout == shown.stdout, "a router says the same"
        as_json = headrace("explain", "mine", "--admin", url + "/", "--json")
        assert json.loads(as_json.stdout)["request_id"] == "4f0c"
        port = url.rpartition(":")[2]
        config = write(tmp_path / "headrace.yaml", f"admin: {{host: localhost, port: {port}}}")
        assert headrace("explain", "mine", "--config", config).stdout == shown.stdout


def test_explain_says_where_it_looked() -> None:
    unknown_there = (404, b'{"error": {"message": "no decision about nobody"}}')
    other_version = (200, b'{"of": "another version"}')
    with admin(
        {"/decisions/a%2Fb": other_version, "/decisions/bad": (500, b"oh"), "/decisions/nobody": unknown_there}
    ) as url:
        unknown = headrace("explain", "nobody", "--admin", url)
        assert unknown.returncode == 1
        assert "no decision about nobody" in unknown.stderr
        assert "redis.url" in unknown.stderr
        other = headrace("explain", "a/b", "--admin", url)
        assert other.returncode == 1
        assert "another version of headrace" in other.stderr
        assert headrace("explain", "a/b", "--admin", url, "--json").returncode == 0
        failed = headrace("explain", "bad", "--admin", url)
        assert failed.returncode == 1
        assert "error: oh" in failed.stderr
    gone = headrace("explain", "x", "--admin", url)
    assert gone.returncode == 1
    assert "is Headrace up" in gone.stderr
    for result in (unknown, other, failed, gone):
        assert "Traceback" not in result.stderr


def test_explain_asks_redis_for_what_the_router_does_not_know(tmp_path: Path) -> None:
    """As after a restart of the router, or behind several: through the store, as routers ship what has ended."""
    store = DecisionStore(max_records=10, max_bytes=1 << 20)
    store.put(RequestId("4f0c"), "mine", encode(EXPLANATION))

    async def ask() -> tuple[subprocess.CompletedProcess[str], ...]:
        async with embedded_redis(tmp_path) as redis_url:
            async with open_board(redis_url, "headrace") as board:
                await board.decisions.put(store.take(10), 60.0)
            options = ("--admin", url, "--set", f"redis.url={redis_url}")
            found, unknown = headrace("explain", "mine", *options), headrace("explain", "nobody", *options)
        return found, unknown, headrace("explain", "mine", *options)

    with admin({}) as url:
        found, unknown, away = asyncio.run(ask())
    assert found.returncode == 0, found.stderr
    assert "come back in 2 s" in found.stdout
    assert unknown.returncode == away.returncode == 1
    assert "Redis has no record of it either" in unknown.stderr
    assert "does not answer" in away.stderr
    assert "Traceback" not in unknown.stderr + away.stderr


def test_explain_refuses_a_bad_configuration(tmp_path: Path) -> None:
    result = headrace("explain", "x", "--config", write(tmp_path / "headrace.yaml", "router: {htpp: {}}"))
    assert result.returncode == 2
    assert "router.htpp" in result.stderr


def make_recording(path: Path, *, tampered: bool = False) -> Path:
    """A random history of the core as configured by default."""
    recipe = core_recipe(RouterSettings(), SloSettings(), seed=3)
    writer = RecordingWriter()
    data = [writer.header(Header(recipe, started_at_s=1.7e9, now_s=1000.0, written_with={"numpy": "0.1"}))]
    history = History(build_core(recipe), Random(3), lambda *step: data.append(writer.step(*step)))
    history.run(100)
    content = b"".join((*data, writer.end(End("truncated", 100))))
    if tampered:
        content = content.replace(b'"waited_s":0.0,', b'"waited_s":0.125,', 1)
    path.write_bytes(content)
    return path


def test_replay_says_equal_or_where_it_differs(tmp_path: Path) -> None:
    text, code = tell_again(make_recording(tmp_path / "one.jsonl"), None)
    assert code == 0, text
    assert "all equal (the recording is incomplete: truncated)" in text
    text, code = tell_again(make_recording(tmp_path / "two.jsonl", tampered=True), None)
    assert code == 1
    assert "different from step" in text
    assert "commands[0].decision.waited_s\n    recorded  0.125\n    replayed  0.0" in text
    assert "recorded with numpy 0.1" in text


def test_replay_estimates_another_policy(tmp_path: Path) -> None:
    file = make_recording(tmp_path / "one.jsonl")
    text, code = tell_again(file, "round_robin")
    assert code == 0
    assert "decided otherwise" in text
    assert "forecast cost, sum" in text
    text, code = tell_again(file, "least_cost")
    assert code == 0
    assert "decided otherwise" in text  # none would, but that near-equals are drawn anew for those that wait


def test_replay_names_what_it_cannot_read(tmp_path: Path) -> None:
    file = make_recording(tmp_path / "one.jsonl")
    text, code = tell_again(file, "magic")
    assert (code, "allowed: least_cost, " in text) == (2, True)
    file.write_bytes(RecordingWriter().header(Header({"seed": 1}, 0.0, 0.0, {})))
    text, code = tell_again(file, None)
    assert (code, "its header does not say how to build a core" in text) == (2, True)


def test_replay_as_typed(tmp_path: Path) -> None:
    result = headrace("replay", str(make_recording(tmp_path / "one.jsonl")))
    assert result.returncode == 0, result.stderr
    assert "all equal" in result.stdout
    result = headrace("replay", str(make_recording(tmp_path / "two.jsonl", tampered=True)))
    assert result.returncode == 1
    assert "different from step" in result.stdout
    result = headrace("replay", str(tmp_path / "none.jsonl"))
    assert result.returncode == 2
    assert "No such file" in result.stderr
    result = headrace("replay", write(tmp_path / "odd.jsonl", "{}\n"))
    assert result.returncode == 2
    assert "not the header of a recording" in result.stderr
