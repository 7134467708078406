"""The running package as a wheel, so that a model from a checkout can be served elsewhere."""

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from functools import cache
from pathlib import Path

import dfm_mlflow

_PACKAGE = Path(dfm_mlflow.__file__).parent
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal sources give equal wheels


def is_release() -> bool:
    """Whether the running package was installed from an index, so that a name and version suffice.

    A checkout on the path has no distribution or one elsewhere; an installation from a folder,
    a file or a repository is marked by ``direct_url.json`` (PEP 610).
    """
    try:
        distribution = importlib.metadata.distribution("dfm-mlflow")
    except importlib.metadata.PackageNotFoundError:
        return False
    here = Path(str(distribution.locate_file("dfm_mlflow"))).resolve() == _PACKAGE.resolve()
    return here and distribution.read_text("direct_url.json") is None


def build_wheel(folder: Path) -> str:
    """Write a wheel of the package's own files; dependencies are the model's requirements."""
    name = f"dfm_mlflow-{dfm_mlflow.__version__}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(_contents())
    return name


@cache
def _contents() -> bytes:
    version = dfm_mlflow.__version__
    info = f"dfm_mlflow-{version}.dist-info"
    files = {
        path.relative_to(_PACKAGE.parent).as_posix(): path.read_bytes()
        for path in sorted(_PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: dfm-mlflow\nVersion: {version}\nRequires-Python: >=3.10\n"
    ).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: dfm-mlflow\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return "sha256=" + digest.rstrip(b"=").decode()
