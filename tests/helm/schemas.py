"""What is wrong with a manifest, by the strict schemas of Kubernetes and of custom resources. No schema is an error."""

import functools
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

CRDS = Path(__file__).parent / "crds"
KUBERNETES_VERSIONS = ("1.30", "1.33", "1.37")  # the chart's oldest, one between, the newest that is known

Manifest = dict[str, Any]


def problem(manifest: Manifest, kubernetes_version: str) -> str | None:
    """One problem, or None."""
    validator = _custom_resources().get((manifest["apiVersion"], manifest["kind"]))
    if validator is not None:
        error = next(validator.iter_errors(manifest), None)
        return None if error is None else f"{'/'.join(map(str, error.path))}: {error.message[:300]}"
    try:
        kubernetes_validate.validate(manifest, kubernetes_version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'/'.join(map(str, error.path))}: {error.message[:300]}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"there is no {manifest['apiVersion']} {manifest['kind']} in Kubernetes {kubernetes_version}"
    return None


@functools.cache
def _custom_resources() -> Mapping[tuple[str, str], jsonschema.Draft7Validator]:
    """Validators by apiVersion and kind."""
    validators = {}
    for path in CRDS.glob("*.json.xz"):
        crd = json.loads(lzma.decompress(path.read_bytes()))
        for version, schema in crd["versions"].items():
            strict = _strict(schema)
            strict["properties"]["metadata"] = {"type": "object"}
            validators[f"{crd['group']}/{version}", crd["names"]["kind"]] = jsonschema.Draft7Validator(strict)
    return validators


def _strict(schema: Any) -> Any:
    """Kubernetes' dialect as draft 7: unknown fields are errors, and a default fills in what is required."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict: dict[str, Any] = {}
    properties = schema.get("properties", {})
    for key, value in schema.items():
        if key == "properties":
            strict[key] = {name: _strict(item) for name, item in value.items()}
        elif key == "required":
            strict[key] = [name for name in value if "default" not in properties.get(name, {})]
        elif not key.startswith("x-") and key not in ("nullable", "format", "default"):
            strict[key] = _strict(value)
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in strict:
        kinds = strict["type"] if isinstance(strict["type"], list) else [strict["type"]]
        strict["type"] = [*kinds, "null"]
    if properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict
