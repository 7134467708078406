import os
import subprocess
import sys

from dfm_mlflow.mlflow_plugin import wheel
from dfm_mlflow.mlflow_plugin.wheel import build_wheel


def test_the_wheel_installs_and_imports(tmp_path):
    name = build_wheel(tmp_path)
    wheel._contents.cache_clear()
    build_wheel(tmp_path / "again")
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(target),
            str(tmp_path / name),
        ],
        check=True,
    )
    code = "import dfm_mlflow; print(dfm_mlflow.__file__); import dfm_mlflow.detector"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
    )
    assert done.stdout.startswith(str(target))
