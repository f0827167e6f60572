"""`headrace run`: one process each, in the foreground, without Ray."""

import asyncio
import re
import signal
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from controlplane import run
from controlplane.cli_error import fail
from controlplane.config import Config, ConfigError, load_config
from kvstore.errors import KvStoreError
from kvstore.types import WorkerId
from router.admin_tokens import AdminTokensError
from router.http_listener import PortTakenError
from router.identity.sources import IdentityError
from router.tls import TlsError
from workers.engine_tls import EngineTlsError
from workers.types import Role

app = typer.Typer(no_args_is_help=True, help="One process in the foreground, without Ray: what a pod runs.")

WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # no slash: it names a rank (workers/ranks.py)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="headrace.yaml")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key.path=value on top of the file; repeatable")]


@app.command()
def router(config: ConfigOption, overrides: SetOption = None) -> None:
    """One router: HTTP, gRPC, and the endpoint picker where it is enabled. SIGTERM drains it for router.drain_s."""
    tree = _load(config, overrides)
    _run(lambda stop: run.route(tree, stop))


@app.command()
def worker(
    config: ConfigOption,
    role: Annotated[Role, typer.Option(help="what it is for")],
    worker_id: Annotated[str | None, typer.Option("--id", help="worker id; none: a new one")] = None,
    overrides: SetOption = None,
) -> None:
    """One worker with its engine. SIGTERM drains it for engine.shutdown_timeout_s."""
    tree = _load(config, overrides)
    named = WorkerId(check_worker_id(worker_id) or f"{role.value}-{uuid.uuid4().hex[:6]}")
    _run(lambda stop: run.work(tree, role, named, stop))


@app.command("control-plane")
def control_plane(config: ConfigOption, overrides: SetOption = None) -> None:
    """The control plane: slow loops and the admin API."""
    tree = _load(config, overrides)
    _run(lambda stop: run.control(tree, stop))


def check_worker_id(worker_id: str | None) -> str | None:
    """The id that was given, if it can be one; raises typer.BadParameter."""
    if worker_id is not None and not WORKER_ID.fullmatch(worker_id):
        raise typer.BadParameter(f"{worker_id!r}: letters, digits, '.', '_' and '-', at most 64", param_hint="--id")
    return worker_id


def _load(path: Path, overrides: list[str] | None) -> Config:
    try:
        return load_config(path, overrides or [])
    except ConfigError as error:
        fail(str(error), code=2)


def _run(process: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await process(stop)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except run.RunError as error:
        fail(str(error), code=2)
    except (KvStoreError, PortTakenError, TlsError, EngineTlsError, IdentityError, AdminTokensError) as error:
        fail(str(error))
