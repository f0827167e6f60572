"""`headrace experts`: plan which rank holds which experts, try policies on recorded loads, see and change what is."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from controlplane.admin_client import DEFAULT_URL, AdminClient, AdminOption, JsonOption, TokenOption, run, segment
from controlplane.cli_error import fail
from controlplane.placement.cost import Aim
from controlplane.placement.eplb import linear
from controlplane.placement.heat_map import LEGEND, heat_map
from controlplane.placement.loads import read_scenarios, read_windows
from controlplane.placement.objective import Prices
from controlplane.placement.plan_file import decode_plan, describe_plan
from controlplane.placement.planner import Plan
from controlplane.placement.planner import plan as make_plan
from controlplane.placement.rebalance import Rebalancer
from controlplane.placement.simulate import Eplb, Keep, Ours, Policy, replay
from controlplane.placement.types import Placement, PlacementError, Scenario, Tokens, Topology, check_room
from controlplane.placement.unseen import plan_unseen

app = typer.Typer(no_args_is_help=True, help="Experts of mixture-of-experts models: which rank holds which.")

LoadsOption = Annotated[Path, typer.Option("--loads", help="expert loads: JSON, see docs/experts.md")]
MatchOption = Annotated[str, typer.Option("--match", help="of several loads in the file: those whose name has this")]
RanksOption = Annotated[int, typer.Option("--ranks", min=1, help="expert-parallel ranks")]
SlotsOption = Annotated[int, typer.Option("--slots-per-rank", min=1, help="experts that a rank holds of each layer")]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="machines; ranks divide evenly over them")]

_PLACEMENT_TIMEOUT_S = 330.0  # an engine may take minutes to move its weights


@app.command()
def plan(  # noqa: PLR0913  a command's options
    loads: LoadsOption,
    ranks: RanksOption,
    slots_per_rank: SlotsOption,
    nodes: NodesOption = 1,
    match: MatchOption = "",
    previous: Annotated[Path | None, typer.Option(help="the plan that is in force; none: a first placement")] = None,
    max_moves: Annotated[int | None, typer.Option(min=0, help="slots that may change, of all layers")] = None,
    dead: Annotated[str, typer.Option(help="ranks that are dead, such as 3,7")] = "",
    horizon_s: Annotated[float, typer.Option(help="how long the plan is used: what a move has to pay off in")] = 300.0,
    risk: Annotated[float, typer.Option(help="0: the mean of all loads counts; 1: the worst of them")] = 0.5,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="also for loads that these are not like; worth less for these")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a placement that is good for every load in the file."""
    try:
        scenarios = read_scenarios(loads, match=match)
        planner = plan_unseen if unseen else make_plan
        topology = _topology(nodes, ranks, slots_per_rank, dead)
        before = None if previous is None else read_plan(previous)
        prices = Prices()
        aim = Aim(horizon_s=horizon_s, risk=risk)
        began_s = time.perf_counter()
        found = planner(scenarios, topology, prices, previous=before, max_moves=max_moves, aim=aim)
        took_s = time.perf_counter() - began_s
    except PlacementError as error:
        fail(str(error), code=2)
    if as_json:
        print(msgspec.json.encode({**describe_plan(found, topology, prices, scenarios), "plan_s": took_s}).decode())
        return
    _show_plan(found, topology, prices, scenarios, took_s)


@app.command()
def simulate(
    loads: LoadsOption,
    ranks: RanksOption,
    slots_per_rank: SlotsOption,
    nodes: NodesOption = 1,
    match: MatchOption = "",
    window_s: Annotated[float, typer.Option(min=0.001, help="length of a window")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Replay windows of load: what each way to place experts makes of the window that follows."""
    try:
        windows = _windows(loads, match)
        topology, prices = Topology.even(nodes, ranks, slots_per_rank), Prices()
        num_layers, num_experts = windows[0].shape
        check_room(num_experts, topology)
        start = linear(num_layers, num_experts, topology)
        policies: dict[str, Policy] = {
            "as they come": Keep(),
            "EPLB, every window": Eplb(topology),
            "EPLB, below 0.9": Eplb(topology, below=0.9),
            "Headrace": Ours(Rebalancer(topology, prices, start), window_s),
        }
        rows = {name: replay(windows, policy, topology, prices, start) for name, policy in policies.items()}
    except PlacementError as error:
        fail(str(error), code=2)
    if as_json:
        print(msgspec.json.encode(rows).decode())
        return
    table = Table("policy", "next window", "p5", "worst layer", "rebalances", "slots moved", "crosses nodes")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row.balancedness:.3f}",
            f"{row.p5:.3f}",
            f"{row.worst_layer:.3f}",
            str(row.rebalances),
            str(row.moved_slots),
            f"{row.cross_node:.0%}",
        )
    Console().print(table)


@app.command()
def show(admin: AdminOption = DEFAULT_URL, token_file: TokenOption = None, as_json: JsonOption = False) -> None:
    """What the engines hold now, how even their load is, and what was decided last."""
    raw = run(AdminClient(admin, token_file), "GET", "/experts")
    if as_json:
        print(raw.decode())
        return
    engines = msgspec.json.decode(raw)["engines"]
    if not engines:
        print("no expert-parallel engine is in the fleet (engine.experts)")
        return
    for engine in engines:
        even, moved = engine["balancedness"], engine["drift"]
        seen = "no load so far"
        if even is not None:
            seen = f"{even['mean']:.3f}, {even['worst']:.3f} in layer {even['worst_layer']} ({engine['window_s']:.0f} s"
            seen += ")" if moved is None else f", {moved:.0%} of its tokens went elsewhere than before)"
        print(
            f"{engine['worker']} ({engine['model']}): {engine['ranks']} ranks with {engine['slots_per_rank']} slots,"
            f" {engine['placements']} placement(s) applied\n"
            f"  balancedness  {seen}\n"
            f"  last decision {engine['decision']}"
        )
        for item in engine["classes"]:
            print(
                f"  class {item['name']:<7} {item['share']:.0%} of its tokens; alone it would be at"
                f" {item['balancedness']:.3f} (profile known to {item['confidence']:.0%})"
            )


@app.command()
def loads(
    worker: Annotated[str, typer.Option("--worker", help="id of the expert-parallel worker")],
    by_class: Annotated[
        bool, typer.Option("--by-class", help="their sum instead, as it is likely to divide by class of traffic")
    ] = False,
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
) -> None:
    """Print an engine's latest windows of load, as `plan` and `simulate` read them."""
    print(
        run(
            AdminClient(admin, token_file),
            "GET",
            f"/experts/{segment(worker)}/{'class-loads' if by_class else 'loads'}",
        ).decode()
    )


@app.command()
def apply(
    plan_file: Annotated[Path, typer.Option("--plan", help="a plan, as `headrace experts plan --json` prints it")],
    worker: Annotated[str, typer.Option("--worker", help="id of the expert-parallel worker")],
    admin: AdminOption = DEFAULT_URL,
    token_file: TokenOption = None,
) -> None:
    """Put a plan into a running engine; it waits for no restart, and loses no request."""
    try:
        read_plan(plan_file)
    except PlacementError as error:
        fail(str(error), code=2)
    client, body = AdminClient(admin, token_file), plan_file.read_bytes()
    path = f"/experts/{segment(worker)}/placement"
    print(run(client, "POST", path, body, _PLACEMENT_TIMEOUT_S).decode())


def read_plan(path: Path) -> Placement:
    """The plan in a file; raises PlacementError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PlacementError(f"{path}: {error.strerror}") from None
    return decode_plan(raw, str(path))


def _windows(loads: Path, match: str) -> list[Tokens]:
    windows = [window.tokens for window in read_windows(loads, match=match)]
    if len(windows) < 2:
        raise PlacementError(f"{loads}: one window of load; the second is what a plan is measured on")
    return windows


def _topology(nodes: int, ranks: int, slots_per_rank: int, dead: str) -> Topology:
    topology = Topology.even(nodes, ranks, slots_per_rank)
    names = [name for name in dead.split(",") if name]
    for name in names:
        if not name.isdecimal() or int(name) >= ranks:
            raise PlacementError(f"--dead: {name!r}; ranks go from 0 to {ranks - 1}")
    gone = {int(name) for name in names}
    return topology.with_dead([rank not in gone for rank in range(ranks)])


def _show_plan(plan: Plan, topology: Topology, prices: Prices, scenarios: list[Scenario], took_s: float) -> None:
    said = describe_plan(plan, topology, prices, scenarios)
    print(
        f"{said['layers']} layers, {said['experts']} experts, {len(topology.ranks)} ranks on {said['nodes']} node(s)"
        f" with {topology.slots_per_rank} slots each, {said['redundant_slots']} redundant; planned in {took_s:.2f} s\n"
    )
    table = Table(Column("load", overflow="fold"), "balancedness", "p5", "worst layer", "crosses nodes")
    for name, values in said["balancedness"].items():
        table.add_row(
            name,
            f"{values['mean']:.3f}",
            f"{values['p5']:.3f}",
            f"{values['worst']:.3f} ({values['worst_layer']})",
            f"{said['cross_node'][name]:.0%}",
        )
    Console().print(table)
    for reason in plan.reasons:
        print(f"- {reason}")
    worst = min(scenarios, key=lambda scenario: float(plan.balancedness[scenario.name].mean()))
    print(f"\nranks by layer under {worst.name}, slowest at the right\n{LEGEND}\n")
    print("\n".join(heat_map(plan.placement, topology, worst.tokens)))
