"""What a GPU does: the network alone, whole extractions, one picture, and whether compiling pays.

    python benchmarks/cuda.py --weights FILE [--device cuda:0]

Draws pictures of 1 Mpx (PNG and JPEG). Runs on a CPU too (``--device cpu``), there without fp16.
Prints Markdown: the network on batches that lie on the device, its share of the peak that a matrix
product of the same type reaches, pictures a second from files, milliseconds from one decoded
picture to its score, and the largest memory of the device.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dfm_mlflow.config import Options
from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.device import DTYPES
from dfm_mlflow.network.extractor import Extractor

BATCH = 32


def draw(folder: Path, n: int) -> dict[str, list[Path]]:
    rng = np.random.default_rng(0)
    x = np.mgrid[:1024, :1024][1]
    files: dict[str, list[Path]] = {"png": [], "jpg": []}
    for i in range(n):
        base = 128 + 50 * np.sin(x / 40 + rng.uniform(0, 0.5)) + rng.normal(0, 4, x.shape)
        grey = base.clip(0, 255).astype(np.uint8)
        for kind, listed in files.items():
            listed.append(folder / f"{i:04d}.{kind}")
            Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(listed[-1])
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
    a = torch.rand(4096, 4096, device=device).to(DTYPES[precision])
    return 2 * 4096**3 / fastest(lambda: a @ a, device)


def flops(extractor: Extractor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        extractor.backbone.module(torch.zeros(1, 3, *extractor.size))
    return counter.get_total_flops()


def measure(given: dict, files: dict[str, list[Path]]) -> dict[str, float]:
    items = [Item(path, "drawn", "train", GOOD) for path in files["png"]]
    extractor, weights, options = build_extractor(Options.parse(given).resolve(), items)
    device = extractor.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pixels = torch.randint(0, 256, (BATCH, 3, *extractor.size), dtype=torch.uint8, device=device)
    network = fastest(lambda: extractor.run_batch(pixels), device) / BATCH
    found = {
        "network, ms": 1000 * network,
        "of peak": flops(extractor) / network / peak(given["precision"], device),
    }
    for kind, paths in files.items():
        seconds = fastest(lambda p=paths: extractor.extract(p), device, 3)
        found[f"{kind}, pictures/s"] = len(paths) / seconds
    detector = AnomalyDetector.fit(
        options, extractor, extractor.extract(files["png"]), ["drawn"] * len(items), weights
    )
    picture = decode_image(files["png"][0].read_bytes())
    found["one picture, ms"] = 1000 * fastest(lambda: detector.score([picture]), device, 30)
    if device.type == "cuda":
        found["memory, MB"] = torch.cuda.max_memory_allocated(device) / 1e6
        compiled = torch.compile(extractor.backbone.module.to(device, DTYPES[given["precision"]]))
        inputs = torch.rand(BATCH, 3, *extractor.size, device=device).to(
            DTYPES[given["precision"]], memory_format=torch.channels_last
        )
        with torch.inference_mode():
            start = time.perf_counter()
            compiled(inputs)
            found["compile, s"] = time.perf_counter() - start
            found["compiled, ms"] = 1000 * fastest(lambda: compiled(inputs), device) / BATCH
    return found


@click.command(help=__doc__)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--pictures", default=256, show_default=True)
def main(weights: str, device: str, pictures: int) -> None:
    if device != "cpu":
        click.echo(torch.cuda.get_device_name(torch.device(device)))
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder), pictures)
        rows = {}
        for precision in ("fp32", "bf16") if device == "cpu" else ("fp32", "bf16", "fp16"):
            given = {
                "category": "drawn",
                "weights": weights,
                "device": device,
                "cache": "false",
                "precision": precision,
                "preset": "anomalib",
            }
            rows[precision] = measure(given, files)
    names = list(next(iter(rows.values())))
    click.echo(f"| | {' | '.join(names)} |")
    click.echo("|---" * (len(names) + 1) + "|")
    for precision, found in rows.items():
        click.echo(f"| {precision} | {' | '.join(f'{found[n]:.3g}' for n in names)} |")


if __name__ == "__main__":
    main()
