"""The whole story on real solar cells: train, register, serve, score over REST.

Run by ``make demo`` from the project's folder. The store is ``mlflow.db`` and ``mlruns/`` there.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow

ROOT = Path(__file__).resolve().parent.parent
STORE = f"sqlite:///{ROOT / 'mlflow.db'}"


def main() -> None:
    """Train, serve, score a good and a defective cell, stop the server."""
    os.chdir(ROOT)
    os.environ["MLFLOW_TRACKING_URI"] = STORE
    mlflow.set_tracking_uri(STORE)
    start = time.monotonic()
    run([sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local",
         "-P", "category=mono", "-P", "backbone=efficientnet_lite0"])  # fmt: skip
    version = max(
        mlflow.MlflowClient().search_model_versions("name='dfm-mono'"), key=lambda v: int(v.version)
    )
    uri = f"models:/dfm-mono/{version.version}"
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local",
         "--host", "127.0.0.1", "--port", str(port)],
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        for kind, path in cells().items():
            print(f"\n{kind} cell {path.name}:")
            print(json.dumps(score(port, path), indent=2))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    seconds = time.monotonic() - start
    print(f"\nDone in {seconds:.0f} s. The model is {uri}, the run {version.run_id}.")
    print("Look at both, and at the run's report/report.html, with\n")
    print(f"    {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {STORE}\n")


def cells() -> dict[str, Path]:
    """One good and one clearly defective cell that the model has not seen."""
    from dfm_mlflow.images.catalog import load_catalog

    test = load_catalog("elpv", ["mono"]).test
    return {
        "good": next(i.path for i in test if i.label == "good"),
        "defective": next(i.path for i in test if i.label != "good"),
    }


def score(port: int, path: Path) -> dict:
    """Score one picture over REST."""
    image = base64.b64encode(path.read_bytes()).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"dataframe_records": [{"image": image}]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"][0]


def run(command: list[str]) -> None:
    """Run a command and stop where it fails."""
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, server: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"The server stopped with status {server.returncode}.")
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"The server did not answer within {seconds:.0f} s.")


if __name__ == "__main__":
    main()
