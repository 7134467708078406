"""A model and every package that it needs, in a folder for machines without internet."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.config import BundleOptions
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.mlmodel import read_mlmodel

MODEL, PACKAGES, INSTALL, NEEDED = "model", "packages", "install.sh", "requirements.txt"
_SCRIPT = """#!/bin/sh
# Makes a virtual environment beside this file, from the packages here alone: no internet.
set -e
cd "$(dirname "$0")"
{python} -m venv venv
venv/bin/pip install --no-index --find-links {packages} -r {needed}
echo "Serve the model with"
echo "    PATH=$PWD/venv/bin:\\$PATH mlflow models serve -m $PWD/{model} --env-manager local"
"""


@dataclass(frozen=True)
class BundleResult:
    """What was collected."""

    folder: Path
    n_packages: int
    megabytes: float  # of everything

    def summary(self) -> str:
        """Say it in two sentences."""
        return (
            f"{self.folder} holds the model and {self.n_packages} packages, {self.megabytes:.0f} "
            f"MB. Copy it to a machine with the same Python and system, and run "
            f"sh {self.folder.name}/{INSTALL} there."
        )

    def record(self) -> dict[str, object]:
        """Say it for scripts."""
        return {
            "output": str(self.folder),
            "n_packages": self.n_packages,
            "megabytes": self.megabytes,
        }


def bundle(options: BundleOptions) -> BundleResult:
    """Collect a model and its packages, with pip and its own settings (``PIP_INDEX_URL``, ...)."""
    folder = Path(options.output).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output={folder} exists and is not empty: give a new folder.")
    root = Path(_compat.download(artifact_uri=options.model))
    read_mlmodel(root)
    began = not folder.exists()
    try:
        shutil.copytree(root, folder / MODEL)
        needed = _needed(folder / MODEL, options)
        (folder / NEEDED).write_text("".join(f"{line}\n" for line in needed))
        _collect(folder)
    except BaseException:
        for name in (MODEL, PACKAGES, NEEDED):
            path = folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)
        if began and folder.is_dir():
            folder.rmdir()
        raise
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    script = _SCRIPT.format(python=python, packages=PACKAGES, needed=NEEDED, model=MODEL)
    (folder / INSTALL).write_text(script)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    n_packages = sum(1 for _ in (folder / PACKAGES).iterdir())
    return BundleResult(folder, n_packages, size / 1e6)


def _needed(model: Path, options: BundleOptions) -> list[str]:
    """Requirements of a model, with its own wheels by their place in the folder."""
    lines = (model / _compat.REQUIREMENTS_FILE).read_text().splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("-c ")]
    mine = [f"./{MODEL}/{line}" if (model / line).is_file() else line for line in found]
    extras = [] if options.extras == "none" else options.extras.split(",")
    return [*mine, *extras]


def _collect(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", PACKAGES]
    constraints = folder / MODEL / _compat.CONSTRAINTS_FILE
    if constraints.is_file():
        command += ["-c", str(constraints)]
    done = subprocess.run(
        [*command, "-r", NEEDED], cwd=folder, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = errors[-1].removeprefix("ERROR: ") if errors else done.stderr.strip()[-300:]
        raise DataError(
            f"pip cannot collect the packages of the model ({why}): run this where pip reaches an "
            "index, or name one by PIP_INDEX_URL or PIP_FIND_LINKS."
        )
