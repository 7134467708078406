"""The whole story on real solar cells: train, register, serve, score over REST.

Run by ``make demo`` from the project's folder. The store is ``mlflow.db`` and ``mlruns/`` there.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
from served import served

from dfm_mlflow import client

ROOT = Path(__file__).resolve().parent.parent
STORE = f"sqlite:///{ROOT / 'mlflow.db'}"


def main() -> None:
    """Train, serve, score a good and a defective cell, stop the server."""
    os.chdir(ROOT)
    os.environ["MLFLOW_TRACKING_URI"] = STORE
    mlflow.set_tracking_uri(STORE)
    start = time.monotonic()
    run(
        [
            sys.executable,
            "-m",
            "mlflow",
            "run",
            ".",
            "--env-manager",
            "local",
            "-P",
            "category=mono",
            "-P",
            "backbone=efficientnet_lite0",
        ]
    )
    version = max(
        mlflow.MlflowClient().search_model_versions("name='dfm-mono'"), key=lambda v: int(v.version)
    )
    uri = f"models:/dfm-mono/{version.version}"
    with served(uri) as url:
        for kind, path in cells().items():
            print(f"\n{kind} cell {path.name}:")
            print(client.score(url, [path]).iloc[0].to_json(indent=2))
    seconds = time.monotonic() - start
    print(f"\nDone in {seconds:.0f} s. The model is {uri}, the run {version.run_id}.")
    print("Look at both, and at the run's report/report.html, with\n")
    print(f"    {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {STORE}\n")


def cells() -> dict[str, Path]:
    """One good and one clearly defective cell that the model has not seen."""
    from dfm_mlflow import load_catalog

    test = load_catalog("elpv", ["mono"]).test
    return {
        "good": next(i.path for i in test if i.label == "good"),
        "defective": next(i.path for i in test if i.label != "good"),
    }


def run(command: list[str]) -> None:
    """Run a command and stop where it fails."""
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
