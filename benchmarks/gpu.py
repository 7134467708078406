"""The steps of ``gpu.sh``: a server on the device under load, and fitting of many rows.

    python benchmarks/gpu.py about gpu.json --device cuda:0
    python benchmarks/gpu.py serve --device cuda:0 --weights FILE --out gpu.json
    python benchmarks/gpu.py fit --device cuda:0 --weights FILE --out gpu.json

``serve`` trains, logs and registers a model in a store of its own, starts ``mlflow models serve``
on 127.0.0.1 and asks it by 1 and by 32 clients, one JPEG a request: with all cores, each of which
is a decoding thread, and with 8 fewer (half of them, where there are no more than 8). Where fewer
cores are as many pictures slower, decoding is the limit, else the network. ``images_per_second`` is
that of 32 clients on all cores. ``fit`` times the sums of 100,000 rows that one pass needs.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import requests
import torch
from cuda import draw

CLIENTS = 32


def add(path: str, **figures: object) -> None:
    """Write figures into a JSON file, beside those that are there."""
    place = Path(path)
    known = json.loads(place.read_text()) if place.exists() else {}
    part = place.with_suffix(".part")
    part.write_text(json.dumps(known | figures, indent=2) + "\n")
    os.replace(part, place)
    for name, value in figures.items():
        click.echo(f"{name}: {value}")


@click.group()
def main() -> None:
    """Run one step."""


@main.command()
@click.argument("path")
@click.argument("name")
@click.argument("value", type=float)
def note(path: str, name: str, value: float) -> None:
    """Add one number."""
    add(path, **{name: value})


@main.command()
@click.argument("path")
@click.option("--device", default="cuda:0", show_default=True)
def about(path: str, device: str) -> None:
    """Name the device."""
    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    add(path, device=name, torch=torch.__version__, cuda=torch.version.cuda, cpus=os.cpu_count())


def train_and_register(pictures: str, device: str, weights: str, root: Path) -> list[bytes]:
    """Register a model of drawn or given pictures in a new store; give some to be scored."""
    import mlflow

    from dfm_mlflow.config import Options
    from dfm_mlflow.jobs.train import train

    if pictures == "drawn":
        folder = root / "good"
        folder.mkdir()
        files = draw(folder, 100)["jpg"]
        for path in folder.glob("*.png"):
            path.unlink()
    else:
        folder = Path(pictures)
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    given = {"data": str(folder), "category": "gpu", "backbone": "resnet18", "weights": weights}
    given |= {"device": device, "cache": "false", "registered_model": "dfm-gpu"}
    train(Options.parse(given))
    return [path.read_bytes() for path in files[:64]]


def ask(url: str, data: bytes) -> float:
    """Seconds of one request; refuses an answer that is no score."""
    body = {"dataframe_records": [{"image": base64.b64encode(data).decode()}]}
    start = time.perf_counter()
    answer = requests.post(url + "/invocations", json=body, timeout=60)
    seconds = time.perf_counter() - start
    answer.raise_for_status()
    assert answer.json()["predictions"][0]["p_value"] > 0
    return seconds


def load(url: str, pictures: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Keep a server busy: pictures a second, and the quantiles of the latency."""
    end = time.perf_counter() + seconds

    def client(number: int) -> list[float]:
        found = []
        while time.perf_counter() < end:
            found.append(ask(url, pictures[(number + len(found)) % len(pictures)]))
        return found

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = np.concatenate(list(pool.map(client, range(clients))))
    rate = len(times) / (time.perf_counter() - start)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {"per_second": rate, "p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


def use_of(device: str) -> dict[str, float]:
    """What nvidia-smi says of the device just now."""
    if not device.startswith("cuda"):
        return {}
    query = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
    ]
    done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        return {}
    use, memory = done.stdout.splitlines()[0].split(",")
    return {"device_use_percent": float(use), "device_memory_mib": float(memory)}


def served(root: Path, device: str, decoders: int, pictures: list[bytes], seconds: float) -> dict:
    """Start a server with so many decoding threads, load it, stop it."""
    port = 5600 + os.getpid() % 300
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        "MLFLOW_DEFAULT_PREDICTION_DEVICE": device,
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/dfm-gpu/1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    allowed = sorted(os.sched_getaffinity(0))[:decoders]  # one decoding thread each
    server = subprocess.Popen(
        command,
        env=environment,
        cwd=root,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    try:
        for _ in range(240):
            try:
                if requests.get(url + "/ping", timeout=2).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.5)
        else:
            raise click.ClickException("The server did not answer within two minutes.")
        load(url, pictures, 4, 2)
        alone = load(url, pictures, 1, seconds / 2)
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(load, url, pictures, CLIENTS, seconds)
            time.sleep(seconds * 0.7)
            use = use_of(device)
            crowd = busy.result()
        found = {f"one_{k}": v for k, v in alone.items()} | {
            f"many_{k}": v for k, v in crowd.items()
        }
        return {k: round(v, 3) for k, v in (found | use).items()}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@main.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--weights", default="random", show_default=True)
@click.option("--out", default="gpu.json", show_default=True)
@click.option("--pictures", default="drawn", show_default=True, help="Folder of good JPEGs.")
@click.option("--seconds", default=15.0, show_default=True, help="Of each load.")
def serve(device: str, weights: str, out: str, pictures: str, seconds: float) -> None:
    """Measure a server."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.perf_counter()
        asked = train_and_register(pictures, device, weights, root)
        add(out, train_seconds=round(time.perf_counter() - began, 2))
        for decoders in (cores, max(1, cores // 2 if cores <= 8 else cores - 8)):
            found = served(root, device, decoders, asked, seconds)
            if decoders == cores:
                add(out, images_per_second=found["many_per_second"])
            add(out, **{f"serving_{decoders}_cores_{k}": v for k, v in found.items()})


@main.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--weights", default="random", help="Not used.")
@click.option("--out", default="gpu.json", show_default=True)
@click.option("--rows", default=100_000, show_default=True)
def fit(device: str, weights: str, out: str, rows: int) -> None:
    """Compare the sums of a fit in one pass on the device with those of the package."""
    from dfm_mlflow.core.moments import moments_of

    size, block = 512, 10_000
    x = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    start = time.perf_counter()
    known = moments_of(x[i : i + block] for i in range(0, rows, block))
    cpu = time.perf_counter() - start
    place = torch.device(device)
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        total = torch.zeros(size, size, dtype=torch.float64, device=place)
        mean = torch.from_numpy(known.mean).to(place)
        for i in range(0, rows, block):
            part = torch.from_numpy(x[i : i + block]).to(place).double() - mean
            total += part.T @ part
        found = total.cpu().numpy()
        seconds = time.perf_counter() - start
    scatter = np.asarray(known.scatter)
    apart = float(np.abs(found - scatter).max() / np.trace(scatter))
    add(
        out,
        moments_cpu_seconds=round(cpu, 3),
        moments_device_seconds=round(seconds, 3),
        moments_cpu_over_device=round(cpu / seconds, 2),
        moments_apart_of_trace=apart,
    )


if __name__ == "__main__":
    main()
