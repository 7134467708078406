"""What metrics, log and alarm of a served model cost: CPU seconds a picture, on and off in turns.

    python benchmarks/monitoring.py --weights resnet18.safetensors
    python benchmarks/monitoring.py --image-size 64 --rounds 40        # where a picture costs least
    python benchmarks/monitoring.py --inside                           # a few minutes, without HTTP

Three real ``mlflow models serve`` processes run side by side: one with everything off, one with
everything on (metrics that are scraped every second, log, pictures kept, alarm), and another one
with everything off, whose difference from the first is the noise of the method. In each round each
gets the same requests, in an order that is drawn again. CPU seconds are those of all processes of a
server, the one that writes the log included, so what others do on the machine hardly counts.

With ``--inside`` both models are in this process, without MLflow's server: what is compared is
smaller by what HTTP costs both of them, so the ratio is larger than a server's. The metrics are
scraped between the requests of the one that is on.

Targets: at most 3 % on average, upper 95 % bound under 5 %; and nothing where it is off.
"""

import http.client
import os
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats
from serving import Server, body_of, encoded, free_port, picture, running, save_models

import dfm_mlflow
from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.serving.engine import Version
from dfm_mlflow.serving.monitor.monitor import Monitor
from dfm_mlflow.serving.pyfunc import PyfuncModel

TICK = os.sysconf("SC_CLK_TCK")


def below(pid: int) -> list[int]:
    """All processes below one, and itself."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += below(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it."""
    total = 0
    for one in below(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def serve(stack: ExitStack, folder: Path, name: str, **variables: object) -> Server:
    """Start a server with keys of its model_config as variables."""
    port = free_port()
    command = ["models", "serve", "-m", str(folder / "dfm"), "--env-manager", "local"]
    environment = {f"DFM_{key.upper()}": str(value) for key, value in variables.items()}
    log = folder / f"{name}.log"
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    return stack.enter_context(
        running(
            [sys.executable, "-m", "mlflow", *command],
            port,
            log,
            OMP_NUM_THREADS="1",
            **environment,
        )
    )


def scrape(port: int, end: threading.Event) -> None:
    """Ask for the metrics every second, as Prometheus would."""
    while not end.wait(1):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/metrics")
        if connection.getresponse().status != 200:
            raise click.ClickException("The metrics cannot be scraped.")
        connection.close()


def surface(seed: int) -> Image.Image:
    """Draw a good picture of the size of a camera's."""
    return picture(256, 256, 5, seed).resize((1024, 1024))


def pictures() -> dict[str, bytes]:
    """Good pictures, as nearly all are, and defective ones, which are flagged and kept."""
    good, bad = surface(100), surface(101)
    bad.paste((20, 20, 20), (300, 300, 700, 700))
    found = {}
    for title, image in (("good", good), ("flagged and kept", bad)):
        for form, how in (("JPEG", {"quality": 95}), ("PNG", {})):
            data = encoded(image, format=form, **how)
            found[f"{form} {len(data) // 1024} KB, {title}"] = data
    return found


def check_kept(log: Path) -> None:
    """Refuse figures where other pictures were kept than the two flagged ones."""
    kept = [path for path in (log / "kept").rglob("*") if path.is_file()]
    if len(kept) != 2:
        raise click.ClickException(f"{len(kept)} pictures were kept, not the two that are bad.")


def interval(ratios: list[float]) -> str:
    """Mean of ratios as a change in percent, with a 95 % interval over rounds."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    middle = logs.mean()
    low, mean, high = (100 * np.expm1(v) for v in (middle - half, middle, middle + half))
    return f"{mean:+.1f} % ({low:+.1f} to {high:+.1f})"


@click.command()
@click.option("--weights", default="random", show_default=True, help="Of ResNet-18: file, random.")
@click.option("--image-size", default="auto", show_default=True, help="Input of the network.")
@click.option("--rounds", default=20, show_default=True)
@click.option("--requests", default=60, show_default=True, help="A round, server and picture.")
@click.option("--clients", default=4, show_default=True)
@click.option("--inside", is_flag=True, help="In this process, without MLflow's server.")
def main(
    weights: str, image_size: str, rounds: int, requests: int, clients: int, inside: bool
) -> None:
    """Print a Markdown table."""
    if inside:
        compare_inside(weights, image_size, rounds, requests)
        return
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as stack:
        folder = Path(name)
        save_models(folder, weights, image_size, "default", [surface(i) for i in range(40)])
        port, end = free_port(), threading.Event()
        on = {
            "metrics_port": port,
            "log_to": folder / "log",
            "keep": "retest",
            "drift_alarm": 0.01,
        }
        servers = {
            "off": serve(stack, folder, "off"),
            "on": serve(stack, folder, "on", **on),
            "off again": serve(stack, folder, "again"),
        }
        threading.Thread(target=scrape, args=(port, end), daemon=True).start()
        stack.callback(end.set)
        click.echo("| picture | off, CPU ms a picture | on | off again | on / off | noise |")
        click.echo("|---|---|---|---|---|---|")
        for title, image in pictures().items():
            body, kind = body_of(image, "parquet")
            spent: dict[str, list[float]] = {key: [] for key in servers}
            for i in range(-1, rounds):
                for key in rng.permutation(list(servers)):
                    server = servers[key]
                    before = cpu_seconds(server.pid)
                    server.load(clients, body, kind, requests, 600)
                    time.sleep(1.2)  # what is done later, such as by the writer, is of this round
                    if i >= 0:  # the first round warms
                        spent[key].append((cpu_seconds(server.pid) - before) / requests)
            click.echo(line(title, spent))
        check_kept(folder / "log")


def compare_inside(weights: str, image_size: str, rounds: int, requests: int) -> None:
    """Ask two models of this process in turns; the writer's own process counts, too."""
    os.environ["__pyfunc_model_path__"] = "model"  # noqa: SIM112  # as in MLflow's server
    rng, port = np.random.default_rng(0), free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        save_models(folder, weights, image_size, "default", [surface(i) for i in range(40)])
        detector = dfm_mlflow.load_model(str(folder / "dfm"))
        on = ServingSettings(
            metrics_port=port, log_to=str(folder / "log"), keep="retest", drift_alarm=0.01
        )
        monitor = Monitor(on)
        models = {
            "off": PyfuncModel(detector, ServingSettings()),
            "on": PyfuncModel(detector, on, version=Version("0" * 64), monitor=monitor),
            "off again": PyfuncModel(detector, ServingSettings()),
        }
        for model in models.values():
            model.warm_up()
        monitor.begin(models["on"].engines)
        writer = max(below(os.getpid()))
        click.echo("| picture | off, CPU ms a picture | on | off again | on / off | noise |")
        click.echo("|---|---|---|---|---|---|")
        for title, image in pictures().items():
            frame = pd.DataFrame({"image": [image]})
            spent: dict[str, list[float]] = {key: [] for key in models}
            for i in range(-1, rounds):
                for key in rng.permutation(list(models)):
                    before = time.process_time() + cpu_seconds(writer)
                    scraped = time.monotonic()
                    for _ in range(requests):
                        models[key].predict(frame)
                        if key == "on" and time.monotonic() - scraped > 1:
                            scraped = time.monotonic()
                            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read()
                    if key == "on":
                        time.sleep(1.2)  # what the writer does later is of this round
                    if i >= 0:
                        after = time.process_time() + cpu_seconds(writer)
                        spent[key].append((after - before) / requests)
            click.echo(line(title, spent))
        monitor._end(30)
        check_kept(folder / "log")


def line(title: str, spent: dict[str, list[float]]) -> str:
    """Give the row of one picture."""
    ms = [f"{1000 * np.mean(seconds):.1f}" for seconds in spent.values()]
    ratios = [interval(list(np.divide(spent[key], spent["off"]))) for key in ("on", "off again")]
    return f"| {' | '.join([title, *ms, *ratios])} |"


if __name__ == "__main__":
    main()
