"""The steps of ``gpu.sh``: a server on the device under load, decoding, fits.

    python benchmarks/gpu.py about gpu.json --device cuda:0
    python benchmarks/gpu.py serve --device cuda:0 --weights FILE --out gpu.json
    python benchmarks/gpu.py decode --device cuda:0 --out gpu.json
    python benchmarks/gpu.py fit --device cuda:0 --out gpu.json
    python benchmarks/gpu.py pictures FOLDER

``serve`` trains, logs and registers a model in a store of its own, starts ``mlflow models serve``
on 127.0.0.1 and asks it by 1 and by 32 clients, one JPEG of 1 Mpx a request: with most cores, each
of which is a decoding thread, and with 8 fewer (a third of them, where there are few). The clients
have the other cores. Where fewer cores are as many pictures slower, the CPU's side is the limit
(decoding, JSON, HTTP), else the network: beside stand the pictures a second of the same model in
a process without HTTP. ``images_per_second`` is that of 32 clients on most cores.

``decode`` sets JPEG decoding on the device against that of all cores, and compares the pixels;
``fit`` sums of 100,000 rows on the device against the CPU, and the cells of pictures as
``subspace=cell`` fits them. ``pictures`` draws a category for ``speed.py``.
"""

import base64
import io
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
from cuda import draw, fastest, write_beside

CLIENTS = 32
CLIENT_PROCESSES = 4  # that they live in: one of Python alone could not ask fast enough
ASKING = Path(__file__).with_name("clients.py").resolve()


def add(path: str, **figures: object) -> None:
    """Write figures into a JSON file, and print them."""
    write_beside(Path(path), figures)
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


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--n", default=200, show_default=True, help="Of training; a fifth as many of each.")
def pictures(folder: Path, n: int) -> None:
    """Draw a category in MVTec's layout."""
    for part, count in (("train/good", n), ("test/good", n // 5), ("test/dent", n // 5)):
        (folder / part).mkdir(parents=True)
        draw(folder / part, count, ("png",), first=len(list(folder.rglob("*.png"))))


# -- the server ------------------------------------------------------------------------------------


@main.command(hidden=True)
@click.argument("folder")
@click.argument("device")
@click.argument("weights")
@click.argument("store")
def train(folder: str, device: str, weights: str, store: str) -> None:
    """Register a model of a folder's pictures, in a process that then leaves the device."""
    import mlflow

    from dfm_mlflow.config import Options
    from dfm_mlflow.jobs import train as job

    mlflow.set_tracking_uri(store)
    given = {"data": folder, "category": "gpu", "backbone": "resnet18", "weights": weights}
    given |= {"device": device, "cache": "false", "registered_model": "dfm-gpu"}
    job.train(Options.parse(given))


def load(port: int, bodies: Path, n: int, seconds: float) -> dict[str, float]:
    """Keep a server busy: pictures a second, and the quantiles of the latency."""
    asking = []
    for i in range(min(n, CLIENT_PROCESSES)):
        numbers = map(str, range(n)[i::CLIENT_PROCESSES])
        command = [sys.executable, str(ASKING), str(port), str(bodies), str(seconds), *numbers]
        asking.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    times = np.concatenate([json.loads(one.communicate(timeout=120)[0]) for one in asking])
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {"per_second": len(times) / seconds, "p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


def use_of(device: str) -> dict[str, float]:
    """What nvidia-smi says of the device just now."""
    if not device.startswith("cuda"):
        return {}
    query = "--query-gpu=utilization.gpu,memory.used"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        return {}
    use, memory = done.stdout.splitlines()[0].split(",")
    return {"device_use_percent": float(use), "device_memory_mib": float(memory)}


def served(root: Path, device: str, cores: list[int], seconds: float) -> dict:
    """Start a server on some cores, load it, stop it."""
    port, bodies = 5600 + os.getpid() % 300 + len(cores), root / "bodies"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        "MLFLOW_DEFAULT_PREDICTION_DEVICE": device,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/dfm-gpu/1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = root / f"server-{len(cores)}.log"
    with open(log, "w") as file:
        server = subprocess.Popen(
            command,
            env=environment,
            cwd=root,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),  # one decoding thread each
        )
    try:
        started = time.perf_counter()
        for _ in range(400):
            if server.poll() is not None:
                raise click.ClickException(f"The server ended: {log.read_text()[-1500:]}")
            try:
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=2).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.25)
        else:
            raise click.ClickException(f"No answer in 100 s: {log.read_text()[-1500:]}")
        found = {"start_seconds": time.perf_counter() - started}
        load(port, bodies, 4, 1)
        found |= {f"one_{k}": v for k, v in load(port, bodies, 1, seconds / 3).items()}
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(load, port, bodies, CLIENTS, seconds)
            time.sleep(seconds * 0.8)
            use = use_of(device)
            found |= {f"many_{k}": v for k, v in busy.result().items()}
        return {k: round(v, 3) for k, v in (found | use).items()}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def alone(root: Path, device: str, cores: list[int], files: list[bytes]) -> float:
    """Pictures a second of the model in a process without HTTP, on the server's cores."""
    code = (
        "import os, sys, time, mlflow, pandas as pd\n"
        f"os.sched_setaffinity(0, {cores})\n"
        f"where = {{'device': {device!r}}}\n"
        "model = mlflow.pyfunc.load_model('models:/dfm-gpu/1', model_config=where)\n"
        "data = [open(p, 'rb').read() for p in sys.argv[1:]] * 4\n"
        "table = pd.DataFrame({'image': data})\n"
        "best = 0\n"
        "for _ in range(4):\n"
        "    start = time.perf_counter(); model.predict(table)\n"
        "    best = max(best, len(data) / (time.perf_counter() - start))\n"
        "print(best)"
    )
    paths = []
    for i, data in enumerate(files):
        paths.append(root / f"asked-{i}.jpg")
        paths[-1].write_bytes(data)
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(done.stderr[-1500:])
    return float(done.stdout.split()[-1])


@main.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--weights", default="random", show_default=True)
@click.option("--out", default="gpu.json", show_default=True)
@click.option("--n", default=100, show_default=True, help="Pictures that are trained on.")
@click.option("--seconds", default=12.0, show_default=True, help="Of the load of 32 clients.")
def serve(device: str, weights: str, out: str, n: int, seconds: float) -> None:
    """Measure a server."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a cut stops the server, too
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[: max(1, len(cores) // 4)]  # of the clients; shared with the server on two cores
    rest = cores[len(mine) :] or cores
    few = rest[: len(rest) - 8] if len(rest) > 8 else rest[: max(1, len(rest) // 3)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "good").mkdir()
        files = [path.read_bytes() for path in draw(root / "good", n, ("jpg",))["jpg"][:32]]
        began = time.perf_counter()
        store = f"sqlite:///{root / 'mlflow.db'}"
        known = str(Path(weights).resolve()) if Path(weights).is_file() else weights
        given = [str(root / "good"), device, known, store]
        command = [sys.executable, str(Path(__file__).resolve()), "train", *given]
        subprocess.run(command, check=True, cwd=root)
        add(out, train_pictures=n, train_seconds=round(time.perf_counter() - began, 2))
        (root / "bodies").mkdir()
        for i, data in enumerate(files):
            record = {"image": base64.b64encode(data).decode()}
            (root / f"bodies/{i:02}.json").write_text(json.dumps({"dataframe_records": [record]}))
        os.sched_setaffinity(0, mine)  # its children have them, too
        for allowed in (rest, few) if len(few) < len(rest) else (rest,):
            found = served(root, device, allowed, seconds)
            found["no_http_per_second"] = round(alone(root, device, allowed, files), 1)
            if allowed is rest:
                add(out, images_per_second=found["many_per_second"])
            add(out, **{f"serving_{len(allowed)}_cores_{k}": v for k, v in found.items()})


# -- decoding and fits -----------------------------------------------------------------------------


def on_device(files: list[bytes], place: torch.device) -> list[torch.Tensor]:
    """Decode JPEGs on a device, 32 at a time; gives (3, H, W) uint8 each."""
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    parts = [tensors[i : i + 32] for i in range(0, len(files), 32)]
    return [x for p in parts for x in decode_jpeg(p, ImageReadMode.RGB, device=place)]


def difference(file: bytes, place: torch.device) -> dict[str, float]:
    """Compare the pixels of a device with ours."""
    from dfm_mlflow.images.decode import decode_image

    there = on_device([file], place)[0].permute(1, 2, 0).cpu().numpy()
    off = np.abs(there.astype(int) - decode_image(file))
    return {"pixels_that_differ": round(float((off > 0).mean()), 4), "largest": int(off.max())}


def undetected(file: bytes, place: torch.device) -> int:
    """Of 20 damaged copies of a file that we refuse: how many a device decodes without a word."""
    from dfm_mlflow.errors import ImageError
    from dfm_mlflow.images.decode import decode_image

    rng, silent, refused = np.random.default_rng(0), 0, 0
    while refused < 20:
        cut = int(rng.integers(len(file) // 4, len(file) - 2))
        damaged = file[:cut] if rng.random() < 0.5 else file[:cut] + bytes(99) + file[cut + 99 :]
        try:
            decode_image(damaged)
            continue
        except ImageError:
            refused += 1
        try:
            on_device([damaged], place)
            silent += 1
        except RuntimeError:
            pass
    return silent


@main.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--out", default="gpu.json", show_default=True)
@click.option("--n", default=128, show_default=True)
def decode(device: str, out: str, n: int) -> None:
    """Decode JPEGs of 1 Mpx on all cores, and on the device."""
    from PIL import Image

    from dfm_mlflow.images.decode import decode_image

    place = torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        files = [p.read_bytes() for p in draw(Path(folder), n, ("jpg",))["jpg"]]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        cpu = fastest(lambda: list(pool.map(decode_image, files)), place, 4)
    gpu = fastest(lambda: on_device(files, place), place, 4)
    add(
        out,
        decode_cpu_per_second=round(n / cpu, 1),
        decode_device_per_second=round(n / gpu, 1),
        decode_device_over_cpu=round(cpu / gpu, 2),
        decode_grey=difference(files[0], place),
    )
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()  # colours change slowly, and are stored at half the resolution
    Image.fromarray(noise).resize((1024, 1024), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    add(
        out,
        decode_colour=difference(buffer.getvalue(), place),
        decode_damaged_of_20_not_noticed=undetected(files[0], place),
    )


@main.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--out", default="gpu.json", show_default=True)
@click.option("--rows", default=100_000, show_default=True)
@click.option("--cells", "n_pictures", default=200, show_default=True, help="Pictures of cells.")
def fit(device: str, out: str, rows: int, n_pictures: int) -> None:
    """Compare fits on the device with those on the CPU."""
    from dfm_mlflow.core.cells import crossfit_cells
    from dfm_mlflow.core.moments import moments_of

    place = torch.device(device)
    size, block = 512, 10_000
    x = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    sides = (x, torch.from_numpy(x).to(place))
    starts = range(0, rows, block)
    seconds = [
        fastest(lambda a=a: moments_of(a[i : i + block] for i in starts), place, 2) for a in sides
    ]
    cpu, there = (moments_of(a[i : i + block] for i in starts).scatter for a in sides)
    apart = np.abs(there - cpu).max() / np.trace(cpu)
    add(
        out,
        rows_cpu_seconds=round(seconds[0], 3),
        rows_device_seconds=round(seconds[1], 4),
        rows_cpu_over_device=round(seconds[0] / seconds[1], 1),
        rows_apart_of_trace=float(apart),
    )
    folds = np.arange(n_pictures) % 20
    tokens = torch.randn(n_pictures, 1024, 384, device=place)  # ViT-S/14 at 448
    on_cpu = tokens.cpu().numpy()

    def fitted(a: object) -> None:
        blocks = lambda: (a[i : i + 32] for i in range(0, n_pictures, 32))  # noqa: E731
        crossfit_cells(blocks, folds, 0.99)

    seconds = [fastest(lambda a=a: fitted(a), place, 2) for a in (on_cpu, tokens)]
    add(
        out,
        cells_cpu_ms_a_picture=round(1000 * seconds[0] / n_pictures, 2),
        cells_device_ms_a_picture=round(1000 * seconds[1] / n_pictures, 2),
        cells_cpu_over_device=round(seconds[0] / seconds[1], 1),
    )


if __name__ == "__main__":
    main()
