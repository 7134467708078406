"""The environment of the peer: anomalib is a dependency of benchmarks alone."""

import subprocess
import sys
from pathlib import Path

import click

DEFAULT = Path(__file__).resolve().parent.parent / ".anomalib-venv"


def anomalib_version(python: Path) -> str | None:
    """Give the version in an environment that has all of `anomalib_server.py`."""
    code = "import anomalib, fastapi, torchvision, uvicorn; print(anomalib.__version__)"
    if not python.exists():
        return None
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.split()[-1] if done.returncode == 0 else None


def anomalib_python(folder: Path) -> Path:
    """Give the Python of the environment in a folder, after making it where there is none."""
    python = folder.absolute() / "bin/python"
    if anomalib_version(python) is None:
        click.echo(f"Installing torch and anomalib into {folder}", err=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (folder / ".gitignore").write_text("*\n")
        # the pair first: pip takes those that fit each other, and anomalib is content with them
        for packages in (["torch", "torchvision"], ["anomalib"], ["fastapi", "uvicorn"]):
            pip = [python, "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(pip, check=True, timeout=3600)
    return python
