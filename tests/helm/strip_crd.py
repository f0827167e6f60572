"""Make the copies in crds/: `python -m tests.helm.strip_crd CRD.yaml...` writes crds/KIND.json.xz."""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parent / "crds"


def main(sources: list[str]) -> None:
    """Write one file for each source: group, kind, and the schema of each version that is served."""
    for source in sources:
        spec = yaml.load(Path(source).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        versions = {
            version["name"]: _stripped(version["schema"]["openAPIV3Schema"])
            for version in spec["versions"]
            if version["served"]
        }
        copy = {"group": spec["group"], "names": spec["names"], "scope": spec["scope"], "versions": versions}
        target = CRDS / f"{spec['names']['kind']}.json.xz"
        target.write_bytes(lzma.compress(json.dumps(copy, separators=(",", ":"), sort_keys=True).encode()))
        print(target, len(target.read_bytes()))


def _stripped(schema: Any) -> Any:
    """Without descriptions. A property may be called `description`: it is an object, the text is not."""
    if isinstance(schema, list):
        return [_stripped(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _stripped(value)
        for key, value in schema.items()
        if not (key in ("description", "example") and isinstance(value, str)) and key != "x-kubernetes-validations"
    }


if __name__ == "__main__":
    main(sys.argv[1:])
