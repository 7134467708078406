"""Speed of a vision transformer and of the fit over its cells, on this machine.

    python benchmarks/tokens_speed.py --backbone timm:vit_small_patch14_dinov2 --n 32
    python benchmarks/tokens_speed.py --device cuda --n 512

For each size of the input and precision: images a second through the network (decoded already),
arithmetic a second, its share of what a large matrix product reaches in the same arithmetic on the
same cores, and the seconds of the cell fit with its held-out maps beside those of the network.
Weights are random: speed does not depend on them. Prints Markdown.
"""

import time

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dfm_mlflow.config import Options
from dfm_mlflow.detector.grid import grids_of
from dfm_mlflow.detector.layer_fit import Deal, fit_layers
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.device import DTYPES, choose_device, half_precision
from dfm_mlflow.network.extractor import Extractor


def settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def best(work, device, times=3):
    """Seconds of the fastest of several runs."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        settle(device)
        found.append(time.perf_counter() - start)
    return min(found)


def peak(device, precision):
    """Arithmetic a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, dtype=DTYPES[precision], device=device) for _ in range(2))
    a @ b
    return 2 * side**3 / best(lambda: a @ b, device, 5)


def flops(backbone, size):
    """Operations of one picture, attention included; counted without computing."""
    with FlopCounterMode(display=False) as counter:
        backbone.module.to("meta")(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops()


@click.command()
@click.option("--backbone", default="timm:vit_small_patch14_dinov2", show_default=True)
@click.option("--size", "sizes", multiple=True, type=int, default=(224, 448), show_default=True)
@click.option("--n", default=32, show_default=True, help="Pictures.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", "precisions", multiple=True, help="By default fp32 and the half one.")
def main(backbone, sizes, n, device, precisions):
    """Print the table."""
    device = choose_device(device)
    half = half_precision(device)
    precisions = precisions or tuple(filter(None, ("fp32", half)))
    if half is None:
        click.echo("This processor has no half precision of its own; precision=auto is fp32.")
    click.echo(f"{backbone} on {device}, {torch.get_num_threads()} threads, {n} pictures\n")
    click.echo(
        "| size | precision | images/s | GFLOP/s | of the peak | network, s | fit, s | fit |"
    )
    click.echo("|---" * 8 + "|")
    for side in sizes:
        for precision in precisions:
            given = {"preset": "tokens", "backbone": backbone, "image_size": str(side)}
            options = Options.parse(given).resolve()
            made = build_backbone(backbone, options.layer_names, options.size)
            extractor = Extractor.of(made, options, device, precision)
            noise = torch.Generator().manual_seed(0)
            pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=noise)
            pixels = pixels.to(device)
            extractor.run_batch(pixels[:4])
            network = best(lambda e=extractor, p=pixels: e.run_batch(p), device, 2)
            features = extractor.run_batch(pixels)
            grids = grids_of([f.shape[1:] for f in features], extractor.pixels.roi_cells, ("cell",))
            deal = Deal(np.arange(n) % min(n, 20), np.arange(n))
            start = time.perf_counter()
            fit_layers(features, deal, grids, options)
            fit = time.perf_counter() - start
            done = flops(made, options.size) * n / network
            click.echo(
                f"| {side} | {precision} | {n / network:.1f} | {done / 1e9:.0f} | "
                f"{done / peak(device, precision):.2f} | {network:.2f} | {fit:.2f} | "
                f"{fit / network:.2f} |"
            )


if __name__ == "__main__":
    main()
