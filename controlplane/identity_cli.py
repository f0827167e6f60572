"""Commands about who may ask: `headrace keys create|list|rotate|revoke`, `headrace tenants list|show|set|usage`."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from controlplane.admin_client import DEFAULT_URL, AdminClient, AdminOption, JsonOption, TokenOption, run, segment
from controlplane.admin_routes.keys import KeyView, MadeKey, NewKey, Rotation
from controlplane.admin_routes.tenants import TenantView
from controlplane.cli_error import fail

keys_app = typer.Typer(no_args_is_help=True, help="API keys of clients.")
tenants_app = typer.Typer(no_args_is_help=True, help="What tenants may have, and have used.")

_WIDTH = 140  # into a pipe, whole rows are worth more than a frame that fits
IdArgument = Annotated[str, typer.Argument(help="id of a key, as `headrace keys list` shows it")]
TenantArgument = Annotated[str, typer.Argument(help="name of a tenant")]
IntoOption = Annotated[Path | None, typer.Option("--into", help="a new file for the key; none: it goes to stdout")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(keys_app, name="keys")
    app.add_typer(tenants_app, name="tenants")


@keys_app.command("create")
def create_key(
    tenant: TenantArgument,
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    service_class: Annotated[
        str | None, typer.Option("--class", help="its requests' class; none: the tenant's")
    ] = None,
    expires_s: Annotated[float | None, typer.Option(min=1, help="seconds from now; none: never")] = None,
    note: Annotated[str, typer.Option(help="for operators: whose it is, what for")] = "",
    into: IntoOption = None,
) -> None:
    """Make an API key. It is shown this once."""
    body = msgspec.json.encode(NewKey(tenant, service_class, expires_s, note))
    answer = run(AdminClient(admin, token_file), "POST", "/keys", body)
    _hand_over(msgspec.json.decode(answer, type=MadeKey), into)


@keys_app.command("rotate")
def rotate_key(
    key_id: IdArgument,
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    overlap_s: Annotated[float, typer.Option(min=0, help="seconds for which the old key still holds")] = 86_400.0,
    expires_s: Annotated[
        float | None, typer.Option(min=1, help="of the new key, seconds from now; none: never")
    ] = None,
    into: IntoOption = None,
) -> None:
    """Make a key like it; the old one holds until its users have the new one."""
    body = msgspec.json.encode(Rotation(overlap_s, expires_s))
    answer = run(AdminClient(admin, token_file), "POST", f"/keys/{segment(key_id)}/rotate", body)
    print(f"{key_id} holds for another {overlap_s:g} s", file=sys.stderr)
    _hand_over(msgspec.json.decode(answer, type=MadeKey), into)


@keys_app.command("revoke")
def revoke_key(key_id: IdArgument, admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None) -> None:
    """Refuse a key from now on. What it has begun goes on."""
    view = msgspec.json.decode(run(AdminClient(admin, token_file), "DELETE", f"/keys/{segment(key_id)}"), type=KeyView)
    print(f"{view.id} of {view.tenant} is revoked")


@keys_app.command("list")
def list_keys(admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None, as_json: JsonOption = False) -> None:
    """Keys by id; never the keys."""
    answer = run(AdminClient(admin, token_file), "GET", "/keys")
    if as_json:
        print(answer.decode())
        return
    table = Table("id", "tenant", "class", "state", "expires", "by", "note", box=None)
    for view in msgspec.json.decode(answer, type=list[KeyView]):
        by = view.created_by or view.source
        table.add_row(
            view.id, view.tenant, view.service_class or "", view.state, _day(view.expires_at_s), by, escape(view.note)
        )
    _print(table)


@tenants_app.command("list")
def list_tenants(admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None, as_json: JsonOption = False) -> None:
    """Tenants and their limits."""
    answer = run(AdminClient(admin, token_file), "GET", "/tenants")
    if as_json:
        print(answer.decode())
        return
    table = Table("tenant", "keys", "set by", "settings", box=None)
    for view in msgspec.json.decode(answer, type=list[TenantView]):
        table.add_row(view.name, str(view.num_keys), view.source, escape(_in_words(view.settings)))
    _print(table)


@tenants_app.command("usage")
def usage(
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """What tenants have used in this period of their budgets."""
    answer = run(AdminClient(admin, token_file), "GET", "/tenants")
    views = msgspec.json.decode(answer, type=list[TenantView])
    if as_json:
        print(msgspec.json.encode({view.name: view.used for view in views}).decode())
        return
    table = Table("tenant", "period", "requests", "prompt", "cached", "output", "left of budget", box=None)
    for view in views:
        used = view.used
        left = "" if used.left_tokens is None else f"{used.left_tokens:,} of {used.budget_tokens:,}"
        counts = (used.requests, used.prompt_tokens, used.cached_tokens, used.output_tokens)
        table.add_row(view.name, used.period, *(f"{count:,}" for count in counts), left)
    _print(table)


@tenants_app.command("show")
def show_tenant(name: TenantArgument, admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None) -> None:
    """One tenant, as JSON."""
    print(run(AdminClient(admin, token_file), "GET", f"/tenants/{segment(name)}").decode())


@tenants_app.command("set")
def set_tenant(
    name: TenantArgument,
    settings: Annotated[list[str], typer.Argument(help="name=value as in identity.tenants; name= takes it away")],
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
) -> None:
    """Change what a tenant may have, such as `tokens_per_min=20000 'models=[small]'`; the rest stays."""
    client = AdminClient(admin, token_file)
    known = msgspec.json.decode(run(client, "GET", "/tenants"), type=list[TenantView])
    # What it has from `default` only it would have as its own, and keep when `default` changes.
    tree: dict[str, Any] = next((v.settings for v in known if v.name == name and v.source != "default"), {})
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{setting!r} must be name=value", param_hint="SETTINGS")
        try:
            tree[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise typer.BadParameter(f"{setting!r}: the value is not valid YAML", param_hint="SETTINGS") from None
        if text == "":
            del tree[key]
    answer = run(client, "PUT", f"/tenants/{segment(name)}", msgspec.json.encode(tree))
    print(f"{name}: {_in_words(msgspec.json.decode(answer, type=TenantView).settings)}")


@tenants_app.command("reset")
def reset_tenant(name: TenantArgument, admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None) -> None:
    """Back to what the configuration says of a tenant."""
    answer = run(AdminClient(admin, token_file), "DELETE", f"/tenants/{segment(name)}")
    print(f"{name}: {_in_words(msgspec.json.decode(answer, type=TenantView).settings)}")


def _hand_over(made: MadeKey, into: Path | None) -> None:
    about = f"{made.id}, of {made.tenant}" + (f", until {_day(made.expires_at_s)}" if made.expires_at_s else "")
    print(f"key {about}; shown this once", file=sys.stderr)
    if into is None:
        print(made.key)
        return
    try:
        descriptor = os.open(into.expanduser(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        fail(f"--into: {into} cannot be made: {error.strerror}; revoke {made.id}, nobody has seen it")
    with os.fdopen(descriptor, "w") as file:
        file.write(made.key + "\n")


def _day(at_s: float | None) -> str:
    return "" if at_s is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_s))


def _in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in settings.items()) or "no limits"


def _value(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _print(table: Table) -> None:
    console = Console()
    Console(width=max(console.width, _WIDTH)).print(table, highlight=False)
