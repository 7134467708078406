"""What a GPU does: networks alone, whole extractions, one picture, and whether compiling pays.

    python benchmarks/cuda.py --weights FILE [--device cuda:0] [--compile] [--out gpu.json]

Draws pictures of 1 Mpx (PNG and JPEG). Runs on a CPU too (``--device cpu``), in what that computes
itself. Prints Markdown: the network on batches that lie on the device, its share of the peak that a
matrix product of the same type reaches, pictures a second from files, milliseconds from one decoded
picture to its score, and the largest memory of the device; then larger networks alone.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dfm_mlflow.config import Options
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.device import DTYPES, half_precision
from dfm_mlflow.network.extractor import Extractor

BATCH = 32
# Networks whose speed alone is looked at: it does not depend on the weights.
ALONE = {
    "Wide ResNet-50": {"backbone": "wide_resnet50_2", "preset": "anomalib"},
    "ViT-S/14 at 448": {"preset": "tokens"},
}


def drawn(place: Path, number: int) -> None:
    """Draw one picture into a file."""
    rng = np.random.default_rng(number)
    x = np.mgrid[:1024, :1024][1]
    base = 128 + 50 * np.sin(x / 40 + rng.uniform(0, 0.5)) + rng.normal(0, 4, x.shape)
    grey = base.clip(0, 255).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(place)


def draw(
    folder: Path, n: int, kinds: Sequence[str] = ("png", "jpg"), first: int = 0
) -> dict[str, list[Path]]:
    """Draw pictures of 1 Mpx on all cores, before CUDA is begun; gives files by kind."""
    files = {kind: [folder / f"{i:04d}.{kind}" for i in range(n)] for kind in kinds}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("fork")) as pool:
        for places in files.values():
            list(pool.map(drawn, places, range(first, first + n), chunksize=4))
    return files


def fastest(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest of some calls, the device's work included."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def peak(precision: str, device: torch.device) -> float:
    """FLOP/s of a matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.rand(n, n, device=device).to(DTYPES[precision])
    return 2 * n**3 / fastest(lambda: a @ a, device)


def flops(extractor: Extractor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        extractor.backbone.module(torch.zeros(1, 3, *extractor.size))
    return counter.get_total_flops()


def network_of(given: dict) -> tuple[dict[str, float], tuple]:
    """Time a network on batches that lie on the device; gives it, too, with its weights."""
    built = build_extractor(Options.parse(given).resolve())
    extractor = built[0]
    device = extractor.device
    n, repeats = (BATCH, 10) if device.type == "cuda" else (4, 2)
    pixels = torch.randint(0, 256, (n, 3, *extractor.size), dtype=torch.uint8, device=device)
    extractor.run_batch(pixels)  # kernels are loaded and chosen
    seconds = fastest(lambda: extractor.run_batch(pixels), device, repeats) / n
    reached = flops(extractor) / seconds
    found = {
        "network, ms": 1000 * seconds,
        "pictures/s": 1 / seconds,
        "of peak": reached / peak(given["precision"], device),
    }
    return found, built


def measure(given: dict, files: dict[str, list[Path]], compiled: bool) -> dict[str, float]:
    """Time the whole of a detector, from files and from decoded pictures."""
    found, (extractor, weights, options) = network_of(given)
    device = extractor.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for kind, paths in files.items():
        seconds = fastest(lambda p=paths: extractor.extract(p), device, 3)
        found[f"{kind}, pictures/s"] = len(paths) / seconds
    detector = AnomalyDetector.fit(
        options,
        extractor,
        extractor.extract(files["png"]),
        ["drawn"] * len(files["png"]),
        weights,
    )
    picture = decode_image(files["png"][0].read_bytes())
    found["one picture, ms"] = 1000 * fastest(lambda: detector.score([picture]), device, 30)
    if device.type == "cuda":
        found["memory, MB"] = torch.cuda.max_memory_allocated(device) / 1e6
    if compiled:
        found |= compiling(extractor, DTYPES[given["precision"]])
    return found


def compiling(extractor: Extractor, dtype: torch.dtype) -> dict[str, float]:
    """Time the network as ``torch.compile`` makes it."""
    device = extractor.device
    module = torch.compile(extractor.backbone.module.to(device, dtype))
    inputs = torch.rand(BATCH, 3, *extractor.size, device=device)
    inputs = inputs.to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        start = time.perf_counter()
        module(inputs)
        seconds = time.perf_counter() - start
        ms = 1000 * fastest(lambda: module(inputs), device) / BATCH
    return {"compile, s": seconds, "compiled, ms": ms}


def write_beside(place: Path, figures: dict) -> None:
    """Write figures into a JSON file, beside those that are there."""
    known = json.loads(place.read_text()) if place.exists() else {}
    part = place.with_suffix(".part")
    part.write_text(json.dumps(known | figures, indent=2) + "\n")
    os.replace(part, place)


def table(rows: dict[str, dict[str, float]]) -> None:
    """Print rows of numbers as Markdown."""
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    click.echo(f"| | {' | '.join(names)} |")
    click.echo("|---" * (len(names) + 1) + "|")
    for title, found in rows.items():
        cells = (f"{found[n]:.3g}" if n in found else "" for n in names)
        click.echo(f"| {title} | {' | '.join(cells)} |")


@click.command(help=__doc__)
@click.option("--weights", default="imagenet", show_default=True, help="Of ResNet-18.")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--pictures", default=256, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Whether compiling pays, too.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file that figures are added to.")
def main(weights: str, device: str, pictures: int, compiled: bool, out: Path | None) -> None:
    precisions = ("fp32", "bf16", "fp16")
    if device == "cpu":  # what it only emulates would take minutes
        precisions = precisions[: 1 + bool(half_precision(torch.device(device)))]
    common = {"category": "drawn", "device": device, "cache": "false"}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder), pictures)
        if device != "cpu":
            click.echo(torch.cuda.get_device_name(torch.device(device)))
        for precision in precisions:
            given = common | {"weights": weights, "precision": precision, "preset": "anomalib"}
            rows[f"ResNet-18, {precision}"] = measure(given, files, compiled)
    table(rows)
    alone = {}
    for name, how in ALONE.items():
        for precision in precisions:
            given = common | how | {"weights": "random", "precision": precision}
            alone[f"{name}, {precision}"] = network_of(given)[0]
    table(alone)
    if out:
        write_beside(out, {"network": rows | alone})


if __name__ == "__main__":
    main()
