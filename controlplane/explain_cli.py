"""`headrace explain` and `headrace replay`: why a request ran where it did, and whether it would again."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from controlplane.admin_client import AdminClient, AdminError, JsonOption, TokenOption, segment
from controlplane.cli_error import fail
from controlplane.config import Config, ConfigError, load_config
from kvstore.board import open_board
from kvstore.errors import KvStoreError
from router.explain.explanation import decode
from router.explain.text import render_text
from router.replay.recording import End, Header, RecordingError
from router.replay.replay import Difference, Report
from router.replay.replay import replay as replay_recording
from router.replay.what_if import Comparison, compare

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="headrace.yaml; none: defaults")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key.path=value on top of the file; repeatable")]


def register(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command()(explain)
    app.command()(replay)


def explain(
    request_id: Annotated[str, typer.Argument(help="x-request-id of the response, or the router's own id")],
    admin: Annotated[
        str | None,
        typer.Option(
            "--admin", envvar="HEADRACE_ADMIN_URL", help="URL of the admin API; none: admin of the configuration"
        ),
    ] = None,
    token_file: TokenOption = None,
    url: Annotated[str | None, typer.Option(help="ask this router instead: it knows what still runs")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Why a request ran where it did, why not elsewhere, why so late, or why it was rejected."""
    try:
        tree = load_config(config, overrides or [])
    except ConfigError as error:
        fail(str(error), code=2)
    data = asyncio.run(
        _find(request_id, AdminClient(url or admin or tree.admin.url, token_file), url is not None, tree)
    )
    if as_json:
        print(data.decode())
        return
    try:
        print(render_text(decode(data)), end="")
    except ValueError as error:
        fail(f"the record of {request_id} is of another version of headrace ({error}); --json shows it as it is")


def replay(
    file: Annotated[Path, typer.Argument(help="a recording (router.explain.record_dir)")],
    policy: Annotated[
        str | None, typer.Option(help="estimate instead what this routing policy would have decided")
    ] = None,
) -> None:
    """Tell a recording to the core again: 0 if it decides the same bit by bit, 1 if not, 2 if it cannot be read."""
    text, code = tell_again(file, policy)
    if code == 2:
        fail(text, code)
    print(text)
    if code:
        raise typer.Exit(code)


def tell_again(file: Path, policy: str | None) -> tuple[str, int]:
    """What `headrace replay` says, and its exit code."""
    from router.baselines import BASELINES
    from router.build import build_core
    from router.settings import LEAST_COST

    allowed = (LEAST_COST, *sorted(BASELINES))
    if policy is not None and policy not in allowed:
        return f"--policy: there is no {policy!r}; allowed: {', '.join(allowed)}", 2
    try:
        with file.open("rb") as lines:
            if policy is not None:
                return _compared(file, policy, compare(lines, lambda recipe: build_core(recipe, policy))), 0
            report = replay_recording(lines, build_core)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}", 2
    except RecordingError as error:
        return f"{file} is not a recording that can be replayed: {error}", 2
    except (ValueError, TypeError, KeyError) as error:
        return f"{file}: its header does not say how to build a core: {error}", 2
    return _replayed(file, report), 0 if report.difference is None else 1


async def _find(request_id: str, client: AdminClient, is_router: bool, tree: Config) -> bytes:
    """The record, from the admin API or a router, or from Redis."""
    try:
        return await client.ask("GET", ("/headrace" if is_router else "") + f"/decisions/{segment(request_id)}")
    except AdminError as error:
        data, missing_there = await _from_redis(request_id, tree)
        if data is None:
            fail(f"{error}\nerror: {missing_there}")
        return data


async def _from_redis(request_id: str, tree: Config) -> tuple[bytes | None, str]:
    """The record that routers have shipped; None, and why there is none."""
    if tree.redis.url is None:
        return None, "with --config or --set redis.url=... Redis is asked too"
    redis, ttl_s = tree.redis, tree.board.decision_ttl_s
    try:
        async with open_board(tree.redis.url, redis.namespace, redis) as board:
            data = await board.decisions.get(request_id)
    except KvStoreError as error:
        return None, str(error)
    return data, f"Redis has no record of it either; records stay there for {ttl_s:g} s"


def _replayed(file: Path, report: Report) -> str:
    counted = f"{report.num_events:,} events, {report.num_commands:,} commands"
    if report.difference is None:
        return f"{file}: {counted}, all equal{_ended(report.end)}"
    return "\n".join(_different(file, report.header, report.difference))


def _different(file: Path, header: Header, difference: Difference) -> list[str]:
    from router.replay.recorder import written_with

    at_s = difference.now_s - header.now_s
    lines = [f"{file}: different from step {difference.step} on ({difference.event}, {at_s:+.3f} s)"]
    for where, recorded, replayed in difference.parts:
        lines += [f"  {where or 'the core'}", f"    recorded  {recorded}", f"    replayed  {replayed}"]
    here = written_with()
    for name, recorded in header.written_with.items():
        if here.get(name) != recorded:
            lines.append(f"  recorded with {name} {recorded}, replayed with {here.get(name)}: may explain last digits")
    return lines


def _compared(file: Path, policy: str, found: Comparison) -> str:
    rows = [
        ("", "as recorded", policy),
        ("dispatched", f"{found.recorded.dispatched:,}", f"{found.other.dispatched:,}"),
        ("rejected", f"{found.recorded.rejected:,}", f"{found.other.rejected:,}"),
        ("forecast cost, sum", f"{found.recorded.cost_s:,.3f} s", f"{found.other.cost_s:,.3f} s"),
        ("forecast TTFT, sum", f"{found.recorded.ttft_s:,.3f} s", f"{found.other.ttft_s:,.3f} s"),
    ]
    table = [f"  {name:<20}{recorded:>16}{other:>16}" for name, recorded, other in rows]
    share = found.num_differing / found.num_requests if found.num_requests else 0.0
    head = f"{file}: {found.num_requests:,} requests, {found.num_differing:,} ({share:.1%}) decided otherwise"
    notes = [
        f"  sums are over the {found.num_both_dispatched:,} requests that both dispatched, by each one's own forecast"
    ]
    if found.num_left_waiting:
        notes.append(f"  {found.num_left_waiting:,} more were still waiting under {policy} when they ended")
    return "\n".join((head + _ended(found.end), *table, *notes))


def _ended(end: End | None) -> str:
    return "" if end is None or end.reason == "stopped" else f" (the recording is incomplete: {end.reason})"
