"""What serving costs beside a model that does nothing, and what the micro-batcher gains.

    python benchmarks/serving.py --weights resnet18.safetensors

Starts real ``mlflow models serve`` processes on 127.0.0.1 with three models of one signature: one
that does nothing, the detector, and the detector with its micro-batcher off; then sends them the
same bytes, in turns, so that a noisy machine is noisy for all. The clients share the machine.

`T_null` and `R_null` are latency (median, 1 client) and throughput (8 clients) of the model that
does nothing, `T_in` and `R_in` those of the detector in this process, without HTTP. Targets:

- median at 1 client / (T_in + 1.3 T_null), at most 1;
- throughput at 8 and 32 clients / (1 / (1 / R_null + 1 / R_in)), at least 0.8;
- 99th percentile at 32 clients / (32 / that throughput), at most 4.

With ``--anomalib`` one more server takes its turns: anomalib's DFM, fitted on the same pictures
with the same weights, in anomalib's own inferencer behind a plain FastAPI route
(``anomalib_server.py``), which gets the picture's bytes as they are. It lives in an environment of
its own, which is made where there is none (several GB). With ``--preset anomalib`` our detector is
the same one (layer3, pooled by 2, FRE).

With ``--soak N`` it sends N requests instead, and prints the server's memory on the way.
"""

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import click
import mlflow
import numpy as np
import pandas as pd
from anomalib_env import DEFAULT, anomalib_python, anomalib_version
from PIL import Image
from safetensors.torch import save_file

import dfm_mlflow
from dfm_mlflow.config import Options
from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.mlflow_plugin.flavor import signature_of
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.weights import load_weights

PARQUET = "application/vnd.apache.parquet"
ANOMALIB = Path(__file__).with_name("anomalib_server.py")


# -- what is served and what is sent ---------------------------------------------------------------


class NoModel(mlflow.pyfunc.PythonModel):
    """Answers one and the same row for each picture."""

    row: ClassVar = {
        "anomaly_score": 12.3456789,
        "p_value": 0.123456789,
        "is_anomaly": False,
        "predicted_class": "stripes",
        "fre": 12.3456789,
        "nll": 123.456789,
        "anomaly_map": None,
        "error": None,
    }

    def predict(self, context, model_input, params=None):
        """Answer."""
        return pd.DataFrame([self.row] * len(model_input))


def picture(width: int, height: int, noise: float, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = 128 + 50 * np.sin(x / 9 + rng.uniform(0, 0.5)) + 20 * np.cos(y / 17)
    pixels = base[:, :, None] + rng.normal(0, noise, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    jpeg = encoded(picture(1024, 768, 10, 0), format="JPEG", quality=90)
    png = encoded(picture(1024, 1024, 1.2, 1), format="PNG")
    return {f"JPEG {len(jpeg) // 1024} KB": jpeg, f"PNG 1024x1024, {len(png) // 1024} KB": png}


def body_of(image: bytes, form: str) -> tuple[bytes, str]:
    if form == "parquet":
        buffer = io.BytesIO()
        pd.DataFrame({"image": [image]}).to_parquet(buffer, compression=None)
        return buffer.getvalue(), PARQUET
    coded = base64.b64encode(image).decode()
    return json.dumps({"dataframe_records": [{"image": coded}]}).encode(), "application/json"


def good_pictures() -> list[Image.Image]:
    return [picture(256, 256, 5, i) for i in range(40)]


def save_models(
    folder: Path,
    weights: str,
    image_size: str,
    preset: str,
    images: Sequence[Image.Image] | None = None,
) -> None:
    given = {
        "backbone": "resnet18",
        "category": "stripes",
        "weights": weights,
        "image_size": image_size,
        "preset": preset,
        "cache": "false",
    }
    good = written(images or good_pictures(), folder / "good")
    items = [Item(path, "stripes", "train", GOOD) for path in good]
    # with the precision that training takes
    extractor, loaded, options = build_extractor(Options.parse(given).resolve(), items)
    click.echo(f"The detector computes in {options.precision}.", err=True)
    extraction = extractor.extract(good)
    detector = AnomalyDetector.fit(
        options,
        extractor,
        extraction,
        ["stripes"] * len(good),
        loaded,
    )
    dfm_mlflow.save_model(detector, folder / "dfm")
    signature = signature_of(options)
    mlflow.pyfunc.save_model(folder / "null", python_model=NoModel(), signature=signature)


def written(images: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Write pictures to files; gives their paths."""
    folder.mkdir()
    paths = [folder / f"{i:02}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def save_for_anomalib(folder: Path, weights: str) -> None:
    """Write the weights to a file that needs nothing of ours to be read; the pictures are there."""
    state = load_weights(weights, "resnet18", 0).state
    if state is not None:
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "weights.safetensors")


# -- servers and clients ---------------------------------------------------------------------------


@dataclass
class Server:
    """A running server, and what was measured on it."""

    port: int
    pid: int
    seconds: dict[int, list[float]] = field(default_factory=dict)  # latencies by clients
    rates: dict[int, list[float]] = field(default_factory=dict)

    def ask(self, connection: http.client.HTTPConnection, body: bytes, kind: str) -> float:
        """Send one request; gives its seconds."""
        start = time.perf_counter()
        connection.request("POST", "/invocations", body, {"Content-Type": kind})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise click.ClickException(f"{answer.status}: {content[:300]!r}")
        return time.perf_counter() - start

    def load(self, clients: int, body: bytes, kind: str, requests: int, limit: float) -> None:
        """Send requests from so many clients, until all are answered or the time is up."""
        left, lock = iter(range(requests)), threading.Lock()
        begin = time.perf_counter()

        def client() -> list[float]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            mine = []
            while time.perf_counter() - begin < limit:
                with lock:
                    if next(left, None) is None:
                        break
                mine.append(self.ask(connection, body, kind))
            connection.close()
            return mine

        with ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(client) for _ in range(clients)]
            answered = [s for future in futures for s in future.result()]
        elapsed = time.perf_counter() - begin
        self.seconds.setdefault(clients, []).extend(answered)
        self.rates.setdefault(clients, []).append(len(answered) / elapsed)

    def median(self, clients: int) -> float:
        """Median latency."""
        return float(np.median(self.seconds[clients]))

    def rate(self, clients: int) -> float:
        """Answers a second."""
        return float(np.median(self.rates[clients]))

    def megabytes(self) -> float:
        """Resident memory of the process and all below it."""
        total, waiting = 0, [self.pid]
        while waiting:
            pid = waiting.pop()
            try:
                fields = Path(f"/proc/{pid}/statm").read_text().split()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except OSError:
                continue
            total += int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
        return total / 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, log: Path, **environment: str) -> Iterator[Server]:
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise click.ClickException(f"The server ended: {log.read_text()[-2000:]}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise click.ClickException(f"The server does not start: {log.read_text()[-2000:]}")
        yield Server(port, process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # the session that was started above
            process.wait(30)


def serving(model: Path, **config) -> AbstractContextManager[Server]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        str(model),
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # MLflow looks for `uvicorn` on the path: it must be the one beside this Python
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return running(
        command,
        port,
        model.parent / f"{port}.log",
        PATH=path,
        MLFLOW_PYFUNC_INFERENCE_CONFIG=json.dumps(config),
    )


def serving_anomalib(python: Path, folder: Path) -> AbstractContextManager[Server]:
    port, weights = free_port(), folder / "weights.safetensors"
    command = [
        str(python),
        str(ANOMALIB),
        "--pictures",
        str(folder / "good"),
        "--folder",
        str(folder / "anomalib"),
        "--port",
        str(port),
    ]
    if weights.exists():
        command += ["--weights", str(weights)]
    return running(command, port, folder / f"{port}.log")


# -- measuring -------------------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Comparison:
    """Three or four servers and the model in this process, given the same work in turns."""

    def __init__(
        self, stack: ExitStack, folder: Path, image: bytes, form: str, python: Path | None
    ):
        self.null = stack.enter_context(serving(folder / "null"))
        self.ours = stack.enter_context(serving(folder / "dfm"))
        self.apart = stack.enter_context(serving(folder / "dfm", queue_size=0))
        self.asked = [(s, *body_of(image, form)) for s in (self.null, self.ours, self.apart)]
        self.anomalib = None
        if python:
            self.anomalib = stack.enter_context(serving_anomalib(python, folder))
            self.asked.append((self.anomalib, image, "application/octet-stream"))
        self.inside = dfm_mlflow._load_pyfunc(str(folder / "dfm/dfm"), {})
        self.size = self.inside.get_raw_model().extractor.batch_size
        self.one = pd.DataFrame({"image": [image]})
        self.batch = pd.DataFrame({"image": [image] * self.size})
        self.t_in: list[float] = []
        self.ideal: list[float] = []
        self.r_in: list[float] = []

    def alone(self, n: int) -> None:
        """Send single requests from one client, to each in turn."""
        connections = [http.client.HTTPConnection("127.0.0.1", s.port) for s, *_ in self.asked]
        for i in range(n + 5):
            for (server, body, kind), connection in zip(self.asked, connections, strict=True):
                seconds = server.ask(connection, body, kind)
                if i >= 5:  # the first ones open connections and fill caches
                    server.seconds.setdefault(1, []).append(seconds)
            self.t_in.append(timed(lambda: self.inside.predict(self.one)))

    def together(self, n: int) -> None:
        """Measure throughput once: of each server under 8 and 32 clients, and in this process."""
        seconds = [timed(lambda: self.inside.predict(self.batch)) for _ in range(2)]
        for clients in (8, 32):
            for server, body, kind in self.asked:
                server.load(clients, body, kind, max(n, 2 * clients), 60)
        seconds += [timed(lambda: self.inside.predict(self.batch)) for _ in range(2)]
        self.r_in.append(self.size / float(np.mean(seconds)))
        self.ideal.append(1 / (1 / self.null.rates[8][-1] + 1 / self.r_in[-1]))

    def cells(self) -> list[str]:
        """Give the row of the table; ratios are those of one round, the median over rounds."""
        t_null, t_in, p50 = self.null.median(1), float(np.median(self.t_in)), self.ours.median(1)
        ratios = [np.median(np.divide(self.ours.rates[c], self.ideal)) for c in (8, 32)]
        p99 = float(np.quantile(self.ours.seconds[32], 0.99))
        return [
            f"{t_null * 1e3:.1f}",
            f"{t_in * 1e3:.1f}",
            f"{p50 * 1e3:.1f}",
            f"{p50 / (t_in + 1.3 * t_null):.2f}",
            f"{self.null.rate(8):.0f}",
            f"{np.median(self.r_in):.1f}",
            *(f"{self.ours.rate(c):.1f}" for c in (8, 32)),
            *(f"{r:.2f}" for r in ratios),
            f"{p99 * 1e3:.0f}",
            f"{p99 / (32 / np.median(self.ideal)):.2f}",
            f"{self.apart.median(1) * 1e3:.1f}",
            *(f"{self.apart.rate(c):.1f}" for c in (8, 32)),
            f"{np.quantile(self.apart.seconds[32], 0.99) * 1e3:.0f}",
        ]

    def anomalib_cells(self) -> list[str]:
        """Give what follows in the row where anomalib takes part."""
        if self.anomalib is None:
            return []
        return [
            f"{self.anomalib.median(1) * 1e3:.1f}",
            *(f"{self.anomalib.rate(c):.1f}" for c in (8, 32)),
        ]

    def anomalib_ratios(self) -> list[str]:
        """Give a line each; above 1 is in our favour."""
        if self.anomalib is None:
            return []
        ours, theirs = self.ours, self.anomalib
        lines = [f"anomalib p50 / ours: {theirs.median(1) / ours.median(1):.2f}x"]
        for c in (8, 32):
            ratio = np.median(np.divide(ours.rates[c], theirs.rates[c]))
            lines.append(f"ours / anomalib throughput at {c}: {ratio:.2f}x")
        return lines


HEAD = [
    "picture",
    "form",
    "T_null, ms",
    "T_in, ms",
    "p50 at 1, ms",
    "**ratio, <= 1**",
    "R_null, 1/s",
    "R_in, 1/s",
    "at 8, 1/s",
    "at 32, 1/s",
    "**ratio at 8, >= 0.8**",
    "**at 32, >= 0.8**",
    "p99 at 32, ms",
    "**ratio, <= 4**",
    "off: p50 at 1, ms",
    "off: at 8, 1/s",
    "off: at 32, 1/s",
    "off: p99 at 32, ms",
]
ANOMALIB_HEAD = ["anomalib: p50 at 1, ms", "anomalib: at 8, 1/s", "anomalib: at 32, 1/s"]


def soak(folder: Path, n: int) -> None:
    """Send n requests of 8 clients, parquet and JSON in turns; print memory at 20 points."""
    image = encoded(picture(256, 256, 5, 2), format="JPEG", quality=80)
    click.echo("| requests | resident memory, MB | requests/s |\n|---|---|---|")
    with serving(folder / "dfm") as server:
        for step in range(21):
            if step:
                half = max(1, n // 40)
                for form in ("parquet", "json"):
                    server.load(8, *body_of(image, form), half, 3600)
            rate = f"{np.mean(server.rates[8][-2:]):.0f}" if step else ""
            click.echo(f"| {2 * step * max(1, n // 40):,} | {server.megabytes():.0f} | {rate} |")


@click.command()
@click.option("--weights", default="random", show_default=True, help="Of ResNet-18: file, random.")
@click.option("--image-size", default="auto", show_default=True, help="Input of the network.")
@click.option("--preset", default="default", show_default=True, help="Of the detector.")
@click.option(
    "--good",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Pictures to fit to, 40 of them; without, drawn ones, too alike for half precision.",
)
@click.option("--requests", default=40, show_default=True, help="For each load and round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--form", "forms", multiple=True, default=("parquet", "json"), show_default=True)
@click.option("--soak", "n_soak", default=0, help="Send so many requests and watch memory.")
@click.option("--anomalib", is_flag=True, help="Compare with anomalib's inferencer, too.")
@click.option(
    "--anomalib-venv",
    "venv",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT,
    show_default=".anomalib-venv",
    help="Its environment; made where there is none.",
)
def main(
    weights: str,
    image_size: str,
    preset: str,
    good: Path | None,
    requests: int,
    rounds: int,
    forms: tuple[str, ...],
    n_soak: int,
    anomalib: bool,
    venv: Path,
) -> None:
    """Print a Markdown table."""
    if anomalib and image_size not in ("auto", "256"):
        raise click.UsageError("anomalib is measured at 256x256: leave --image-size out.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [Image.open(path) for path in sorted(good.iterdir())[:40]] if good else None
        save_models(folder, weights, image_size, preset, images)
        if n_soak:
            soak(folder, n_soak)
            return
        python = None
        if anomalib:
            python = anomalib_python(venv)
            save_for_anomalib(folder, weights)
        compare(folder, forms, requests, rounds, python)


def compare(
    folder: Path, forms: tuple[str, ...], requests: int, rounds: int, python: Path | None
) -> None:
    head, ratios = HEAD + ANOMALIB_HEAD * bool(python), []
    click.echo(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for title, image in pictures().items():
        for form in forms:
            with ExitStack() as stack:
                comparison = Comparison(stack, folder, image, form, python)
                for _ in range(rounds):
                    comparison.alone(requests)
                    comparison.together(requests)
                cells = [title, form, *comparison.cells(), *comparison.anomalib_cells()]
                click.echo(f"| {' | '.join(cells)} |")
                ratios += [f"- {title}, {form}: {r}" for r in comparison.anomalib_ratios()]
    if python:
        click.echo(f"\nanomalib {anomalib_version(python)}, its TorchInferencer in FastAPI:\n")
        click.echo("\n".join(ratios))


if __name__ == "__main__":
    main()
