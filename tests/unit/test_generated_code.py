"""The committed gRPC code is what the .proto files give."""

from pathlib import Path

from router import _generated
from router.proto.generate import generate


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    generate(tmp_path)
    committed = Path(_generated.__file__).parent

    def modules(root: Path) -> dict[str, str]:
        found = [path for path in root.rglob("*") if path.suffix in (".py", ".pyi")]
        return {str(path.relative_to(root)): path.read_text() for path in found}

    assert modules(tmp_path) == modules(committed)
