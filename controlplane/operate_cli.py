"""Commands of operators: `status`, `top`, `drain`, `undrain`, `pause`, `resume`, `resize`, `admin token`."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from controlplane.admin_client import (
    DEFAULT_URL,
    AdminClient,
    AdminError,
    AdminOption,
    JsonOption,
    TokenOption,
    run,
    segment,
)
from controlplane.admin_routes.intents import Why, WhyPaused, Wish
from controlplane.admin_routes.pools import Pool, Size
from controlplane.cli_error import fail
from controlplane.fleet_status import FleetStatus, WorkerStatus
from controlplane.operate_view import status_view, top_view
from controlplane.slo_report import SloReport
from router.admin_tokens import NAME_PATTERN, AdminRole, digest_of, new_token
from workers.types import Role

admin_app = typer.Typer(no_args_is_help=True, help="Who may operate.")

WorkerArgument = Annotated[str, typer.Argument(help="id of a worker, as `headrace status` shows it")]
ClassArgument = Annotated[str, typer.Argument(help="name of a class (slo.classes)")]
ReasonOption = Annotated[str, typer.Option(help="why, for the others")]
Look = Callable[[], Coroutine[Any, Any, RenderableType]]
_T = TypeVar("_T")
_REFRESH_S = 1.0
_WIDTH = 140  # into a pipe or a narrow window, whole rows are worth more than a frame that fits


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, top, drain, undrain, pause, resume, resize):
        app.command()(command)
    app.add_typer(admin_app, name="admin")


def status(
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="again each second, until Ctrl-C")] = False,
) -> None:
    """Workers, roles, load, leases and drains."""
    client = AdminClient(admin, token_file)

    async def look() -> RenderableType:
        if as_json:
            return Text((await client.ask("GET", "/fleet")).decode(), no_wrap=True, overflow="ignore")
        return status_view(await client.read("/fleet", FleetStatus))

    _show(look, again=watch, as_lines=as_json)


def top(
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    window_s: Annotated[float, typer.Option(min=2, max=3600, help="seconds over which promises are judged")] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="print it once")] = False,
) -> None:
    """Promises by class, queues and workers, each second until Ctrl-C."""
    client = AdminClient(admin, token_file)

    async def look() -> RenderableType:
        fleet = await client.read("/fleet", FleetStatus)
        return top_view(fleet, await client.read(f"/slo?window_s={window_s:g}", SloReport))

    _show(look, again=not once, as_lines=False)


def drain(
    worker: WorkerArgument,
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    reason: ReasonOption = "",
    wait: Annotated[bool, typer.Option("--wait", help="until it has finished all it had")] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="with --wait: seconds at most")] = 600.0,
) -> None:
    """Give a worker nothing new. What it has it finishes; it stays so until `undrain`, over restarts too."""
    client = AdminClient(admin, token_file)
    wish = _change(client, f"/workers/{segment(worker)}/drain", msgspec.json.encode(Why(reason)))
    by = wish.intent.by if wish.intent is not None else ""
    print(f"{worker} gets nothing new (by {by})", flush=True)
    if wait:
        left = _run(_until_drained(client, worker, timeout_s))
        if left:
            fail(f"{worker} is not done after {timeout_s:g} s: {left}")
        print(f"{worker} has nothing left to do")


def undrain(worker: WorkerArgument, admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None) -> None:
    """Give a drained worker requests again."""
    _change(AdminClient(admin, token_file), f"/workers/{segment(worker)}/undrain")
    print(f"{worker} gets requests again")


def pause(
    name: ClassArgument,
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    reason: ReasonOption = "",
    retry_after_s: Annotated[float, typer.Option(min=1, max=3600, help="what clients are told")] = 30.0,
) -> None:
    """Turn new requests of a class away, with 503 and Retry-After; those that are in go on."""
    body = msgspec.json.encode(WhyPaused(reason, retry_after_s))
    _change(AdminClient(admin, token_file), f"/classes/{segment(name)}/pause", body)
    print(f"new requests of {name} are turned away")


def resume(name: ClassArgument, admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None) -> None:
    """Take requests of a paused class again."""
    _change(AdminClient(admin, token_file), f"/classes/{segment(name)}/resume")
    print(f"requests of {name} are taken again")


def resize(
    pool: Annotated[Role, typer.Argument(help="which pool")],
    size: Annotated[int, typer.Argument(min=0, help="how many workers it is to have")],
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
) -> None:
    """Start or drain workers of a pool that Ray Serve runs."""
    client = AdminClient(admin, token_file)
    answer = run(client, "POST", f"/pools/{pool.value}/size", msgspec.json.encode(Size(size)))
    print(f"the {pool.value} pool is to have {msgspec.json.decode(answer, type=Pool).size} worker(s)")


@admin_app.command()
def token(
    name: Annotated[str, typer.Option(help="whose it is; audit lines have it")],
    role: Annotated[AdminRole, typer.Option(help="viewers read, operators change")] = AdminRole.VIEWER,
    into: Annotated[
        Path | None, typer.Option("--into", help="a new file for the token; none: it is shown on stderr")
    ] = None,
) -> None:
    """Make a token. Its line for admin.tokens_file goes to stdout: append it there."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter(f"{name!r}: up to 64 letters, digits and . _ : @ -", param_hint="--name")
    made = new_token()
    if into is None:
        print(f"token, shown this once: {made}", file=sys.stderr)
    else:
        try:
            descriptor = os.open(into.expanduser(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            fail(f"--into: {into} cannot be made: {error.strerror}")
        with os.fdopen(descriptor, "w") as file:
            file.write(made + "\n")
    print(f"{digest_of(made)}: {{name: '{name}', role: {role.value}}}")


def _change(client: AdminClient, path: str, body: bytes | None = None) -> Wish:
    return msgspec.json.decode(run(client, "POST", path, body), type=Wish)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run it; Ctrl-C is a good end, an admin API that does not answer is not."""
    try:
        return asyncio.run(work)
    except AdminError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _until_drained(client: AdminClient, worker: str, timeout_s: float) -> str:
    """What is left after so long; empty: nothing."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        fleet = await client.read("/fleet", FleetStatus)
        row = next((row for row in fleet.workers if row.id == worker), None)
        if row is None or (row.drain is not None and row.drain.is_done):
            return ""  # one that has left has nothing either
        if row.drain is None:
            return "somebody undrained it"
        if time.monotonic() > deadline_s:
            return _left(row, len(fleet.routers))
        await asyncio.sleep(_REFRESH_S / 4)


def _left(row: WorkerStatus, num_routers: int) -> str:
    told = row.drain.routers_told if row.drain is not None else 0
    return f"{told} of {num_routers} routers know, {row.routed_seqs} requests are there, {row.running_seqs} run"


def _show(look: Look, *, again: bool, as_lines: bool) -> None:
    """Print what there is, once or each second. While nothing answers, the last view stays, and says so."""
    console = Console()
    console = Console(width=None if as_lines else max(console.width, _WIDTH), soft_wrap=as_lines)
    if not again:
        console.print(_run(look()), soft_wrap=as_lines, highlight=False)
    elif as_lines:
        _run(_print_lines(look, console))
    else:
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            _run(_keep_fresh(look, live))


async def _print_lines(look: Look, console: Console) -> NoReturn:
    while True:
        console.print(await look(), soft_wrap=True, highlight=False)
        await asyncio.sleep(_REFRESH_S)


async def _keep_fresh(look: Look, live: Live) -> NoReturn:
    shown = await look()  # a first failure ends the command: most likely the address or the token is wrong
    while True:
        live.update(shown, refresh=True)
        await asyncio.sleep(_REFRESH_S)
        try:
            shown = await look()
        except AdminError as error:
            live.update(Group(shown, Text(f"stale: {error}", style="bold red")), refresh=True)
            await asyncio.sleep(_REFRESH_S)
