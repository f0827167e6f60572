"""`python -m tests.serve_stand_in CONFIG REDIS_URL LOG_DIR`: the control plane on Ray Serve, and a pool of nothing."""

import sys
from pathlib import Path
from typing import Any

from ray import serve

from controlplane.config import load_config
from controlplane.deployment import bind_control_plane, local_ray, running
from workers.deployment import POOL_NAMES
from workers.types import Role


class StandIn:
    """A worker that runs nothing."""


def main(config_file: str, redis_url: str, log_dir: str) -> None:
    """Run until stdin ends."""
    config = load_config(Path(config_file))
    pool: Any = serve.deployment(
        StandIn, name=POOL_NAMES[Role.MIXED], num_replicas=1, ray_actor_options={"num_cpus": 0}
    )
    application = bind_control_plane(config, redis_url, Path(log_dir), pool.bind())
    with local_ray(), running(config, application):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
