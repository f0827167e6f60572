"""A package `vllm` whose server is the fake engine: stands where supervisors look for the real one."""

import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
# Takes of the server's arguments what the fake engine has too.
_API_SERVER = """
import argparse, json
from workers.fake.engine import main

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("--host", "--port", "--served-model-name", "--block-size", "--kv-events-config"):
    parser.add_argument(name)
args, _ = parser.parse_known_args()
events = json.loads(args.kv_events_config)
main([
    "--host", args.host, "--port", args.port, "--model", args.served_model_name, "--block-size", args.block_size,
    "--kv-events-endpoint", events["endpoint"], "--kv-replay-endpoint", events["replay_endpoint"],
    "--plan", __file__ + ".plan.json",
])
"""


def write_fake_vllm(folder: Path, plan: dict[str, Any]) -> str:
    """The PYTHONPATH with which engines are started."""
    package = folder / "engine" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for parent in (package, *package.parents[:2]):
        (parent / "__init__.py").touch()  # or the real package would come first
    server = package / "api_server.py"
    server.write_text(_API_SERVER)
    Path(f"{server}.plan.json").write_text(json.dumps(plan))
    return f"{folder / 'engine'}:{_ROOT}"
