"""Regenerates router/_generated from the .proto files: `python -m router.proto.generate [TARGET]`.

The generated code is committed, so that installing needs no compiler; a test generates it again and compares.
"""

import re
import sys
from pathlib import Path

_PROTO_ROOT = Path(__file__).parent
_FILES = ("headrace/v1/inference.proto", "envoy/service/ext_proc/v3/external_processor.proto")


def generate(target: Path) -> None:
    """Write the modules into `target`, importable as router._generated.*"""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    target.mkdir(parents=True, exist_ok=True)
    arguments = [
        "protoc",
        f"-I{_PROTO_ROOT}",
        f"-I{well_known}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        *_FILES,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        (folder / "__init__.py").touch()
    for module in target.rglob("*.py*"):
        if module.suffix in (".py", ".pyi"):
            module.write_text(
                re.sub(r"^from (headrace|envoy)\.", r"from router._generated.\1.", module.read_text(), flags=re.M)
            )


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else _PROTO_ROOT.parent / "_generated")
