"""What `headrace status` and `headrace top` show, as tables for a terminal."""

from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controlplane.fleet_status import FleetStatus, WorkerStatus
from controlplane.slo_report import ClassSlo, SloReport

_STYLES = {"ready": "green", "starting": "yellow", "draining": "magenta", "lost": "red"}


def status_view(fleet: FleetStatus) -> RenderableType:
    """Workers, and what operators want of them."""
    return Group(_workers(fleet), *_wishes(fleet))


def top_view(fleet: FleetStatus, slo: SloReport) -> RenderableType:
    """Classes, queues, workers."""
    in_flight, waiting = (sum(getattr(one, name) for one in fleet.routers) for name in ("in_flight", "waiting"))
    hits = f"; {slo.prefix_hit_rate:.0%} of prompt tokens were cached" if slo.prefix_hit_rate is not None else ""
    heading = f"{len(fleet.routers)} router(s): {in_flight} requests in flight, {waiting} of them waiting{hits}"
    return Group(
        Text(heading), _classes(slo, {one.class_name for one in fleet.paused}), _workers(fleet), *_wishes(fleet)
    )


def _workers(fleet: FleetStatus) -> Table:
    table = Table("worker", "role", "phase", "model", "address", "running", "waiting", "KV blocks", "lease", "drain")
    for worker in fleet.workers:
        table.add_row(
            worker.id,
            worker.role,
            Text(worker.phase, style=_STYLES.get(worker.phase, "")),
            worker.model,
            worker.address or "-",
            str(worker.running_seqs),
            str(worker.waiting_seqs),
            f"{worker.kv_blocks_used}/{worker.kv_blocks_total} x {worker.block_size_tokens}",
            f"{worker.lease_s:g} s",
            _drain(worker, len(fleet.routers)),
        )
    return table


def _drain(worker: WorkerStatus, num_routers: int) -> str:
    drain = worker.drain
    if drain is None:
        return ""
    so_far = (
        "nothing left" if drain.is_done else f"{drain.routers_told}/{num_routers} routers, {worker.routed_seqs} left"
    )
    return f"by {drain.by} {_when(drain.at_s)}: {so_far}" + (f" ({drain.reason})" if drain.reason else "")


def _wishes(fleet: FleetStatus) -> list[Text]:
    lines = [
        Text(
            f"class {one.class_name} is paused by {one.by} {_when(one.at_s)}"
            + (f" ({one.reason})" if one.reason else "")
        )
        for one in fleet.paused
    ]
    if fleet.absent_drains:
        lines.append(Text("to drain, and not in the fleet: " + ", ".join(fleet.absent_drains)))
    return lines


def _classes(slo: SloReport, paused: set[str]) -> Table:
    table = Table(
        *("class", "goodput", "attainment", "promises kept", "arrived", "answered", "failed", "cancelled", "rejected"),
        title=f"the last {slo.window_s:.0f} s",
        title_justify="left",
    )
    for one in slo.classes:
        table.add_row(
            one.class_name + (" (paused)" if one.class_name in paused else ""),
            f"{one.goodput_per_s:.2f}/s",
            _share(one.attainment),
            _share(one.kept),
            *(str(number) for number in (one.arrived, one.answered, one.failed, one.cancelled)),
            _rejected(one),
        )
    return table


def _rejected(one: ClassSlo) -> str:
    most = sorted(one.rejected.items(), key=lambda item: -item[1])
    return ", ".join(f"{number} {reason}" for reason, number in most) or "0"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _when(at_s: float) -> str:
    return f"since {datetime.fromtimestamp(at_s, UTC):%m-%d %H:%M:%S} UTC"
