"""A router among clients and workers that come and go stays as it was. Half an hour of it: `make soak`.

It leaves most of the machine to others, so `make test` lets it run beside tests that wait for engines.
"""

import json
import subprocess
import sys

import pytest

MINUTES = 5.0

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(MINUTES * 60 + 240)]


def test_a_soak_is_flat() -> None:
    argv = [sys.executable, "-m", "tests.bench.soak", "--minutes", str(MINUTES)]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert summary["flat"]
    assert set(summary["changes"]) >= {"joined"}  # the fleet did change
