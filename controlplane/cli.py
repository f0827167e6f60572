"""The command `headrace`."""

import asyncio
import signal
import sys
import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from controlplane import experts_cli, explain_cli, identity_cli, operate_cli, run_cli
from controlplane.cli_error import fail
from controlplane.config import Config, ConfigError, dump_config, load_config
from kvstore.errors import KvStoreError
from kvstore.types import WorkerId
from workers.engine_probe import EngineNotAnsweringError
from workers.engine_tls import EngineTlsError
from workers.types import Role
from workers.worker import new_spec, run_joined

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
config_app = typer.Typer(no_args_is_help=True, help="Check and show configuration.")
worker_app = typer.Typer(no_args_is_help=True, help="Workers that run outside Ray.")
app.add_typer(config_app, name="config")
app.add_typer(worker_app, name="worker")
app.add_typer(experts_cli.app, name="experts")
app.add_typer(run_cli.app, name="run")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="headrace.yaml; none: defaults")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key.path=value on top of the file; repeatable")]


@app.command()
def up(
    config: ConfigOption = None,
    pools: Annotated[str | None, typer.Option(help="shape, such as 2P1D, 1P1D1M or 3M")] = None,
    model: Annotated[str | None, typer.Option(help="checkpoint folder; none: the demo model")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32")] = None,
    overrides: SetOption = None,
) -> None:
    """Run router and engines on this machine until Ctrl-C."""
    from controlplane.progress import Progress
    from controlplane.up import UpError
    from controlplane.up import up as run_up

    changes = list(overrides or [])
    changes += [f"model.path={model}"] if model is not None else []
    changes += [f"engine.dtype={dtype}"] if dtype is not None else []
    tree = _load(config, changes, pools)
    from controlplane.embedded_redis import EmbeddedRedisError

    try:
        asyncio.run(run_up(tree, Progress(Console(file=sys.stdout))))
    except (UpError, KvStoreError, EmbeddedRedisError) as error:
        fail(str(error))


operate_cli.register(app)
explain_cli.register(app)
identity_cli.register(app)


@worker_app.command()
def join(
    address: Annotated[str, typer.Option(help="http://host:port of a running vLLM server")],
    redis: Annotated[str, typer.Option(help="Redis URL of the cluster (`headrace up` prints it)")],
    role: Annotated[Role, typer.Option(help="what it is for")] = Role.MIXED,
    worker_id: Annotated[str | None, typer.Option("--id", help="worker id; none: a new one")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Bring an engine that runs outside Ray into the fleet, for as long as this command runs."""
    tree = _load(config, overrides or [], None)
    spec = new_spec(
        WorkerId(run_cli.check_worker_id(worker_id) or f"{role.value}-{uuid.uuid4().hex[:6]}"), role, model=""
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"{spec.id}: joining with {address}; Ctrl-C leaves", flush=True)
        await run_joined(address.rstrip("/"), spec, tree.engine, redis, tree.redis, stop)

    try:
        asyncio.run(run())
    except (KvStoreError, EngineNotAnsweringError, EngineTlsError) as error:
        fail(str(error))


@config_app.command()
def check(file: Annotated[Path, typer.Argument(help="headrace.yaml")]) -> None:
    """Say what is wrong with a configuration file, or that nothing is."""
    _load(file, [], None)
    print(f"{file}: ok")


@config_app.command()
def show(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Print the whole configuration, defaults included, passwords masked."""
    print(dump_config(_load(config, overrides or [], None)), end="")


def _load(path: Path | None, overrides: list[str], pools: str | None) -> Config:
    try:
        return load_config(path, overrides, pools)
    except ConfigError as error:
        fail(str(error), code=2)


def main() -> None:
    """Entry point."""
    app()
