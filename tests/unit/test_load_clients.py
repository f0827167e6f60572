"""The command that runs load generators: what it makes of how they end."""

import json
import sys
from pathlib import Path

import pytest

from tests.clients.load_clients import (
    CLIENTS,
    Client,
    Target,
    count_aiperf,
    count_guidellm,
    count_vllm_bench,
    find,
    run,
)

TARGET = Target("http://127.0.0.1:1", "m", "folder", num_requests=3, num_streams=1)


def python(code: str, program: str = Path(sys.executable).name) -> Client:
    """A client that runs `code` and writes its two counts to a file."""

    def command(found: str, _: Target, __: Path) -> list[str]:
        return [found, "-c", code]

    def count(folder: Path) -> tuple[int, int]:
        answered, failed = json.loads((folder / "counts").read_text())
        return answered, failed

    return Client("client", program, command, count)


@pytest.mark.parametrize(
    ("code", "verdict", "words"),
    [
        ("open('counts', 'w').write('[3, 0]')", "passed", ""),
        ("open('counts', 'w').write('[2, 1]'); print('one was refused')", "failed", "one was refused"),
        ("open('counts', 'w').write('[2, 0]')", "failed", ""),  # it gave up one, and did not say so
        ("raise SystemExit(3)", "failed", "exit status 3"),
        ("pass", "failed", "cannot be read"),
        ("import time; time.sleep(60)", "failed", "not done"),
    ],
)
def test_a_client_passes_only_if_every_request_was_answered(code: str, verdict: str, words: str) -> None:
    ran = run(python(code), TARGET, [Path(sys.executable).parent.parent], timeout_s=5.0)
    assert ran.verdict == verdict
    assert words in ran.detail


def test_a_client_that_is_not_installed_is_skipped_by_name() -> None:
    ran = run(python("pass", program="no-such-client"), TARGET, [], timeout_s=5.0)
    assert (ran.verdict, ran.detail) == ("skipped", "no-such-client is not installed")


def test_folders_come_before_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    own = tmp_path / "bin" / "python3"
    own.write_text("#!/bin/sh\n")
    assert find("python3", [tmp_path]) != str(own), "not executable"
    own.chmod(0o755)
    assert find("python3", [tmp_path]) == str(own)


def test_results_are_read_as_the_clients_write_them(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text('{"completed": 19, "failed": 1}')
    assert count_vllm_bench(tmp_path) == (19, 1)
    totals = {"successful": 17, "errored": 1, "incomplete": 2, "total": 20}
    result.write_text(json.dumps({"benchmarks": [{"metrics": {"request_totals": totals}}]}))
    assert count_guidellm(tmp_path) == (17, 3)
    report = tmp_path / "profile_export_aiperf.json"
    report.write_text('{"request_count": {"avg": 20.0}}')
    assert count_aiperf(tmp_path) == (20, 0)
    report.write_text('{"error_request_count": {"avg": 20.0}}')
    assert count_aiperf(tmp_path) == (0, 20)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_client_is_told_where_and_how_much(client: Client, tmp_path: Path) -> None:
    command = " ".join(client.command(f"/venv/bin/{client.program}", TARGET, tmp_path))
    for part in (TARGET.url, TARGET.model, TARGET.tokenizer, str(tmp_path)):
        assert part in command
